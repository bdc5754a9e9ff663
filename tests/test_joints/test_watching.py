"""What one forward made and read."""

import pytest
import torch
from torch import nn

from fpq_plugin import convert
from fpq_plugin.joints import watch_forward


class Block(nn.Module):
    """A residual block; what happens in it is known."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm(self.conv(x))
        out += x
        return self.relu(out)


def watched(model, *inputs):
    convert(model, first_last_bits=None)
    return watch_forward(model, lambda: model(*inputs))


def test_operations_in_order():
    seen = watched(Block(), torch.rand(1, 4, 5, 5))
    assert [op.kind for op in seen.ops] == ['conv', 'norm', 'add', 'relu']
    conv, norm, add, relu = seen.ops
    assert conv.layer == 'conv'
    assert conv.outputs == norm.inputs
    # Both are done in place: each makes a value of its own.
    assert add.inputs == [norm.outputs[0], conv.inputs[0]]
    assert relu.inputs == add.outputs
    assert relu.outputs != add.outputs
    assert relu.outputs[0].leaves


def test_modules_return_and_get_values():
    seen = watched(nn.Sequential(Block(), Block()), torch.rand(1, 4, 5, 5))
    value = seen.ops[3].outputs[0]
    assert [name for name, _ in value.returned_by] == ['0.relu', '0']
    assert [name for name, _ in value.given_to] == ['1', '1.conv']
    assert len(seen.calls['0.relu']) == 1


class Moves(nn.Module):

    def __init__(self, move):
        super().__init__()
        self.conv, self.move = nn.Conv2d(4, 4, 1), move

    def forward(self, x):
        return self.move(self.conv(x))


@pytest.mark.parametrize('move', [
    lambda x: x.chunk(2, 1)[0], lambda x: x[:, :2], lambda x: x.flatten(1),
    lambda x: x.permute(0, 2, 3, 1).contiguous(), lambda x: x.transpose(1, 2),
    lambda x: torch.reshape(x, (1, -1)), lambda x: x.unsqueeze(0)])
def test_moved_values_are_the_same(move):
    seen = watched(Moves(move), torch.rand(1, 4, 5, 5))
    assert {op.kind for op in seen.ops[1:]} == {'same'}


@pytest.mark.parametrize(('compute', 'kind', 'whole'), [
    (lambda x: x + x, 'add', True), (lambda x: x + 1, 'add', False),
    (lambda x: 2 * x, 'mul', False), (lambda x: x * x, 'mul', True),
    (lambda x: torch.cat([x, x]), 'cat', True),
    (lambda x: nn.functional.max_pool2d(x, 2), 'max_pool', True),
    (lambda x: nn.functional.adaptive_avg_pool2d(x, 1), 'avg_pool', True),
    (lambda x: nn.functional.relu6(x), 'clip', True),
    (lambda x: nn.functional.gelu(x), 'gelu', True),
    (lambda x: x.exp(), 'exp', True),
    (lambda x: x + torch.ones(5), 'add', False)])
def test_kinds(compute, kind, whole):
    op = watched(Moves(compute), torch.rand(1, 4, 5, 5)).ops[-1]
    assert (op.kind, op.whole) == (kind, whole)


def test_the_model_is_as_before():
    model = Block().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    watched(model, torch.rand(1, 4, 5, 5))
    assert model.training
    assert not model._forward_hooks
    after = model.state_dict()
    assert all(torch.equal(value, after[key])
               for key, value in before.items())


def test_an_error_leaves_no_hook():
    model = Block()
    convert(model, first_last_bits=None)
    with pytest.raises(RuntimeError):
        watch_forward(model, lambda: model(torch.rand(1, 3, 5, 5)))
    calls = []
    watch_forward(model, lambda: calls.append(model(torch.rand(1, 4, 5, 5))))
    assert len(calls) == 1
