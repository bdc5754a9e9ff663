"""torch traces the model, with a mark where it calls a fake quantizer.

While torch traces, each fake quantizer is replaced by a node
``fpq::FakeQuantize`` with the quantizer's number, so that the trace holds
where values are quantized and nothing of how.

A trace runs the model once, and what Python computes on the way becomes a
constant of the graph: the batch size too, where the model makes an ``int`` of
it. :func:`trace` therefore traces twice, and :mod:`.batch` compares.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import onnx
import torch
from torch import Tensor, nn
from torch.autograd import Function

from .._compat.versions import onnx_tracer_options
from ..quantizers import Quantizer
from .lowering import MARK

DOMAIN = 'fpq'
INPUT, OUTPUT = 'input', 'output'
# The newest that every supported torch writes.
TRACED_OPSET = 17


class _Mark(Function):
    """Stands for the quantizer ``number`` in the trace."""

    @staticmethod
    def forward(ctx, x: Tensor, number: int) -> Tensor:
        # A new tensor: the tracer drops a function that returns its input.
        return x.clone()

    @staticmethod
    def symbolic(g, x, number: int):
        return g.op(f'{DOMAIN}::{MARK}', x,
                    number_i=number).setType(x.type())


def _mark(number: int, x: Tensor) -> Tensor:
    return _Mark.apply(x, number)


def _identity(x: Tensor) -> Tensor:
    return x


@contextmanager
def _replaced(quantizers: Sequence[Quantizer],
              marked: bool) -> Iterator[None]:
    for number, quantizer in enumerate(quantizers):
        quantizer.forward = (  # type: ignore[method-assign]
            partial(_mark, number) if marked else _identity)
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.forward


@torch.no_grad()
def trace(model: nn.Module,
          quantizers: Sequence[Quantizer],
          example: Tensor,
          marked: bool = True,
          free: bool = True) -> onnx.ModelProto:
    """Trace ``model`` in eval mode.

    Nothing but the fake quantizers stands for quantization: SFP, CSD and
    calibration leave nothing.

    Args:
        model (nn.Module): Takes and returns one tensor; in eval mode.
        quantizers (Sequence[Quantizer]): Those of the model. Each call of
            ``quantizers[i]`` becomes one node ``fpq::FakeQuantize`` with the
            attribute ``number = i``.
        example (Tensor): An input, the first axis is the batch.
        marked (bool): False leaves the quantizers out, which gives the
            full-precision model. Defaults to True.
        free (bool): Whether the graph's input and output have a free batch
            size. Defaults to True.

    Returns:
        onnx.ModelProto: The graph, its tensors ``input`` and ``output``.

    Raises:
        ValueError: If the model does not return one tensor, or torch cannot
            trace it.
    """
    out = model(example)
    if not isinstance(out, Tensor):
        raise ValueError(
            'not exported: the model must return one tensor, and '
            f'{type(model).__name__} returns a {type(out).__name__}')
    options = onnx_tracer_options()
    if marked:
        options['custom_opsets'] = {DOMAIN: 1}
    if free:
        options['dynamic_axes'] = {
            name: {0: 'batch'} for name in (INPUT, OUTPUT)}
    content = io.BytesIO()
    with _replaced(quantizers, marked), warnings.catch_warnings():
        # What became a constant is found by comparing traces.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        warnings.simplefilter('ignore', UserWarning)
        try:
            torch.onnx.export(
                model, (example, ),
                content,
                opset_version=TRACED_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                **options)
        except Exception as error:
            raise ValueError('not exported: torch cannot trace '
                             f'{type(model).__name__}: {error}') from error
    return onnx.load_from_string(content.getvalue())
