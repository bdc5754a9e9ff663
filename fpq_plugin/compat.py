"""Differences between versions of torch and mmengine, and their mends.

Each function says whose fault it mends and where it does nothing. They run
when :mod:`fpq_plugin` is imported, which the config's ``custom_imports`` does
before a Runner exists.
"""

from __future__ import annotations

import os
import pickle

import torch
from mmengine.utils import digit_version


def allow_mmengine_checkpoints() -> None:
    """Let torch >= 2.6 read mmengine's own checkpoints, and nothing more.

    ``torch.load`` refuses unlisted types there, and mmengine 0.10.7 saves
    its message hub's ``HistoryBuffer`` (which pickles its own methods through
    ``builtins.getattr``) and numpy arrays. They are allowed by name; in place
    of ``getattr`` stands a function that gives HistoryBuffer's public names
    and nothing else. torch < 2.6 does not need it (2.4 breaks on it).
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    import numpy as np
    from mmengine.logging import HistoryBuffer

    def getattr_of_history_buffer(owner: type, name: str):
        if owner is not HistoryBuffer or name.startswith('_'):
            raise pickle.UnpicklingError(
                f'a checkpoint may not read {name!r} of {owner!r}')
        return getattr(owner, name)

    core = np._core if hasattr(np, '_core') else np.core
    multiarray = core.multiarray
    allowed = [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        (getattr_of_history_buffer, 'builtins.getattr'),
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed.append((multiarray._reconstruct, f'{module}._reconstruct'))
        allowed.append((multiarray.scalar, f'{module}.scalar'))
    kinds = ('float16', 'float32', 'float64', 'int8', 'int16', 'int32',
             'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'bool')
    allowed += list({type(np.dtype(kind)) for kind in kinds})
    torch.serialization.add_safe_globals(allowed)


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
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
            KeyError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f'{path!r} is not a checkpoint that can be read '
                         f'safely: {why}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path!r} holds a {type(content).__name__}, not a '
                         'checkpoint')
    return content
