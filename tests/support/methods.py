"""Each fake quantizer's formula in its paper, and how tests take them all.

A method's reference is written with :class:`frozen.Frozen` from the paper, as
a function of the tensor and the learned parameters.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st

from fpq_plugin import (
    DoReFaFakeQuantize,
    LSQFakeQuantize,
    LSQPlusFakeQuantize,
    PACTFakeQuantize,
    TorchAOFakeQuantize,
)


def axes(x, quantizer):
    """Shape for values of each channel, and the axes within a channel."""
    if not quantizer.is_per_channel:
        return [1] * x.dim(), list(range(x.dim()))
    shape = [1] * x.dim()
    shape[quantizer.ch_axis] = -1
    return shape, [d for d in range(x.dim()) if d != quantizer.ch_axis]


def affine(f, q, x, step, zero_point):
    """Equation (3) with LSQ's straight-through gradients."""
    v = f.round(x / step) + zero_point
    low = f.where(v < q.quant_min, torch.full_like(v, q.quant_min), v)
    return (f.where(low > q.quant_max, torch.full_like(v, q.quant_max), low)
            - zero_point) * step


def slowed(value, factor):
    """``value`` whose gradient carries ``factor``."""
    return value.detach() + factor * (value - value.detach())


def lsq(f, q, x, scale):
    shape, dims = axes(x, q)
    g = (x.numel() / scale.numel() * q.quant_max)**-0.5
    return affine(f, q, x, slowed(scale, g).view(shape),
                  q.zero_point.view(shape))


def lsq_plus(f, q, x, scale, offset=None):
    if offset is None:
        return lsq(f, q, x, scale)
    shape, dims = axes(x, q)
    g = (x.numel() / scale.numel() * q.quant_max)**-0.5
    offset = slowed(offset, g).view(shape)
    return affine(f, q, x - offset, slowed(scale, g).view(shape), 0) + offset


def pact(f, q, x, clip):
    shape, dims = axes(x, q)
    levels = q.quant_max - q.quant_min
    step = clip.view(shape) / levels
    zero = q.zero_point.view(shape)
    low, high = (q.quant_min - zero) * step, (q.quant_max - zero) * step
    x = f.where(x < low, low.expand_as(x), x)
    x = f.where(x > high, high.expand_as(x), x)
    # Rounding to the grid adds what is a constant to the gradient.
    fixed = step.detach()
    return x + f.constant(torch.round(x / fixed) * fixed - x)


def dorefa(f, q, x):
    shape, dims = axes(x, q)
    most = x.detach().abs().amax(dims, keepdim=True)
    squeezed = torch.tanh(x)
    squeezed = squeezed / squeezed.abs().amax(dims, keepdim=True)
    levels = 2**q.num_bits - 1
    unit = f.round((squeezed / 2 + 0.5) * levels) / levels
    # M is a constant to the gradient: take the first evaluation's.
    return f.constant(most) * (2 * unit - 1)


def torch_ao(f, q, x):
    shape, dims = axes(x, q)
    step, zero = q.step().double().view(shape), q.zero_point.view(shape)
    return affine(f, q, x, step, zero)


METHODS = [
    (LSQFakeQuantize, lsq, False), (LSQFakeQuantize, lsq, True),
    (LSQPlusFakeQuantize, lsq_plus, False),
    (LSQPlusFakeQuantize, lsq_plus, True),
    (PACTFakeQuantize, pact, False), (PACTFakeQuantize, pact, True),
    (DoReFaFakeQuantize, dorefa, True),
    (TorchAOFakeQuantize, torch_ao, False),
    (TorchAOFakeQuantize, torch_ao, True),
]


IDS = [f'{cls.__name__}-{"weight" if w else "feature"}'
       for cls, _, w in METHODS]


each = pytest.mark.parametrize(('cls', 'reference', 'weight'), METHODS,
                               ids=IDS)


each_type = pytest.mark.parametrize(
    'cls', sorted({cls for cls, *_ in METHODS}, key=lambda c: c.__name__))


def make(cls, weight, bits=4, channels=None):
    """A feature's quantizer; a weight's: symmetric, per channel."""
    if not weight:
        return cls(bits=bits)
    options = {} if cls is DoReFaFakeQuantize else dict(symmetric=True)
    return cls(bits=bits, per_channel=True, num_channels=channels, **options)


@st.composite
def tensors(draw):
    """(bits, x) with x float64 of 2 to 4 axes, some far from 0."""
    bits = draw(st.integers(2, 8))
    shape = draw(st.lists(st.integers(2, 4), min_size=2, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shift = draw(st.sampled_from([0.0, 0.7, -1.5]))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return bits, x + shift


def calibrated(cls, weight, bits, x, shrink=0.8):
    """A float64 quantizer that clips some of ``x``."""
    quantizer = make(cls, weight, bits, x.shape[0])
    quantizer.observe(x)
    quantizer.initialize()
    if cls is TorchAOFakeQuantize:
        quantizer.fake.scale.mul_(shrink)
        return quantizer.eval()
    quantizer.double()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(shrink).add_(0.01)
    return quantizer


def upstream_of(out):
    return torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
