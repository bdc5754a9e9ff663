"""What a config's text assigns, read as data: nothing of it is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any


def assigned(text: str, name: str) -> list[Any] | None:
    """What the files of a config assign to a variable, in their order.

    Args:
        text (str): MMEngine's ``Config.text``: bases first, each file after a
            line with its path.
        name (str): A variable of the top level.

    Returns:
        list | None: The values; None if one of them, or a file, is more than
        plain data.
    """
    values = []
    try:
        for tree in _files(text):
            for node in tree.body:
                if _reads_base_lazily(node):
                    return None
                if isinstance(node, ast.Assign) and any(
                        isinstance(target, ast.Name) and target.id == name
                        for target in node.targets):
                    values.append(_literal(node.value))
    except (SyntaxError, ValueError):
        return None
    return values


def merged(values: list[Any]) -> Iterator[Any]:
    """Each value merged over those before, as MMEngine merges bases."""
    last: Any = {}
    for value in values:
        last = _over(last, value)
        yield last


def _files(text: str) -> Iterator[ast.Module]:
    """The syntax trees of the files in a config's text."""
    for part in re.split(r'(?m)^[^#\'"=()\n]+\.py$', text):
        yield ast.parse(part)


def _reads_base_lazily(node: ast.stmt) -> bool:
    """Whether it is new-style ``with read_base():``, whose text is absent."""
    return isinstance(node, ast.With) and 'read_base' in ast.dump(node)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if (not isinstance(node.func, ast.Name) or node.func.id != 'dict'
                or node.args or any(k.arg is None for k in node.keywords)):
            raise ValueError('not plain data')
        return {str(k.arg): _literal(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError('not plain data')
        return {_literal(key): _literal(value)  # type: ignore[arg-type]
                for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)


def _over(base: Any, value: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(value, Mapping):
        return value
    rest = {k: v for k, v in value.items() if k != '_delete_'}
    if value.get('_delete_'):
        return rest
    return {**base, **{k: _over(base.get(k), v) for k, v in rest.items()}}
