"""A .pt2 file is torch.export's program with integers, for others to lower."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from exported_models import net, quantized
from torch import nn

from fpq_plugin.export import ParityError, export_program, program
from fpq_plugin.export.formats import format_of
from fpq_plugin.export.program import HAS_EXPORT, build_program

BITS = dict(weight=dict(bits=4), activation=dict(bits=4))
pytestmark = pytest.mark.skipif(
    not HAS_EXPORT, reason='this torch has no torch.export that can be told')

RUN = """
import sys
import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
program = torch.export.load(sys.argv[1]).module()
x = torch.from_numpy(np.load(sys.argv[2]))
np.save(sys.argv[3], torch.cat(
    [program(x[:1]), program(x[1:])]).detach().numpy())
assert not any(name.startswith('fpq') for name in sys.modules)
"""


class Attends(nn.Module):
    """Attention, with an input projection that is one weight."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        tokens = x.flatten(1, 2)
        return self.head(self.attention(tokens, tokens, tokens,
                                        need_weights=False)[0].mean(1))


class Counts(nn.Module):
    """Makes a number of the batch size."""

    def forward(self, x):
        return x * int(x.shape[0])


@pytest.fixture
def x():
    return torch.randn(9, 3, 8, 8)


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_a_fresh_process_runs_the_file_at_two_batch_sizes(
        backend, x, tmp_path):
    model = quantized(net(), x, backend=backend)
    state = set(model.state_dict())
    path = tmp_path / 'model.pt2'
    report = export_program(model, path, [(x, None)],
                            source=dict(checkpoint='epoch_3.pth'))
    np.save(tmp_path / 'x.npy', x.numpy())
    done = subprocess.run(
        [sys.executable, '-c', RUN, path, tmp_path / 'x.npy',
         tmp_path / 'y.npy'], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / 'y.npy')), model(x).detach(),
        rtol=0, atol=1e-5)
    assert report.size == os.path.getsize(path)
    assert report.parity.images == 9
    assert 'converter' in str(report)
    # The model is as before.
    assert set(model.state_dict()) == state
    assert all('forward' not in vars(module) for module in model.modules())
    notes = {'fpq.bits': '', 'fpq.checkpoint': ''}
    torch.export.load(path, extra_files=notes)
    assert notes['fpq.bits'].splitlines()[1] == '3 W4A4'
    assert notes['fpq.checkpoint'] == 'epoch_3.pth'
    assert str(tmp_path.parent).encode() not in path.read_bytes()


def test_an_input_projection_is_one_weight(x, tmp_path):
    model = quantized(Attends(), x, **BITS)
    export_program(model, tmp_path / 'model.pt2', [(x, None)])


def test_what_does_not_answer_as_the_model_is_not_written(
        x, tmp_path, monkeypatch):
    model = quantized(net(), x)
    monkeypatch.setattr(program, '_int8',
                        lambda grid: (grid.zero_point, 0, 1))
    with pytest.raises(ParityError):
        export_program(model, tmp_path / 'model.pt2', [(x, None)])
    assert not list(tmp_path.iterdir())


class OfThree(nn.Module):
    """Takes batches of three alone."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net(x.reshape(3, 3, 8, 8))


def test_a_batch_size_that_is_fixed_in_python(x, tmp_path):
    model = quantized(OfThree(), x[:3])
    path = tmp_path / 'model.pt2'
    assert export_program(model, path, [(x, None)],
                          batch_size=3).batch_size == 3
    free = quantized(nn.Sequential(net(), Counts()), x)
    with pytest.raises(ValueError, match='(?s)torch.export of .*batch-size'):
        export_program(free, path, [(x, None)])


def test_what_cannot_be_exported_is_named(x, tmp_path):
    model = quantized(net(), x,
                      activation=dict(type='LSQPlusFakeQuantize', bits=4))
    with pytest.raises(ValueError, match='3.input_quantizer: LSQPlus'):
        format_of('model.pt2').check(model, x[:2])
    with pytest.raises(ValueError, match='no fake quantizer'):
        build_program(net().eval(), x)
    with pytest.raises(FileNotFoundError, match='no folder'):
        export_program(model, tmp_path / 'no' / 'model.pt2', [(x, None)])
    with pytest.raises(ValueError, match='batch_size must be at least 1'):
        export_program(model, tmp_path / 'model.pt2', [(x, None)],
                       batch_size=0)


def test_a_program_for_an_engine_has_no_narrow_ranges(x, tmp_path):
    model = quantized(net(), x, first_last_bits=None, **BITS)
    path = tmp_path / 'model.pt2'
    report = export_program(model, path, [(x, None)], target='executorch')
    assert report.moved_weights == 0
    program = torch.export.load(path)
    assert {node.args[-3:] for node in program.graph.nodes
            if 'quantize_per_' in str(node.target)} == {
                (-128, 127, torch.int8)}
    format_of(path).check(model, x, target='executorch')
