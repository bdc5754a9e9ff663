"""Counts that say how the code is divided: modules, short files, arrows.

    python tools/structure.py [CHECKOUT]

An arrow is a module that imports another of its package, at the top or
inside a function, but not for type checkers alone. ``__init__`` and
``__main__`` files are no modules; an import of a package's name is an arrow
to its ``__init__``.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGES = ('fpq_plugin', 'brevitas_adapters')
SHORT = 60


def arrows(folder: Path) -> dict[str, set[str]]:
    """From each module of a package to those that it imports.

    Args:
        folder (Path): The package's folder.

    Returns:
        dict[str, set[str]]: By dotted names inside the package, as
        'layers.routing' and 'layers.__init__'.
    """
    trees = {
        '.'.join(path.relative_to(folder).with_suffix('').parts):
        ast.parse(path.read_text())
        for path in sorted(folder.rglob('*.py'))
    }
    return {name: _targets(name, tree, set(trees))
            for name, tree in trees.items()}


def _targets(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    for_types = {
        id(node)
        for block in ast.walk(tree) if isinstance(block, ast.If)
        and getattr(block.test, 'id', '') == 'TYPE_CHECKING'
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if (not isinstance(node, ast.ImportFrom) or node.level == 0
                or id(node) in for_types):
            continue
        above = name.split('.')[:-1]
        above = above[:len(above) - node.level + 1]
        target = '.'.join(above + (node.module or '').split('.')).strip('.')
        for alias in node.names:
            inner = f'{target}.{alias.name}'.strip('.')
            found.add(inner if inner in known else
                      target if target in known else
                      f'{target}.__init__'.strip('.'))
    return found


def main(root: Path) -> None:
    """Print the counts of a checkout."""
    files = [path for package in PACKAGES
             for path in (root / package).rglob('*.py')]
    modules = [path for path in files if not path.name.startswith('__')]
    short = [path for path in files
             if len(path.read_text().splitlines()) < SHORT]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    total = sum(len(targets) for package in PACKAGES
                for targets in arrows(root / package).values())
    at_root = list((root / PACKAGES[0]).glob('[!_]*.py'))
    print(f'{len(files)} files, {lines} lines; {len(modules)} modules, '
          f'{len(at_root)} of them at the root of {PACKAGES[0]}; '
          f'{len(short)} files under {SHORT} lines; {total} import arrows')


if __name__ == '__main__':
    main(Path(sys.argv[1]) if sys.argv[1:] else
         Path(__file__).resolve().parents[1])
