"""Differences between versions of torch and mmengine, and their mends.

Everything that depends on a version is here. Each part says whose fault it
mends and where it does nothing. Importing :mod:`fpq_plugin`, which the
config's ``custom_imports`` does before a Runner exists, imports this first.
"""

from __future__ import annotations

import codecs
import inspect
import os
import pickle
import re
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.utils import digit_version

RANGES: dict[str, tuple[str, str | None]] = {
    'torch': ('2.1', None),
    'mmengine': ('0.10.7', None),
    # The adapters use what Brevitas does not promise to keep.
    'brevitas': ('0.13.4', '0.14'),
}
"""From which version on, and below which, a package is known to work."""


def unfit(versions: dict[str, str]) -> str | None:
    """Why FPQ cannot work with these versions, and which would do.

    Args:
        versions (dict[str, str]): From package to version.

    Returns:
        str | None: The reason and the mend; None if they fit.
    """
    for name, version in versions.items():
        low, high = RANGES.get(name, ('0', None))
        wanted = f'{name}>={low}' + (f',<{high}' if high else '')
        if digit_version(version) < digit_version(low) or (
                high and digit_version(version) >= digit_version(high)):
            return (f'FPQ does not work with {name} {version}: '
                    f"pip install '{wanted}'")
    # torch <= 2.2 was built for numpy 1: "Numpy is not available".
    if ('torch' in versions and 'numpy' in versions
            and digit_version(versions['torch']) < digit_version('2.3')
            and digit_version(versions['numpy']) >= digit_version('2.0')):
        return (f'torch {versions["torch"]} does not work with numpy '
                f"{versions['numpy']}: pip install 'numpy<2', or torch>=2.3")
    return None


def refuse_unfit(*packages: str) -> None:
    """Stop where the installed versions cannot work.

    Raises:
        ImportError: Naming the versions that do.
    """
    reason = unfit(
        {name: import_module(name).__version__ for name in packages})
    if reason is not None:
        raise ImportError(reason)


refuse_unfit('torch', 'mmengine', 'numpy')

_torch_version = digit_version(torch.__version__)
_WEIGHTS_ONLY_TAKES_NAMES = _torch_version >= digit_version('2.6.0')

# torch.compiler has it since 2.3.
is_compiling = (
    torch.compiler.is_compiling if _torch_version >= digit_version('2.3') else
    import_module('torch._dynamo').is_compiling)

HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')
"""Since torch 2.4; before it SFP breaks a graph that torch.compile traces."""


def onnx_tracer_options() -> dict[str, Any]:
    """Options of ``torch.onnx.export`` that ask for the exporter by tracing.

    The other one, the default since torch 2.9, needs onnxscript and knows no
    operators of ours. torch 2.1 has no such option.
    """
    known = inspect.signature(torch.onnx.export).parameters
    return dict(dynamo=False) if 'dynamo' in known else {}


def onednn_qconv2d() -> Any:
    """oneDNN's int8 convolution: ``qconv2d_pointwise`` until torch 2.6."""
    onednn = torch.ops.onednn
    return getattr(onednn, 'qconv_pointwise', None) or onednn.qconv2d_pointwise


def _types_of_mmengine() -> dict[str, Any]:
    """What mmengine 0.10.7's checkpoints hold besides weights, by name.

    That is its message hub: numpy scalars and arrays, and ``HistoryBuffer``,
    which pickles its own methods through ``builtins.getattr``. In place of
    ``getattr`` stands a function that gives HistoryBuffer's public names and
    nothing else.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

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
    core = np.core if np.__version__.startswith('1.') else np._core
    for name in ('_reconstruct', 'scalar'):
        for package in ('numpy.core', 'numpy._core'):
            allowed[f'{package}.multiarray.{name}'] = getattr(
                core.multiarray, name)
    for kind in ('float16', 'float32', 'float64', 'int8', 'int16', 'int32',
                 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'bool'):
        dtype = type(np.dtype(kind))
        allowed[f'{dtype.__module__}.{dtype.__qualname__}'] = dtype
    return allowed


def allow_mmengine_checkpoints() -> None:
    """Let torch >= 2.6 read mmengine's own checkpoints, and nothing more.

    ``torch.load`` refuses unlisted types there, so that mmengine's test and
    resume fail on its own files. Older versions load anything.
    """
    if _WEIGHTS_ONLY_TAKES_NAMES:
        torch.serialization.add_safe_globals(
            [(value, name) for name, value in _types_of_mmengine().items()])


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
        **_types_of_mmengine()
    }

    # In Python, since the C one's BUILD sets attributes of anything.
    class Unpickler(pickle._Unpickler):

        dispatch = dict(pickle._Unpickler.dispatch)

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
        if _WEIGHTS_ONLY_TAKES_NAMES:
            return _TORCH_LOAD(file, map_location, weights_only=True)
        _refuse_archives(file)
        if hasattr(file, 'seek'):
            file.seek(0)
        return _TORCH_LOAD(
            file, map_location, pickle_module=_restricted_pickle(),
            weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
            KeyError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f'{name!r} is not a checkpoint that can be read '
                         f'safely: {_why(str(error))}') from error


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


_TORCH_LOAD = torch.load


@contextmanager
def _data_only(name: str) -> Iterator[None]:
    """``torch.load``, whoever calls it and how, is :func:`_read_data`."""

    def load(f: Any, map_location: Any = None, *args: Any,
             **options: Any) -> Any:
        return _read_data(f, map_location, name)

    before, torch.load = torch.load, load
    try:
        yield
    finally:
        torch.load = before


def read_checkpoints_as_data() -> None:
    """Let mmengine read all its checkpoints without running code in them.

    Its loaders (``load_from``, resume, ``init_cfg``) call ``torch.load`` with
    its defaults, which run code on torch < 2.6, and read URLs through
    torch.hub, which does so on every version.
    """
    from mmengine.runner import CheckpointLoader

    original = CheckpointLoader.load_checkpoint.__func__

    def load_checkpoint(cls, filename, map_location=None,
                        logger='current') -> Any:
        with _data_only(filename):
            return original(cls, filename, map_location, logger)

    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)


def allow_launch_without_accelerator() -> None:
    """Let ``--launcher pytorch`` train on a machine that has only CPUs.

    mmengine 0.10.7's launcher calls ``torch.cuda.set_device`` whatever the
    backend is, and its DDP wrapper always gets ``device_ids=[LOCAL_RANK]``,
    which torch refuses for CPU modules. Without an accelerator the launcher
    then uses gloo and the wrapper no device ids; with one, nothing changes.
    """
    from mmengine.device import get_device
    from mmengine.dist import utils as dist_utils
    from mmengine.model import MMDistributedDataParallel

    if get_device() != 'cpu':
        return

    def init_gloo(backend: str, init_backend: str = 'torch', **kwargs) -> None:
        torch.distributed.init_process_group('gloo', **kwargs)

    original = MMDistributedDataParallel.__init__

    def init_on_cpu(self, module, *args, **kwargs) -> None:
        original(self, module, *args, **{**kwargs, 'device_ids': None})

    dist_utils._init_dist_pytorch = init_gloo
    MMDistributedDataParallel.__init__ = init_on_cpu


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
    from mmengine.runner import CheckpointLoader

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
