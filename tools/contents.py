"""The contents of the code in docs/extending.md, from the docstrings.

    python tools/contents.py

rewrites what is between the two markers there. A package has a table: its
modules in alphabetical order, each with the first line of its docstring.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/extending.md'
PACKAGES = ('fpq_plugin', 'brevitas_adapters')
START, END = '<!-- contents -->', '<!-- end of contents -->'


def first_line(path: Path) -> str:
    """The first line of a module's docstring.

    Raises:
        ValueError: If it has none.
    """
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise ValueError(f'{path.relative_to(ROOT)} has no docstring')
    # ``code`` and :class:`Name` of reStructuredText as Markdown's code.
    line = re.sub(r':\w+:`(.*?)`', r'`\1`', text.splitlines()[0])
    return line.replace('``', '`').replace('|', r'\|')


def contents() -> str:
    """The tables of all packages."""
    folders = [path.parent for package in PACKAGES
               for path in sorted((ROOT / package).rglob('__init__.py'))]
    return '\n'.join(_table(folder) for folder in folders)


def _table(folder: Path) -> str:
    name = '.'.join(folder.relative_to(ROOT).parts)
    lines = [f'**`{name}`**: {first_line(folder / "__init__.py")}', '',
             '| module | is |', '|---|---|']
    lines += [f'| `{path.stem}` | {first_line(path)} |'
              for path in sorted(folder.glob('*.py'))
              if path.name != '__init__.py']
    if len(lines) == 4:
        del lines[1:]
    return '\n'.join(lines) + '\n'


def written() -> str:
    """The page as it should be."""
    page = PAGE.read_text()
    before, rest = page.split(START)
    after = rest.split(END)[1]
    return f'{before}{START}\n\n{contents()}\n{END}{after}'


def main() -> None:
    text = written()
    changed = text != PAGE.read_text()
    PAGE.write_text(text)
    print(f'{PAGE.relative_to(ROOT)}: '
          + ('written' if changed else 'up to date'))


if __name__ == '__main__':
    sys.exit(main())
