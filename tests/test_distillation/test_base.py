"""A loss of one's own is a label and a forward."""

import copy

import pytest
import torch
from torch import nn

from fpq_plugin import DistillationLoss, Distiller, calibrate, convert
from fpq_plugin.distillation.losses import refuse_other_shapes


class Distance(DistillationLoss):
    label = 'distance'

    def forward(self, student, teacher, channel_axis):
        return (student - teacher).square().sum()


def test_it_is_summed_over_layers_and_logged_by_its_label():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    teacher, x = copy.deepcopy(model), torch.randn(5, 4)
    convert(model)
    calibrate(model, [x])
    maps = {}
    for name in ('0', '2'):
        for whose, net in (('s', model), ('t', teacher)):
            net.get_submodule(name).register_forward_hook(
                lambda m, a, out, key=(whose, name): maps.update({key: out}))
    distiller = Distiller(model, teacher, Distance())
    model(x)
    wanted = sum((maps['s', name] - maps['t', name]).square().sum()
                 for name in ('0', '2'))
    torch.testing.assert_close(distiller.losses()['distance'], wanted)
    distiller.loss().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_without_an_attach_of_its_own_the_output_goes_on_as_it_is():
    student, teacher = torch.randn(3, 2), torch.randn(3, 2)
    out, loss = Distance().attach(student, teacher, -1)
    assert out is student
    assert loss == (student - teacher).square().sum()


def test_a_loss_needs_a_forward():
    with pytest.raises(TypeError, match='abstract'):
        type('Nothing', (DistillationLoss, ), dict(label='none'))()


def test_other_shapes_are_refused():
    refuse_other_shapes(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r'shape \(2, 3\) and the teacher'):
        refuse_other_shapes(torch.ones(2, 3), torch.ones(3, 2))
