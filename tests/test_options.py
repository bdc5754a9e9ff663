"""Options from configs: names, numbers, patterns, types."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import MODELS, Registry

from fpq_plugin import LSQFakeQuantize, PACTFakeQuantize, Quantizer
from fpq_plugin.options import (
    build,
    is_number,
    known_options,
    matches,
    merge,
    refuse_no_patterns,
    refuse_unknown,
    refuse_unmatched,
    resolve,
    type_name,
)

NAMES = st.text('ab.', min_size=1, max_size=6)


@given(NAMES, st.text('ab.*', min_size=1, max_size=5))
def test_a_pattern_names_a_layer_or_what_holds_it(name, pattern):
    """Against regular expressions on every prefix that ends at a dot."""
    expression = re.escape(pattern).replace(r'\*', '.*')
    parts = name.split('.')
    holders = ['.'.join(parts[:end]) for end in range(1, len(parts) + 1)]
    assert matches(name, pattern) == any(
        re.fullmatch(expression, holder) for holder in holders)


def test_a_pattern_that_matches_nothing_gets_the_nearest_names():
    refuse_unmatched('fpq.skip', ['head'], ['head.fc', 'backbone.conv1'])
    with pytest.raises(ValueError, match=r"^fpq.skip: the pattern 'haed' .*"
                       'head.fc'):
        refuse_unmatched('fpq.skip', ['haed'], ['head.fc', 'backbone.conv1'])


@pytest.mark.parametrize('patterns', ['head', [1], ['head', None]])
def test_what_is_no_list_of_patterns(patterns):
    refuse_no_patterns('fpq.skip', ['head'])
    with pytest.raises(TypeError, match=r'^fpq.skip: must be a list of patt'):
        refuse_no_patterns('fpq.skip', patterns)


@given(st.one_of(st.floats(), st.integers(-3, 3), st.booleans(), st.none(),
                 st.text(max_size=2)))
def test_what_counts_as_a_number(value):
    number = type(value) in (int, float) and math.isfinite(value)
    assert is_number(value, -2, 2) == (number and -2 <= value <= 2)


def test_options_of_base_classes_count():
    assert {'bits', 'symmetric', 'weight_decay'} <= set(
        known_options(PACTFakeQuantize))
    assert 'weight_decay' not in known_options(LSQFakeQuantize)


def test_unknown_options_get_the_nearest_name():
    refuse_unknown('fpq', dict(bits=1), ['bits'])
    with pytest.raises(ValueError, match=r"^fpq: unknown option 'bitz'. Did "
                       r"you mean 'bits'\? Known options: bits, weight."):
        refuse_unknown('fpq', dict(bitz=1), ['weight', 'bits'])


@pytest.mark.parametrize(('base', 'given', 'wanted'), [
    (dict(type='A', x=1), dict(y=2), dict(type='A', x=1, y=2)),
    (dict(type='A', x=1), dict(type='A', x=3), dict(type='A', x=3)),
    (dict(type='A', x=1), dict(type='B'), dict(type='B')),
    (dict(type='A', x=1), None, None),
    (None, dict(y=2), dict(y=2)),
    (dict(type='int', x=1), dict(type=int), dict(type='int', x=1)),
    (dict(type=int, x=1), dict(type='int', y=2), dict(type=int, x=1, y=2)),
    (dict(type='A'), 4, 4),
])
def test_merging(base, given, wanted):
    kept = None if base is None else dict(base)
    assert merge(base, given) == wanted
    assert base == kept


def test_type_names():
    assert type_name('LSQ') == 'LSQ'
    assert type_name(int) == 'int'
    assert type_name(5) == ''


def test_resolving_fills_the_type_in_and_names_what_is_wrong():
    assert resolve('w', None, 'LSQFakeQuantize') is None
    assert resolve('w', dict(bits=32), 'LSQFakeQuantize') is None
    assert resolve('w', dict(bits=4), 'LSQFakeQuantize') == dict(
        type='LSQFakeQuantize', bits=4)
    assert resolve('w', dict(type=LSQFakeQuantize), 'PACTFakeQuantize') == (
        dict(type='LSQFakeQuantize'))
    for cfg, message in (
        (dict(type='None'), r"^w.type: 'None' is not registered in MODELS"),
        (dict(type='CSDLoss'), r"^w.type: 'CSDLoss' is no class of kind Q"),
        (dict(bitz=4), r"^w: unknown option 'bitz'")):
        with pytest.raises(ValueError, match=message):
            resolve('w', cfg, 'LSQFakeQuantize', kind=Quantizer)
    with pytest.raises(TypeError, match='^w: must be a dict or None, got 4'):
        resolve('w', 4, 'LSQFakeQuantize')


def test_a_class_that_the_registry_does_not_know_stays_a_class():

    class Mine(LSQFakeQuantize):
        pass

    cfg = resolve('w', dict(type=Mine, bits=3), 'LSQFakeQuantize')
    assert cfg['type'] is Mine
    assert type(build('w', cfg)) is Mine


def test_a_child_registry_is_named_and_asked_first():
    registry = Registry('weights of mine', parent=MODELS, scope='mine')

    @registry.register_module(name='LSQFakeQuantize')
    class Other(LSQFakeQuantize):
        pass

    assert type(build('w', dict(type='LSQFakeQuantize', bits=2),
                      registry)) is Other
    with pytest.raises(ValueError, match='WEIGHTS OF MINE or MODELS'):
        resolve('w', dict(type='None'), 'LSQFakeQuantize', registry)


def test_building_gives_errors_the_full_name():
    with pytest.raises(ValueError, match=r'^w\.bits: must be an integer'):
        build('w', dict(type='LSQFakeQuantize', bits=1))

    class Needs:

        def __init__(self, bits):
            pass

    with pytest.raises(ValueError, match=r"^w: .*required.*'bits'") as caught:
        build('w', dict(type=Needs))
    assert isinstance(caught.value.__cause__, TypeError)


def test_defaults_that_a_class_does_not_take_are_dropped():
    quantizer = build('w', dict(type='LSQFakeQuantize', bits=2),
                      symmetric=True, none_of_its=1)
    assert quantizer.symmetric
    assert not build('w', dict(type='LSQFakeQuantize', symmetric=False),
                     symmetric=True).symmetric
