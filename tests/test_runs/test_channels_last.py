"""A converted model in the memory format that is a CPU's faster one."""

import copy

import pytest
import torch
from torch import nn

import fpq_plugin


def run(model, teacher, images, labels, memory_format):
    """Loss, CSD, gradients, and the 4-D outputs of one training step."""
    model, teacher = (copy.deepcopy(m).to(memory_format=memory_format)
                      for m in (model, teacher))
    outputs = []
    for module in model.modules():
        module.register_forward_hook(
            lambda module, args, output: outputs.append(output))
    distiller = fpq_plugin.Distiller(model, teacher, fpq_plugin.CSDLoss())
    logits = model(images.contiguous(memory_format=memory_format))
    loss, csd = nn.functional.cross_entropy(logits, labels), distiller.loss()
    (loss + csd).backward()
    maps = [output for output in outputs if output.dim() == 4]
    return loss, csd, {n: p.grad for n, p in model.named_parameters()}, maps


def student_of(model, images, perturbation=None):
    """A calibrated student of ``model``, which stays as it is."""
    student = copy.deepcopy(model)
    fpq_plugin.convert(student, weight=dict(bits=4), activation=dict(bits=4),
                       perturbation=perturbation)
    fpq_plugin.calibrate(student, [images])
    return student


@pytest.fixture
def case():
    """A model, images (8, 3, 32, 32) and labels, in float64.

    There no rounding difference moves a value to another step of the grid.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).double()
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    # Else the head's inputs, which are means, are all one.
    images *= torch.linspace(0.2, 3, 8).reshape(-1, 1, 1, 1)
    for _ in range(30):
        model(images)  # statistics for the calibration, which is in eval mode
    return model, images, torch.randint(10, (8, ))


def test_a_step_is_that_of_the_usual_format(case):
    model, images, labels = case
    student = student_of(model, images)
    (*found, grads, _), (*usual, expected, _) = (
        run(student, model, images, labels, memory_format)
        for memory_format in (torch.channels_last, torch.contiguous_format))
    torch.testing.assert_close(found, usual, rtol=1e-9, atol=0)
    for name, grad in grads.items():
        assert expected[name].any(), name
        torch.testing.assert_close(
            grad, expected[name], rtol=1e-6,
            atol=1e-9 * expected[name].abs().max().item())


@pytest.mark.parametrize('perturbation', [None, dict(p=0.5)])
def test_maps_stay_in_the_format(case, perturbation):
    """A copy to the other format and back would cost what it is to save."""
    model, images = case[0].float(), case[1].float()
    student = student_of(model, images, perturbation)
    *_, maps = run(student, model, images, case[2], torch.channels_last)
    assert len(maps) > 10
    assert all(out.is_contiguous(memory_format=torch.channels_last)
               for out in maps)
