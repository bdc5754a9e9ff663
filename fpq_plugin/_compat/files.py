"""Files: checkpoints are read as data alone, and all is written whole.

No code in a checkpoint runs, on any version of torch: ``torch.load`` with
``weights_only`` does so since 2.6, once it knows the few types that mmengine
writes. Older versions take no further types; there a restricted pickle stands
in. ``torch.load`` itself is changed only while one of mmengine's loaders runs
(:mod:`fpq_plugin._compat.patches`).
"""

from __future__ import annotations

import codecs
import errno
import os
import pickle
import re
import stat
import struct
import tarfile
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from uuid import uuid4

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from .versions import WEIGHTS_ONLY_TAKES_NAMES

_TORCH_LOAD = torch.load


def types_of_mmengine() -> dict[str, Any]:
    """What mmengine 0.10.7's checkpoints hold besides weights, by name.

    That is its message hub: numpy scalars and arrays, and ``HistoryBuffer``,
    which pickles its own methods through ``builtins.getattr``. In place of
    ``getattr`` stands a function that gives HistoryBuffer's public names and
    nothing else.
    """
    def getattr_of_history_buffer(owner: type, name: str):
        if owner is not HistoryBuffer or name.startswith('_'):
            raise pickle.UnpicklingError(
                f'a checkpoint may not read {name!r} of {owner!r}')
        return getattr(owner, name)

    allowed = {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': getattr_of_history_buffer,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
    }
    # numpy 1.26 has both, but its _core is a stub.
    core = vars(np)['core' if np.__version__.startswith('1.') else '_core']
    for name in ('_reconstruct', 'scalar'):
        for package in ('numpy.core', 'numpy._core'):
            allowed[f'{package}.multiarray.{name}'] = getattr(
                core.multiarray, name)
    for kind in ('float16', 'float32', 'float64', 'int8', 'int16', 'int32',
                 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'bool'):
        dtype = type(np.dtype(kind))
        allowed[f'{dtype.__module__}.{dtype.__qualname__}'] = dtype
    return allowed


def _restricted_pickle() -> Any:
    """A pickle module that makes data only, for torch < 2.6.

    ``weights_only`` exists there, but takes no further types, and lets
    TorchScript and tar archives through, which hold code or paths.
    """
    allowed = {
        '_codecs.encode': codecs.encode,
        'builtins.bytearray': bytearray,
        'builtins.complex': complex,
        'builtins.set': set,
        # MultiStepLR's milestones.
        'collections.Counter': Counter,
        'collections.OrderedDict': OrderedDict,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        **{
            f'torch._utils.{name}': getattr(torch._utils, name)
            for name in ('_rebuild_tensor', '_rebuild_tensor_v2',
                         '_rebuild_parameter', '_rebuild_sparse_tensor')
        },
        **{str(value): value for value in vars(torch).values()
           if isinstance(value, torch.dtype)},
        **types_of_mmengine()
    }

    # In Python, since the C one's BUILD sets attributes of anything.
    base: Any = vars(pickle)['_Unpickler']

    class Unpickler(base):

        dispatch = dict(base.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            # Protocol 2 has Python 2's module names.
            module = 'builtins' if module == '__builtin__' else module
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
            return allowed[f'{module}.{name}']

        def load_build(self) -> None:
            if callable(self.stack[-2]):
                raise pickle.UnpicklingError(
                    'a checkpoint may not set attributes of '
                    f'{self.stack[-2]!r}')
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(
        __name__='restricted_pickle', Unpickler=Unpickler, load=load)


def _refuse_archives(file: Any) -> None:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith('/constants.pkl')
                   for name in archive.namelist()):
                raise pickle.UnpicklingError('it is a TorchScript archive')
    elif tarfile.is_tarfile(file):
        raise pickle.UnpicklingError('it is a tar archive')


def _read_data(file: Any, map_location: Any, name: str) -> Any:
    """``torch.load`` that runs no code of the file.

    Args:
        file (str | IO): What to read.
        map_location: As in ``torch.load``.
        name (str): What to call the file in messages.

    Raises:
        ValueError: If it is not a checkpoint, or holds more than data.
    """
    try:
        if WEIGHTS_ONLY_TAKES_NAMES:
            return _TORCH_LOAD(file, map_location, weights_only=True)
        _refuse_archives(file)
        if hasattr(file, 'seek'):
            file.seek(0)
        return _TORCH_LOAD(
            file, map_location, pickle_module=_restricted_pickle(),
            weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
            KeyError, AttributeError, IndexError, TypeError, OSError,
            struct.error, zipfile.BadZipFile) as error:
        # torch seeks to before the beginning of half a file.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f'{name!r} is not a checkpoint that can be read safely: '
            f'{_why(str(error))}{other_checkpoint(name)}') from error


def other_checkpoint(path: str) -> str:
    """A sentence on the last whole checkpoint of the same work directory.

    Args:
        path (str): A file that cannot be read; others are looked for where
            MMEngine's ``last_checkpoint`` lies beside it.

    Returns:
        str: It begins with a full stop; empty if there is none.
    """
    folder = Path(path).absolute().parent
    if ('://' in path or Path(path).name.startswith('fpq_teacher')
            or not (folder / 'last_checkpoint').is_file()):
        return ''
    others = [file for file in folder.glob('*.pth')
              if file != Path(path).absolute()]
    for file in sorted(others, key=lambda f: -f.stat().st_mtime):
        try:
            content = _read_data(str(file), 'cpu', file.name + '://')
        except ValueError:
            continue
        if isinstance(content, dict) and 'optimizer' in content:
            return (f'. The last one there that is whole is {str(file)!r}: '
                    f'go on from it by --resume {file}')
    return ('. There is no whole one beside it: start anew from the '
            'full-precision checkpoint')


def _why(message: str) -> str:
    """What an error of ``torch.load`` says of the file, and the mend."""
    found = re.search(
        r'GLOBAL:? (?P<type>\S+)|(?P<archive>TorchScript|\btar)\b|'
        r'may not (?P<act>.*)', message)
    if found is None:
        return 'it is damaged, or no file that torch.save wrote'
    if found['archive']:
        what = f'it is a {found["archive"]} archive'
    elif found['type']:
        what = f'it holds {found["type"]}'
    else:
        what = f'it tries to {found["act"]}'
    return (f'{what}, which is not data and could run code. If you trust the '
            'file, save its weights alone: torch.save(dict(state_dict=torch.'
            "load(path, weights_only=False)['state_dict']), new_path)")


@contextmanager
def reading_data_only(name: str) -> Iterator[None]:
    """``torch.load``, whoever calls it and how, runs no code of the file."""

    def load(f: Any, map_location: Any = None, *args: Any,
             **options: Any) -> Any:
        return _read_data(f, map_location, name)

    before, torch.load = torch.load, load
    try:
        yield
    finally:
        torch.load = before


def load_file(path: str) -> dict:
    """Read a checkpoint without running code in it.

    Args:
        path (str): File, URL or any name that mmengine's loader knows.

    Returns:
        dict: The checkpoint, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or holds more than weights.
    """
    if '://' in path:
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    elif not os.path.isfile(path):
        raise FileNotFoundError(f'no file {path!r}')
    else:
        content = _read_data(path, 'cpu', path)
    if not isinstance(content, dict):
        raise ValueError(f'{path!r} holds a {type(content).__name__}, not a '
                         'checkpoint')
    return content


# -- files that are written whole or not at all ---------------------------

def write_whole(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that is there whole, or not at all, whatever happens.

    Two processes that write the same file do not disturb each other; the
    last one's stays. A link is followed; its folder is made if need be.

    Args:
        path (str | Path): The file.
        write (Callable): Writes the content into an open file.

    Raises:
        OSError: If it cannot be written; the message names the file.
    """
    target = Path(path).resolve()
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        with open(target, 'wb') as file:  # a device or a pipe
            write(file)
        return
    part = target.with_name(f'.{target.name}.{uuid4().hex[:12]}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, 'xb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f'{str(path)!r} was not written: {error.strerror or error}. What '
            'was saved before is whole: mend that, and go on') from error
    finally:
        with suppress(OSError):
            part.unlink()


# A part that nobody has written to for so many seconds is a killed process's.
FORSAKEN_S = 3600


def remove_parts(folder: str | Path) -> None:
    """Remove what killed processes left of files that they were writing.

    Args:
        folder (str | Path): Where they wrote.
    """
    for part in Path(folder).glob(f'.*.{"[0-9a-f]" * 12}.part'):
        # Another process may be as quick.
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > FORSAKEN_S:
                part.unlink()
