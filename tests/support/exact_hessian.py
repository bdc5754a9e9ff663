"""The exact Hessian of a small model, by autograd in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fpq_plugin
from fpq_plugin.analysis import PlainBatch
from fpq_plugin.analysis.measuring import weighted_layers


def small_net(quantized: bool, bits: int = 4) -> nn.Module:
    """Two convolutions with batch norm and a classifier, float64."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(),
        nn.Conv2d(3, 3, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(3 * 4, 3))
    model(torch.randn(16, 1, 8, 8))
    if quantized:
        fpq_plugin.convert(
            model, weight=dict(bits=bits), activation=dict(bits=bits),
            perturbation=dict(p=0.5))
        fpq_plugin.calibrate(model, [torch.randn(16, 1, 8, 8)])
    return model.double().train()


def small_batches(number: int = 2, size: int = 8) -> list[PlainBatch]:
    """Batches for :func:`small_net`; the last one is half as large."""
    generator = torch.Generator().manual_seed(5)
    sizes = [size] * (number - 1) + [size // 2]
    return [
        PlainBatch(
            torch.randn(n, 1, 8, 8, generator=generator).double(),
            torch.randint(3, (n, ), generator=generator)) for n in sizes
    ]


def exact_hessian(model: nn.Module, batches: list) -> Tensor:
    """Row by row with autograd; joint mean over all images, eval mode."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    weights = [w.weight for w in weighted_layers(model).values()]
    total = sum(len(b) for b in batches)
    loss = sum(len(b) / total * b.loss(model) for b in batches)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = [
        torch.cat([
            g.flatten() for g in torch.autograd.grad(
                entry, weights, retain_graph=True, materialize_grads=True)
        ]) for entry in flat
    ]
    for module, mode in modes.items():
        module.training = mode
    return torch.stack(rows)


def softmax_hessian(x: Tensor, weight: Tensor) -> Tensor:
    """Closed form of mean cross entropy of ``weight @ x`` without a bias:
    mean of (diag(p) - p p^T) kron (x x^T)."""
    p = F.softmax(x @ weight.T, dim=1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    outer = x[:, :, None] * x[:, None, :]
    return torch.stack(
        [torch.kron(a, b) for a, b in zip(inner, outer)]).mean(0)
