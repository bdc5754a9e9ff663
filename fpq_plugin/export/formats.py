"""What a trained model can be exported to: the file's ending says.

A format is a kind of file, and the function that writes it. The command
``fpq export`` and the hook's option ``export`` both find it by the ending of
the file that they are given. A new one is a module that registers itself,
without importing what its users may not have installed, and its import in
``fpq_plugin/export/__init__.py``::

    register_format(FileFormat(
        name='Mine', endings=('.mine', ), packages=('mine', ), extra='mine',
        check=check_mine, write=export_mine))
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from ..targets import target_of
from .report import ExportReport


@dataclass(frozen=True)
class OpenedFile:
    """A file that an engine has opened.

    Attributes:
        run (Callable): From inputs (N, ...) to the answers, as the model
            returned them.
        engine (str): The engine, for messages.
        batch_size (int, optional): The only N that it takes. Defaults to
            None, any.
    """

    run: Callable[[Tensor], Any]
    engine: str
    batch_size: int | None = None


@dataclass(frozen=True)
class FileFormat:
    """A kind of file.

    Attributes:
        name (str): What it is called.
        endings (tuple[str, ...]): Endings of its files, each with its dot.
        packages (tuple[str, ...]): What :attr:`check` and :attr:`write`
            import.
        extra (str): The extra of ``fpq-openmmlab`` that installs them.
        check (Callable[..., Any]): Takes a model in eval
            mode and an input (N, ...), and raises ValueError if the model
            cannot be exported. A run calls it before it trains.
        write (Callable[..., ExportReport]): Takes what
            :func:`.onnx_file.export_onnx` takes, in its order up to
            ``source``, and options of the format's own by keyword. It
            compares before it writes.
        takes_target (bool): Whether both take the name of an engine, as
            ``target``. Defaults to False.
        engine (str, optional): The only engine that takes the files. Defaults
            to None, there are several.
        runs_in (tuple[str, ...]): Engines that run the files here. Defaults
            to none.
        open_in (Callable[..., OpenedFile], optional): Takes a path and one of
            them, or None for the one that the file is for, and opens it.
            Defaults to None: nothing here runs such files.
    """

    name: str
    endings: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    check: Callable[..., Any]
    write: Callable[..., ExportReport]
    takes_target: bool = False
    engine: str | None = None
    runs_in: tuple[str, ...] = ()
    open_in: Callable[..., OpenedFile] | None = None

    def target_for(self, trained_for: str | None) -> str | None:
        """The engine that a file is for, where none is named.

        Args:
            trained_for (str, optional): What the model was trained for.

        Returns:
            str | None: That, if it takes such files, else :attr:`engine`.
        """
        if trained_for is None or not set(self.endings) & set(
                target_of(trained_for).endings):
            return self.engine
        return trained_for

    def open(self, path: str | os.PathLike,
             engine: str | None = None) -> OpenedFile:
        """Open a file of this format, to be run here.

        Args:
            path (str | os.PathLike): The file.
            engine (str, optional): One of :attr:`runs_in`. Defaults to None:
                the one that the file is for.

        Returns:
            OpenedFile: What runs it.

        Raises:
            ValueError: If no engine here, or another one, runs such files.
            ImportError: If a package is missing.
            FileNotFoundError: If there is no such file.
        """
        name = os.fspath(path)
        if not Path(path).is_file():
            raise FileNotFoundError(f'no file {name!r}')
        if self.open_in is None or engine not in (None, *self.runs_in):
            raise ValueError(
                f'engine: {name!r} is run by '
                f'{" or ".join(map(repr, self.runs_in)) or "nothing here"}'
                + (f', not by {engine!r}' if engine else ''))
        self.require_packages()
        return self.open_in(path, engine)

    def require_packages(self) -> None:
        """Refuse to go on without the format's packages.

        Raises:
            ImportError: Naming those that are missing, and the extra.
        """
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise ImportError(
                f'{self.name} needs {", ".join(missing)}: pip install '
                f"'fpq-openmmlab[{self.extra}]'")


_FORMATS: dict[str, FileFormat] = {}


def register_format(file_format: FileFormat) -> FileFormat:
    """Let files of the format's endings be written by it.

    Args:
        file_format (FileFormat): The format.

    Returns:
        FileFormat: The same.

    Raises:
        ValueError: If an ending has a format already.
    """
    for ending in file_format.endings:
        if ending in _FORMATS:
            raise ValueError(f'{ending} is the ending of '
                             f'{_FORMATS[ending].name} already')
    _FORMATS.update((ending, file_format) for ending in file_format.endings)
    return file_format


def known_endings() -> str:
    """All endings, for a message: '.onnx or .pte'."""
    return ' or '.join(sorted(_FORMATS))


def known_engines() -> list[str]:
    """All engines that run files here."""
    return sorted({name for each in _FORMATS.values()
                   for name in each.runs_in})


def format_of(path: str | os.PathLike) -> FileFormat:
    """The format that a file is written in.

    Args:
        path (str | os.PathLike): The file.

    Returns:
        FileFormat: That of its ending.

    Raises:
        ValueError: If no format has the ending; the message names those
            there are.
    """
    ending = Path(path).suffix
    if ending not in _FORMATS:
        raise ValueError(f'the file must end in {known_endings()}, got '
                         f'{os.fspath(path)!r}')
    return _FORMATS[ending]
