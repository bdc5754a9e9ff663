"""What of mmengine and torch is replaced, and why: all of it, in one place.

:func:`install` is called once, by ``import fpq_plugin``; a second call, or a
reload of the package, leaves each thing replaced once.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from io import StringIO
from pathlib import Path
from typing import Any

import mmengine.runner
import torch
from mmengine.device import get_device
from mmengine.dist import utils as dist_utils
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, checkpoint_hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner
from mmengine.runner import checkpoint as checkpoints
from torch import Tensor, nn

from .files import reading_data_only, types_of_mmengine, write_whole
from .versions import WEIGHTS_ONLY_TAKES_NAMES


def install(
    before_run: Callable[[Any, str], None],
    after_run: Callable[[Any, str], None],
    before_load: Callable[[nn.Module, Mapping[str, Tensor]], None],
) -> None:
    """Put all patches in place.

    Args:
        before_run (Callable): Called with each Runner, of any kind, and the
            method that begins: 'train', 'val' or 'test'.
        after_run (Callable): Called likewise when it has ended, in an error
            or an interrupt too.
        before_load (Callable): Called with each model that one of mmengine's
            loaders is about to fill, and the state.
    """
    _allow_mmengine_checkpoints()
    _read_checkpoints_as_data()
    _launch_without_accelerator()
    _watch_runners(before_run, after_run)
    _watch_loading(before_load)
    _write_whole_checkpoints()
    _remove_after_saving()


def _allow_mmengine_checkpoints() -> None:
    """torch >= 2.6, all mmengine: let torch read mmengine's checkpoints.

    ``torch.load`` refuses unlisted types there, so that mmengine's test and
    resume fail on its own files. Older versions load anything.
    """
    if WEIGHTS_ONLY_TAKES_NAMES:
        torch.serialization.add_safe_globals(
            [(value, name) for name, value in types_of_mmengine().items()])


def _read_checkpoints_as_data() -> None:
    """All versions: mmengine's loaders run no code of a checkpoint.

    They (``load_from``, resume, ``init_cfg``) call ``torch.load`` with its
    defaults, which run code on torch < 2.6, and read URLs through torch.hub,
    which does so on every version. Each is registered anew under its prefix,
    mmengine's own seam for that; one that somebody registers later is theirs.
    """
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        CheckpointLoader.register_scheme(
            prefix, _replacing(loader, _as_data), force=True)


def _as_data(loader: Callable) -> Callable:

    @wraps(loader)
    def load(filename: str, *args: Any, **kwargs: Any) -> Any:
        with reading_data_only(filename):
            return loader(filename, *args, **kwargs)

    return load


def _launch_without_accelerator() -> None:
    """mmengine 0.10.7: ``--launcher pytorch`` on a machine with CPUs only.

    Its launcher calls ``torch.cuda.set_device`` whatever the backend is, and
    its DDP wrapper always gets ``device_ids=[LOCAL_RANK]``, which torch
    refuses for CPU modules. Without an accelerator the launcher then uses
    gloo and the wrapper no device ids; with one, nothing changes.

    A process that ends within milliseconds of a collective, as validation's
    last, may be aborted at its exit: a thread of gloo still holds a tensor
    and waits for the GIL (pytorch/pytorch#179291). It gets that time.
    """
    if get_device() != 'cpu':
        return

    def init_gloo(backend: str, init_backend: str = 'torch', **kwargs) -> None:
        torch.distributed.init_process_group('gloo', **kwargs)
        # Not destroy_process_group(): DDP's reference keeps the threads alive.
        atexit.register(time.sleep, 0.5)

    def on_cpu(init: Callable) -> Callable:

        @wraps(init)
        def init_on_cpu(self, module, *args, **kwargs) -> None:
            init(self, module, *args, **{**kwargs, 'device_ids': None})

        return init_on_cpu

    dist_utils._init_dist_pytorch = _replacing(
        dist_utils._init_dist_pytorch, lambda _: init_gloo)
    MMDistributedDataParallel.__init__ = _replacing(
        MMDistributedDataParallel.__init__, on_cpu)


def _watch_runners(before_run: Callable[[Any, str], None],
                   after_run: Callable[[Any, str], None]) -> None:
    """All versions: no hook is called before a config is used, or at errors.

    A config without our hook calls none of ours, an error or an interrupt
    leaves a training without a call, and what a hook is called for is not
    said.
    """

    def watched(name: str) -> Callable:

        def watch(run: Callable) -> Callable:

            @wraps(run)
            def look_and_run(self: Any, *args: Any, **kwargs: Any) -> Any:
                before_run(self, name)
                try:
                    return run(self, *args, **kwargs)
                finally:
                    after_run(self, name)

            return look_and_run

        return watch

    for kind in (Runner, FlexibleRunner):
        for name in ('train', 'val', 'test'):
            setattr(kind, name, _replacing(getattr(kind, name),
                                           watched(name)))


def _watch_loading(
        before_load: Callable[[nn.Module, Mapping[str, Tensor]], None]
) -> None:
    """All versions: mmengine's loaders only warn of keys that fit nowhere.

    ``load_checkpoint``, ``init_cfg`` and the inferencers of all packages end
    in this function.
    """

    def watched(load: Callable) -> Callable:

        @wraps(load)
        def look_and_load(module: nn.Module, state_dict: Mapping[str, Tensor],
                          *args: Any, **kwargs: Any) -> Any:
            before_load(module, state_dict)
            return load(module, state_dict, *args, **kwargs)

        return look_and_load

    new = _replacing(checkpoints.load_state_dict, watched)
    checkpoints.load_state_dict = new
    mmengine.runner.load_state_dict = new


def _write_whole_checkpoints() -> None:
    """All versions: a killed process leaves no half of a file.

    mmengine writes checkpoints, and ``last_checkpoint``, into the file that
    is to be.
    """

    def whole(put: Callable) -> Callable:

        @wraps(put)
        def put_whole(self: LocalBackend, obj: bytes,
                      filepath: str | Path) -> None:
            if Path(filepath).suffix in ('.pth', '.pt', '.ckpt'):
                write_whole(filepath, lambda file: file.write(obj))
            else:
                put(self, obj, filepath)

        return put_whole

    LocalBackend.put = _replacing(LocalBackend.put, whole)
    # The one file that this module opens is last_checkpoint.
    checkpoint_hook.open = _open_whole


@contextmanager
def _open_whole(path: str, mode: str) -> Iterator[StringIO]:
    text = StringIO()
    yield text
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def _remove_after_saving() -> None:
    """mmengine 0.10.7: CheckpointHook removes the old before it saves the new.

    With ``max_keep_ckpts=1``, and with ``save_best``, a kill or a full disk
    in between leaves none.
    """
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        setattr(CheckpointHook, name, _replacing(
            getattr(CheckpointHook, name), _removing_last))


def _removing_last(save: Callable) -> Callable:

    @wraps(save)
    def save_and_remove(self: CheckpointHook, *args: Any,
                        **kwargs: Any) -> None:
        if not hasattr(self, 'file_backend'):  # val without training
            save(self, *args, **kwargs)
            return
        before = self.file_backend
        self.file_backend = later = _RemovesLater(before)
        try:
            save(self, *args, **kwargs)
        finally:
            self.file_backend = before
        later.remove_all()

    return save_and_remove


class _RemovesLater:
    """A file backend that removes nothing until it is told."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._removals: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if name not in ('remove', 'rmtree'):
            return found
        return lambda path: self._removals.append(partial(found, path))

    def remove_all(self) -> None:
        for remove in self._removals:
            remove()


def _replacing(function: Callable,
               make: Callable[[Callable], Callable]) -> Callable:
    """What ``make`` makes of the original of ``function``."""
    original = getattr(function, '_fpq_original', function)
    new = make(original)
    new._fpq_original = original  # type: ignore[attr-defined]
    return new
