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


@pytest.mark.parametrize('p', [0, 0.5])
def test_a_step_is_that_of_the_usual_format(p):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    contrast = torch.linspace(0.2, 3, 8).reshape(-1, 1, 1, 1)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8, ))
    images *= contrast  # else the head's inputs, which are means, are all one
    for _ in range(30):
        model(images)  # statistics for the calibration, which is in eval mode
    teacher = copy.deepcopy(model)
    fpq_plugin.convert(model, weight=dict(bits=4), activation=dict(bits=8),
                       perturbation=dict(p=p) if p else None)
    fpq_plugin.calibrate(model, [images])

    *_, maps = result = run(model, teacher, images, labels,
                            torch.channels_last)
    assert len(maps) > 10
    # A copy to the other format and back would cost what it is to save.
    assert all(out.is_contiguous(memory_format=torch.channels_last)
               for out in maps)
    # Else the noise is drawn in another order. A value that rounding puts on
    # another step of the grid moves what comes after it by a step.
    if p == 0:
        usual = run(model, teacher, images, labels, torch.contiguous_format)
        torch.testing.assert_close(result[:2], usual[:2], rtol=1e-2, atol=0)
        for name, grad in result[2].items():
            expected = usual[2][name]
            assert (grad - expected).norm() < 0.1 * expected.norm(), name
            assert expected.any()
