"""SAM in MMEngine's loop against its two steps written out."""

import copy
import subprocess
import sys

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

pytest.importorskip('pytorch_optimizer')

from fpq_plugin import convert  # noqa: E402
from fpq_plugin.optim import SAMOptimWrapper  # noqa: E402
from fpq_plugin.param_groups import separate_scales  # noqa: E402


class Net(BaseModel):
    """A net with batch norm and dropout-free loss."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x, y, mode='tensor'):
        out = self.layers(x)
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(out, y))
        return out


def sgd(model):
    return torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def batches(n):
    return [dict(x=torch.randn(16, 4), y=torch.randint(3, (16, )))
            for _ in range(n)]


def test_three_steps_equal_foret_et_al():
    rho = 0.1
    model = Net()
    twin = copy.deepcopy(model)
    wrapper = SAMOptimWrapper(optimizer=sgd(model), rho=rho)
    optimizer = sgd(twin)
    for batch in batches(3):
        model.train_step(batch, wrapper)

        def loss(net, batch=batch):
            return net(**batch, mode='loss')['loss']

        parameters = list(twin.parameters())
        grads = torch.autograd.grad(loss(twin), parameters)
        statistics = copy.deepcopy(dict(twin.named_buffers()))
        norm = torch.stack([g.norm() for g in grads]).norm()
        old = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, grads):
                p.add_(rho * g / norm)
        optimizer.zero_grad()
        loss(twin).backward()
        with torch.no_grad():
            for p, before in zip(parameters, old):
                p.copy_(before)
            for name, buffer in twin.named_buffers():
                if 'running' in name:
                    buffer.copy_(statistics[name])
        optimizer.step()
    for (name, own), other in zip(model.named_parameters(),
                                  twin.parameters()):
        torch.testing.assert_close(own, other, msg=name)
    for (name, own), other in zip(model.named_buffers(), twin.buffers()):
        if 'running' in name:
            torch.testing.assert_close(own, other, msg=name)
    assert not any('old_p' in state
                   for state in wrapper.optimizer.state.values())


def test_scales_take_part_and_a_resumed_state_goes_on():
    model = Net()
    convert(model)
    data = batches(4)
    model(**data[0])

    def wrap(net):
        wrapper = SAMOptimWrapper(optimizer=sgd(net))
        separate_scales(net, [wrapper.optimizer])
        return wrapper

    wrapper = wrap(model)
    for batch in data[:2]:
        model.train_step(batch, wrapper)
    again = Net()
    convert(again)
    again.load_state_dict(model.state_dict())
    resumed = wrap(again)
    resumed.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    before = again.layers[0].input_quantizer.scale.item()
    for batch in data[2:]:
        model.train_step(batch, wrapper)
        again.train_step(batch, resumed)
    for own, other in zip(model.parameters(), again.parameters()):
        assert torch.equal(own, other)
    assert again.layers[0].input_quantizer.scale.item() != before


@pytest.mark.parametrize(('options', 'message'), [
    (dict(rho=0), 'optim_wrapper.rho'),
    (dict(accumulative_counts=2), 'accumulative_counts'),
])
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SAMOptimWrapper(optimizer=sgd(Net()), **options)


def test_without_its_library_the_error_names_the_extra():
    """In a Python that finds no pytorch_optimizer."""
    code = ('import sys; sys.modules["pytorch_optimizer"] = None\n'
            'import fpq_plugin.optim')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True,
                         text=True)
    assert run.returncode != 0
    assert "pip install 'fpq-openmmlab[sam]'" in run.stderr
