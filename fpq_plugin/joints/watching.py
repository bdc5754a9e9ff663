"""What one forward did with which tensors: made by whom, read by whom.

Nothing is traced into a graph that would have to run again: the model runs
as it is, once, control flow included, and is watched. A tensor that is
changed in place counts as another value from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from .._compat.restoring import kept_modes, same_randomness
from ..layers import QuantizedLayer
from ..quantizers import full_precision
from .gates import gate_kind

KINDS: dict[str, tuple[str, ...]] = dict(
    add=('add', 'add_', '__add__', '__radd__', '__iadd__'),
    mul=('mul', 'mul_', '__mul__', '__rmul__', '__imul__', 'multiply'),
    cat=('cat', 'concat', 'concatenate'),
    avg_pool=('avg_pool1d', 'avg_pool2d', 'adaptive_avg_pool1d',
              'adaptive_avg_pool2d'),
    max_pool=('max_pool1d', 'max_pool2d', 'max_pool2d_with_indices'),
    sigmoid=('sigmoid', 'sigmoid_'),
    leaky_relu=('leaky_relu', 'leaky_relu_'),
    upsample=('interpolate', 'upsample'),
    relu=('relu', 'relu_'),
    clip=('relu6', 'hardtanh', 'hardtanh_', 'clamp', 'clamp_', 'clip'),
    norm=('batch_norm', ),
    same=('contiguous', 'reshape', 'flatten', 'clone', 'roll', 'to', 'float',
          'pixel_shuffle', 'channel_shuffle', 'dropout', 'dropout_', 'pad',
          'repeat', 'type_as'),
)
"""From the name of an operation to the functions of torch that do it.

``same`` moves values, or repeats them, and computes nothing.
"""
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


@dataclass(eq=False)
class Value:
    """One tensor, as it was between two changes.

    Attributes:
        maker (Op, optional): What computed it; None for an input.
        readers (list[Op]): What reads it, in order.
        returned_by (list[tuple[str, int]]): Names of the modules whose output
            it is, the innermost first, with the time.
        given_to (list[tuple[str, int]]): Names of the modules whose first
            argument it is, with the time.
        leaves (bool): Whether the model returns it.
    """

    maker: Op | None = None
    readers: list[Op] = field(default_factory=list)
    returned_by: list[tuple[str, int]] = field(default_factory=list)
    given_to: list[tuple[str, int]] = field(default_factory=list)
    leaves: bool = False


@dataclass(eq=False)
class Op:
    """One operation: a call of a layer, an activation or a torch function.

    Attributes:
        kind (str): A key of :data:`KINDS`, 'conv', 'transposed conv' or
            'linear' for a quantized layer, a key of :data:`~.gates.GATES` for
            an activation with a gate, else the name of torch's function.
        time (int): When it ran.
        inputs (list[Value]): What it reads.
        outputs (list[Value]): What it makes.
        layer (str): Name of the quantized layer.
        gated (str): Name of the activation with a gate.
        whole (bool): Whether no operand but the inputs has a part in it, as
            a parameter or a number of Python.
    """

    kind: str
    time: int
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    layer: str = ''
    gated: str = ''
    whole: bool = True


@dataclass
class Seen:
    """What :func:`watch_forward` saw.

    Attributes:
        ops (list[Op]): All operations, in order.
        calls (dict[str, list[tuple[int, int]]]): For each module the times of
            its calls' begin and end.
        answer (Any): What the model returned.
    """

    ops: list[Op] = field(default_factory=list)
    calls: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    answer: Any = None


def watch_forward(model: nn.Module, run: Callable[[], Any]) -> Seen:
    """Run a model and watch its tensors.

    Args:
        model (nn.Module): A converted model, without a wrapper. It runs in
            eval mode and full precision, and is as before afterwards.
        run (Callable): Runs its forward once.

    Returns:
        Seen: What was made and read.
    """
    watcher = _Watcher(model)
    handles = [register_module_forward_pre_hook(watcher.enters),
               register_module_forward_hook(watcher.leaves)]
    try:
        with in_float(model), watcher:
            watcher.seen.answer = run()
    finally:
        for handle in handles:
            handle.remove()
    return watcher.seen


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in eval mode and in full precision.

    What it draws it draws each time.

    Args:
        model (nn.Module): The model, as before afterwards.
    """
    with torch.inference_mode(False), torch.no_grad(), same_randomness(), (
            kept_modes(model)), full_precision(model):
        model.eval()
        yield


class _Watcher(TorchFunctionMode):
    """Sees each call of a torch function and of a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen = Seen()
        self._model = model
        self._names = {id(m): name for name, m in model.named_modules()}
        self._values: dict[tuple[int, int], Value] = {}
        self._kept: list[Tensor] = []  # no id may come again
        self._time = 0
        self._inside: list[tuple[nn.Module, Op]] = []
        self._begun: list[tuple[nn.Module, int]] = []

    # -- modules -----------------------------------------------------------

    def enters(self, module: nn.Module, args: tuple) -> None:
        if id(module) not in self._names or self._inside:
            return
        self._time += 1
        self._begun.append((module, self._time))
        if module is self._model:
            for tensor in tensors_in(args):
                self._value_of(tensor, Value())
        first = args[0] if args else None
        if isinstance(first, Tensor):
            known = self._known(first)
            if known is not None:
                known.given_to.append((self._names[id(module)], self._time))
        name = self._names[id(module)]
        if isinstance(module, QuantizedLayer):
            self._inside.append((module, Op(
                _layer_kind(module), self._time, self._read(args),
                layer=name)))
        elif gate_kind(module):
            self._inside.append((module, Op(
                gate_kind(module), self._time, self._read(args),
                gated=name)))

    def leaves(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._inside and self._inside[-1][0] is module:
            self._made(self._inside.pop()[1], output)
        if self._inside or not self._begun or (
                self._begun[-1][0] is not module):
            return
        self._time += 1
        name = self._names[id(module)]
        self.seen.calls.setdefault(name, []).append(
            (self._begun.pop()[1], self._time))
        for tensor in tensors_in(output):
            known = self._known(tensor)
            if known is not None and tensor is output:
                known.returned_by.append((name, self._time))
            if known is not None and module is self._model:
                known.leaves = True

    # -- functions ---------------------------------------------------------

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        self._time += 1
        operands = (args, kwargs)
        op = Op('', self._time, self._read(operands))
        tensors = list(tensors_in(operands))
        before = [(tensor, tensor._version) for tensor in tensors]
        out = func(*args, **kwargs)
        results = [tensor for tensor in tensors_in(out) if not any(
            tensor is known and tensor._version == version
            for known, version in before)]
        if op.inputs and results:
            op.kind = _kind(func, tensors, results)
            op.whole = len(op.inputs) == len(tensors) and not (
                op.kind in ('add', 'mul') and len(tensors) < 2)
            self._made(op, results)
        return out

    # -- values ------------------------------------------------------------

    def _known(self, tensor: Tensor) -> Value | None:
        if tensor.is_inference():
            return None
        return self._values.get((id(tensor), tensor._version))

    def _value_of(self, tensor: Tensor, value: Value) -> None:
        self._kept.append(tensor)
        self._values[id(tensor), tensor._version] = value

    def _read(self, operands: Any) -> list[Value]:
        return [value for tensor in tensors_in(operands)
                if (value := self._known(tensor)) is not None]

    def _made(self, op: Op, out: Any) -> None:
        for value in op.inputs:
            value.readers.append(op)
        for tensor in tensors_in(out):
            value = Value(op)
            op.outputs.append(value)
            self._value_of(tensor, value)
        self.seen.ops.append(op)


def _kind(func: Callable, before: list[Tensor], results: list[Tensor]) -> str:
    name = getattr(func, '__name__', '')
    if name == 'fn':  # one of two functions, by an argument
        name = getattr(func, '__qualname__', '').partition('.')[0]
        name = 'max_pool2d' if 'boolean_dispatch' in name else name
    kind = _KIND_OF.get(name, name)
    if kind == name and not any(out is x for out in results for x in before):
        stored = {x.untyped_storage().data_ptr() for x in before}
        if all(out.untyped_storage().data_ptr() in stored for out in results):
            return 'same'  # views
    return kind


def _layer_kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return 'transposed conv'
    return ('conv' if isinstance(layer, nn.modules.conv._ConvNd)
            else 'linear')


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in dicts, tuples and lists."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.is_inference():
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)
