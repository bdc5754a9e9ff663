"""Which layers to give more bits, and how to write it."""

import pytest
import torch
from torch import nn

import fpq_plugin
from fpq_plugin.analysis import PlainBatch
from fpq_plugin.analysis.advice import (
    more_kilobytes,
    overrides,
    overrides_text,
    parts_to_raise,
    worst_layers,
)
from fpq_plugin.analysis.study import layer_rows


def net(**options):
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(8)]
    model = nn.Sequential(*(part for layer in layers
                            for part in (layer, nn.ReLU())))
    batches = [PlainBatch(torch.rand(64, 16), torch.zeros(64))]
    fpq_plugin.convert(model, **options)
    fpq_plugin.calibrate(model, [batches[0].inputs])
    return model, batches


def rows_of(model, batches):
    names = [name for name, layer in model.named_modules()
             if isinstance(layer, nn.Linear)]
    none = fpq_plugin.analysis.Estimate(0.0, 0.0)
    return layer_rows(model, batches, dict.fromkeys(names, none))


@pytest.mark.parametrize('part', ['weight', 'activation'])
def test_a_layer_made_worse_on_purpose_comes_first(part):
    rows = rows_of(*net(overrides={'6': {part: dict(bits=2)}}))
    assert worst_layers(rows)[0]['name'] == '6'
    assert overrides(rows[3:4]) == {'6': {part: dict(bits=4)}}
    # Without that it is not among the first.
    assert '6' not in [row['name'] for row in worst_layers(rows_of(*net()))]


def test_what_is_to_be_pasted_gives_the_bits_and_less_error():
    worse = {'6': dict(weight=dict(bits=2))}
    rows = rows_of(*net(overrides=worse))
    worst = worst_layers(rows)
    options = eval(f'dict({overrides_text(worst)})')
    assert options == dict(overrides=overrides(worst))
    better = {row['name']: row for row in rows_of(
        *net(overrides={**worse, **options['overrides']}))}
    for row in worst:
        for part, bits in parts_to_raise(row).items():
            assert bits > row[f'{part}_bits']
            assert better[row['name']][f'{part}_bits'] == bits
        assert better[row['name']]['sqnr']['output'] > row['sqnr']['output']
    more = sum(better[r['name']]['weight_bits'] * r['weights']
               - r['weight_bits'] * r['weights'] for r in worst) / 8000
    assert sum(map(more_kilobytes, worst)) == pytest.approx(more)
    assert more > 0


def row(name, weight, input, output, bits=(4, 4)):
    return dict(name=name, weights=1000, weight_bits=bits[0],
                input_bits=bits[1],
                sqnr=dict(weight=weight, input=input, output=output))


def test_a_quarter_of_the_layers_and_five_at_most():
    rows = [row(str(i), 20., 20., float(-i)) for i in range(40)]
    assert [r['name'] for r in worst_layers(rows)] == [
        '39', '38', '37', '36', '35']
    assert len(worst_layers(rows[:9])) == 3
    assert len(worst_layers(rows, most=12)) == 12


def test_layers_with_nothing_to_give_are_left_out():
    assert worst_layers([
        row('8 bits', 1., 1., 1., (8, 8)),
        row('float', None, None, 1., (32, 32)),
        dict(row('not called', 1., 1., 1.), sqnr=None),
    ]) == []


@pytest.mark.parametrize(('weight', 'input', 'bits', 'raised'), [
    (10., 20., (4, 4), dict(weight=8)),
    (20., 10., (2, 2), dict(input=4)),
    (20., 15., (2, 4), dict(weight=4, input=8)),
    (20., 26.1, (3, 5), dict(weight=4)),
    (None, 10., (32, 4), dict(input=8)),
    (10., 20., (8, 4), {}),
    (10., 14., (8, 4), dict(input=8)),
])
def test_the_part_that_makes_the_error_is_raised(weight, input, bits,
                                                 raised):
    assert parts_to_raise(row('a', weight, input, 9., bits)) == raised
