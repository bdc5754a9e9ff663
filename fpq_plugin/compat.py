"""Differences between versions of torch and mmengine, and their mends.

Each function says whose fault it mends and where it does nothing. They run
when :mod:`fpq_plugin` is imported, which the config's ``custom_imports`` does
before a Runner exists.
"""

from __future__ import annotations

import codecs
import os
import pickle
from collections import Counter, OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.utils import digit_version

_WEIGHTS_ONLY_TAKES_NAMES = digit_version(
    torch.__version__) >= digit_version('2.6.0')


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


def _load_safely(path: str) -> Any:
    """``torch.load`` that runs no code of the file."""
    if _WEIGHTS_ONLY_TAKES_NAMES:
        return torch.load(path, map_location='cpu', weights_only=True)
    # torch < 2.6: weights_only exists, but takes no further types.
    allowed = {
        '_codecs.encode': codecs.encode,
        # MultiStepLR's milestones.
        'collections.Counter': Counter,
        'collections.OrderedDict': OrderedDict,
        'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
        'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        **_types_of_mmengine()
    }

    class Unpickler(pickle.Unpickler):

        def find_class(self, module: str, name: str) -> Any:
            # Protocol 2 has Python 2's module names.
            module = 'builtins' if module == '__builtin__' else module
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'unsupported {module}.{name}')
            return allowed[f'{module}.{name}']

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return torch.load(
        path,
        map_location='cpu',
        weights_only=False,
        pickle_module=SimpleNamespace(
            __name__='safe_pickle', Unpickler=Unpickler, load=load))


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
        return CheckpointLoader.load_checkpoint(path, map_location='cpu')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no file {path!r}')
    try:
        content = _load_safely(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
            KeyError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f'{path!r} is not a checkpoint that can be read '
                         f'safely: {why}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path!r} holds a {type(content).__name__}, not a '
                         'checkpoint')
    return content
