"""What a model returns: one tensor, or tensors in tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

INPUT, OUTPUT = 'input', 'output'
"""A file's input, and its only output; names of nameless ones begin so."""
SEVERAL = 'fpq.outputs'
"""Where a file of several outputs says how the model returned them."""


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a model's answer, in order.

    Args:
        value (Any): A tensor, or tuples, lists and dicts of such, or of None.

    Returns:
        list[Tensor]: They.

    Raises:
        ValueError: If there is anything else, or no tensor.
    """
    return list(named_tensors(value).values())


def named_tensors(value: Any) -> dict[str, Tensor]:
    """The same with the name that each has in a file.

    A key of a dict, or a field of a named tuple, is a name; places in tuples
    and lists are numbers: ``dict(boxes=[a, b])`` has ``boxes_0`` and
    ``boxes_1``, ``(a, b)`` has ``output_0`` and ``output_1``.
    """
    found: dict[str, Tensor] = {}

    def walk(value: Any, path: list[str]) -> None:
        if isinstance(value, Tensor):
            name = '_'.join(path)
            if not path or not name.isidentifier():
                name = '_'.join([OUTPUT, *path])
            while name in found or name == INPUT:
                name += '_'
            found[name] = value
        elif value is not None:
            for key, item in _items(value):
                walk(item, [*path, str(key)])

    walk(value, [])
    if not found:
        raise ValueError('not exported: the model returns no tensor')
    return found


def structure_of(value: Any) -> Any:
    """How tensors are held, as data that JSON can write.

    Args:
        value (Any): As for :func:`tensors_of`.

    Returns:
        Any: The number of a tensor in place of it, and in place of what holds
        some ``{'tuple': [...]}``, ``{'list': [...]}`` or ``{'dict': {...}}``.
    """
    numbers = iter(range(len(tensors_of(value))))

    def walk(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Tensor):
            return next(numbers)
        if isinstance(value, Mapping):
            return {'dict': {str(k): walk(v) for k, v in value.items()}}
        kind = 'tuple' if isinstance(value, tuple) else 'list'
        return {kind: [walk(item) for item in value]}

    return walk(value)


def arranged(tensors: Sequence[Tensor], structure: Any) -> Any:
    """The tensors held as a model's are, see :func:`structure_of`."""
    if structure is None:
        return None
    if isinstance(structure, int):
        return tensors[structure]
    (kind, items), = structure.items()
    if kind == 'dict':
        return {key: arranged(tensors, item) for key, item in items.items()}
    held = [arranged(tensors, item) for item in items]
    return tuple(held) if kind == 'tuple' else held


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(zip(getattr(value, '_fields', range(len(value))), value))
    raise ValueError('not exported: a model may return tensors, in tuples, '
                     'lists and dicts, and this one returns a '
                     f'{type(value).__name__}')


class FlatModel(nn.Module):
    """A model that returns its tensors in one tuple.

    Args:
        model (nn.Module): The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # torch.onnx.export puts the mode of all back to that of the outermost.
        self.training = model.training

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The tensors, each an object of its own: an output has one name."""
        seen: set[int] = {id(x)}
        flat = []
        for tensor in tensors_of(self.model(x)):
            flat.append(tensor.clone() if id(tensor) in seen else tensor)
            seen.add(id(tensor))
        return tuple(flat)
