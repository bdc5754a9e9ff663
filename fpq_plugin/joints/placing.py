"""Where fake quantizers go beside the layers', for one engine.

A *joint* is an operation that is no layer and that an engine can do on
integers, such as a sum: if its operands and its result are quantized. One
tensor has one quantizer, which all its readers share. It sits where a module
returns the tensor, or gets it, so that a forward hook is all it takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import QuantizedLayer
from ..quantizers import BaseFakeQuantize, describe
from ..targets import Target
from .biases import can_be_rounded
from .watching import Op, Seen, Value

# An engine does them in the layer or joint before.
ABSORBED = ('norm', 'relu', 'clip', 'max_pool')


@dataclass(frozen=True)
class Joint:
    """One quantizer for one tensor.

    Attributes:
        module (str, optional): The module that returns the tensor, or gets
            it; None if only layers read it, whose inputs share a quantizer.
        side (str): 'output' or 'entry', of the module; 'gate', what the
            module, an activation, multiplies its input with; 'bias': it adds
            the bias of the layer in ``layers``, and no quantizer is there.
        layers (tuple[str, ...]): Quantized layers that share it as their
            input's.
        why (str): What reads the tensor, for the table.
    """

    module: str | None
    side: str
    layers: tuple[str, ...]
    why: str = ''


@dataclass(frozen=True)
class Placing:
    """Where quantizers go, and what stays float.

    Attributes:
        joints (tuple[Joint, ...]): In the order of the forward.
        left (tuple[str, ...]): What could run on integers and will not, and
            why.
    """

    joints: tuple[Joint, ...]
    left: tuple[str, ...]


def place_joints(model: nn.Module, seen: Seen, target: Target,
                 bits: int) -> Placing:
    """Find where quantizers go.

    Args:
        model (nn.Module): A converted model.
        seen (Seen): What one of its forwards did.
        target (Target): The engine's rules.
        bits (int): Bits of the joints' quantizers.

    Returns:
        Placing: The places.
    """
    return _Places(model, seen, target, bits).find()


class _Places:

    def __init__(self, model: nn.Module, seen: Seen, target: Target,
                 bits: int) -> None:
        self.seen, self.target, self.bits = seen, target, bits
        self.modules = dict(model.named_modules())
        self.joints = [op for op in seen.ops if op.kind in target.joints]
        self.live: set[Op] = {op for op in self.joints if op.whole}
        self.bad: dict[Op, str] = {}

    def find(self) -> Placing:
        self._let_die()
        wanted = self._wanted()
        joints = list(self._biases())
        tied: set[str] = set()
        for value in self._roots():
            readers = self._layers_reading(value)
            place = self._place(value) if value in wanted else None
            groups = self._groups(readers)
            if place is not None:
                own = next((group for group in groups
                            if self._bits(group[0]) == self.bits
                            and len(self._tensors(group[0])) == 1), [])
                joints.append(Joint(*place, tuple(own), wanted[value]))
                groups = [group for group in groups if group is not own]
            joints += [Joint(name, 'gate', (), 'gate')
                       for name in self._gates_reading(value)]
            joints += [
                Joint(None, 'entry', tuple(group), 'one tensor'
                      if len(self._tensors(group[0])) == 1 else
                      'the same tensors')
                for group in groups if len(group) > 1 and not tied & {*group}]
            tied.update(*groups)
        left = [f'{op.kind} in {self._owner(op)}: {why}'
                for op, why in self.bad.items()]
        return Placing(tuple(joints), tuple(dict.fromkeys(left)))

    def _biases(self) -> Iterator[Joint]:
        """Where the engine adds biases as integers."""
        if not (self.target.integer_biases and self.target.ends_quantized):
            return
        calls = Counter(op.layer for op in self.seen.ops)
        for op in self.seen.ops:
            if not op.layer or calls[op.layer] > 1 or len(op.outputs) != 1:
                continue
            layer, after = self.modules[op.layer], op.outputs[0].readers
            name: str | None = op.layer
            if len(after) == 1 and after[0].kind == 'norm':
                name = next((n for n, _ in after[0].outputs[0].returned_by
                             if isinstance(self.modules[n], _BatchNorm)
                             and len(self.seen.calls[n]) == 1), None)
            if name is not None and can_be_rounded(self.modules[name], layer):
                yield Joint(name, 'bias', (op.layer, ), 'bias')

    # -- which joints run on integers --------------------------------------

    def _let_die(self) -> None:
        """Leave out joints whose operands or results stay float."""
        while True:
            dying = {}
            dead = {op.gated for op in self.joints if op not in self.live}
            for op in self.live:
                if not all(self._place(root(v)) for v in op.inputs):
                    dying[op] = 'an operand is made and read inside a forward'
                elif not all(self._ends_quantized(v) for v in op.outputs):
                    dying[op] = ''
                elif op.gated and op.gated in dead:
                    dying[op] = 'another call of it stays float'
            if not dying:
                return
            self.bad.update({op: why for op, why in dying.items() if why})
            self.live -= dying.keys()

    def _ends_quantized(self, value: Value) -> bool:
        """Whether all that read a value read it quantized."""
        readers = list(_readers(value))
        return bool(readers) and not value.leaves and all(
            op in self.live or self._quantizes(op)
            or op.kind in ABSORBED and op.kind != 'norm'
            and all(map(self._ends_quantized, op.outputs))
            for op in readers)

    def _quantizes(self, op: Op) -> bool:
        return bool(op.layer) and (
            self.modules[op.layer].input_quantizer is not None)

    # -- which tensors get a quantizer of their own ------------------------

    def _wanted(self) -> dict[Value, str]:
        wanted: dict[Value, list[str]] = {}
        for op in self.seen.ops:
            if op in self.live:
                for value in op.inputs:
                    wanted.setdefault(root(value), []).append(op.kind)
            elif op.kind in self.target.ends_quantized and (
                    self._quantizes(op)
                    and self.modules[op.layer].weight_quantizer is not None):
                end = self._end_of(op)
                if end is None or (not self.target.answers_quantized
                                   if end.leaves else self._read_as_one(end)):
                    continue
                if self._place(end) is None:
                    self.bad[op] = 'its result is read inside a forward'
                else:
                    wanted.setdefault(end, []).append(f'end of {op.kind}')
        return {value: ', '.join(dict.fromkeys(kinds))
                for value, kinds in wanted.items()}

    def _read_as_one(self, value: Value) -> bool:
        """Whether all that read a value read it by one quantizer."""
        readers = list(_readers(value))
        if any(op in self.live for op in readers):
            return True  # it is wanted for them
        return all(map(self._quantizes, readers)) and len(
            self._groups(self._layers_reading(value))) < 2

    def _end_of(self, op: Op) -> Value | None:
        """The result of a layer and of what is absorbed in it."""
        if len(op.outputs) != 1:
            return None
        value = op.outputs[0]
        while len(value.readers) == 1 and not value.leaves and (
                value.readers[0].kind in ABSORBED):
            value = value.readers[0].outputs[0]
        return value

    def _roots(self) -> Iterator[Value]:
        known = set()
        for op in self.seen.ops:
            answers = (value for value in op.outputs if value.leaves)
            for value in map(root, (*op.inputs, *answers)):
                if value not in known:
                    known.add(value)
                    yield value

    # -- where --------------------------------------------------------------

    def _place(self, value: Value) -> tuple[str, str] | None:
        """The module, and its side, where all readers see a value."""
        if value.maker is None:
            return None
        while True:
            found = self._place_of(value)
            moved = value.readers[0] if len(value.readers) == 1 else None
            if found or moved is None or value.leaves or (
                    not _moves(moved) or len(moved.outputs) > 1):
                return found
            value = moved.outputs[0]

    def _place_of(self, value: Value) -> tuple[str, str] | None:
        reads = [op.time for op in _all_readers(value)]
        if not reads and not value.leaves:
            return None
        for name, time in value.returned_by:
            if len(self.seen.calls[name]) == 1 and (
                    time <= min(reads, default=time)):
                return name, 'output'
        for name, time in value.given_to:
            calls = self.seen.calls[name]
            if reads and len(calls) == 1 and time <= min(reads) and (
                    max(reads) <= calls[0][1]) and not isinstance(
                        self.modules[name], QuantizedLayer):
                return name, 'entry'
        return None

    def _gates_reading(self, value: Value) -> list[str]:
        """Activations whose gate is quantized, at their first call."""
        first = {op.gated: op for op in reversed(self.joints) if op.gated}
        return [op.gated for op in _readers(value)
                if op in self.live and first.get(op.gated) is op]

    # -- layers that share --------------------------------------------------

    def _layers_reading(self, value: Value) -> list[str]:
        return list(dict.fromkeys(
            op.layer for op in _readers(value)
            if self._quantizes(op)))

    def _tensors(self, layer: str) -> set[Value]:
        """What a layer reads: more than one, if a head is shared by levels.
        """
        return {root(value) for op in self.seen.ops if op.layer == layer
                for value in op.inputs}

    def _groups(self, layers: list[str]) -> list[list[str]]:
        """Layers that read the same, with input quantizers alike."""
        groups: list[list[str]] = []
        for name in layers:
            if not isinstance(self._quantizer(name), BaseFakeQuantize):
                groups.append([name])
                continue
            for group in groups:
                if self._alike(group[0], name):
                    group.append(name)
                    break
            else:
                groups.append([name])
        return groups

    def _alike(self, one: str, other: str) -> bool:
        a, b = self._quantizer(one), self._quantizer(other)
        # Trained steps are not exchanged for others.
        return (type(a) is type(b) and describe(a) == describe(b)
                and self._tensors(one) == self._tensors(other)
                and a.num_bits == b.num_bits and _trained(a) == _trained(b)
                and (a is b or not a.is_initialized()
                     and not b.is_initialized()))

    def _quantizer(self, layer: str) -> nn.Module:
        return self.modules[layer].input_quantizer

    def _bits(self, layer: str) -> int | None:
        found = self._quantizer(layer)
        return found.num_bits if isinstance(found, BaseFakeQuantize) else None

    def _owner(self, op: Op) -> str:
        """The innermost module that ran an operation."""
        return op.layer or max(
            (name for name, calls in self.seen.calls.items()
             if any(start <= op.time <= end for start, end in calls)),
            key=len, default='') or 'the model'


def root(value: Value) -> Value:
    """The value that another one has the numbers of."""
    while value.maker is not None and _moves(value.maker):
        value = value.maker.inputs[0]
    return value


def _moves(op: Op) -> bool:
    """Whether an operation moves one tensor's values."""
    return op.kind == 'same' and len(op.inputs) == 1


def _readers(value: Value) -> Iterator[Op]:
    """What reads a value's numbers, wherever they were moved to."""
    for op in value.readers:
        if _moves(op):
            for moved in op.outputs:
                yield from _readers(moved)
        else:
            yield op


def _all_readers(value: Value) -> Iterator[Op]:
    yield from value.readers
    for op in value.readers:
        if _moves(op):
            for moved in op.outputs:
                yield from _all_readers(moved)


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
