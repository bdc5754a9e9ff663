"""The model as an ONNX graph in which fake quantizers are single nodes."""

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

from ..compat import onnx_tracer_options
from ..quantizers import Quantizer

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
        return g.op(f'{DOMAIN}::FakeQuantize', x,
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
          marked: bool = True) -> onnx.ModelProto:
    """Trace ``model`` in eval mode.

    Nothing but the fake quantizers stands for quantization: SFP, CSD and
    calibration leave nothing. The batch size is free.

    Args:
        model (nn.Module): Takes and returns one tensor; in eval mode.
        quantizers (Sequence[Quantizer]): Those of the model. Each call of
            ``quantizers[i]`` becomes one node ``fpq::FakeQuantize`` with the
            attribute ``number = i``.
        example (Tensor): An input, the first axis is the batch.
        marked (bool): False leaves the quantizers out, which gives the
            full-precision model. Defaults to True.

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
    content = io.BytesIO()
    with _replaced(quantizers, marked), warnings.catch_warnings():
        # Shapes become constants, but for the batch: what parity is for.
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
                dynamic_axes={
                    INPUT: {0: 'batch'},
                    OUTPUT: {0: 'batch'}
                },
                **options)
        except Exception as error:
            raise ValueError('not exported: torch cannot trace '
                             f'{type(model).__name__}: {error}') from error
    return onnx.load_from_string(content.getvalue())
