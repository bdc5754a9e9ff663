"""What of mmengine and torch is replaced, and why: all of it, in one place.

:func:`install` is called once, by ``import fpq_plugin``; a second call, or a
reload of the package, leaves each thing replaced once.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import IO, Any

import mmengine.runner
import torch
from mmengine.device import get_device
from mmengine.dist import utils as dist_utils
from mmengine.hooks import CheckpointHook, checkpoint_hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner import checkpoint as checkpoint_module
from mmengine.runner import runner as runner_module

from .safe_loading import reading_data_only, types_of_mmengine
from .versions import WEIGHTS_ONLY_TAKES_NAMES
from .whole_files import whole_file


def install(before_run: Callable[[Runner], None],
            after_train: Callable[[Runner], None]) -> None:
    """Put all patches in place.

    Args:
        before_run (Callable): Called with each Runner that is about to
            train, validate or test.
        after_train (Callable): Called with each Runner whose training has
            ended, in an error or an interrupt too.
    """
    _allow_mmengine_checkpoints()
    _read_checkpoints_as_data()
    _write_checkpoints_whole()
    _remove_after_saving()
    _launch_without_accelerator()
    _watch_runners(before_run, after_train)


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


def _write_checkpoints_whole() -> None:
    """mmengine 0.10.7: no half-written checkpoint under its final name.

    It writes checkpoints and ``last_checkpoint`` straight under their names,
    some of them over a good one, so that a kill or a full disk leaves a
    damaged file there. Other file backends write as they do.
    """
    for module in (mmengine.runner, checkpoint_module, runner_module):
        module.save_checkpoint = _replacing(module.save_checkpoint, _whole)
    # The one file that this module opens is last_checkpoint.
    checkpoint_hook.open = _open_whole


_WAY_OUT = ('What was saved before is whole: mend that, and go on with '
            '--resume.')


def _whole(save: Callable) -> Callable:

    @wraps(save)
    def save_whole(checkpoint: dict, filename: str,
                   file_client_args: dict | None = None,
                   backend_args: dict | None = None) -> None:
        if file_client_args or backend_args or '://' in filename:
            save(checkpoint, filename, file_client_args, backend_args)
            return
        with whole_file(filename, _WAY_OUT) as part:
            save(checkpoint, part)

    return save_whole


@contextmanager
def _open_whole(path: str, mode: str) -> Iterator[IO]:
    with whole_file(path, _WAY_OUT) as part, open(part, mode) as file:
        yield file


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


def _watch_runners(before_run: Callable[[Runner], None],
                   after_train: Callable[[Runner], None]) -> None:
    """All versions: no hook is called before a config is used, or at errors.

    A config without our hook calls none of ours, and an error or an interrupt
    leaves a training without a call.
    """

    def watched(run: Callable) -> Callable:

        @wraps(run)
        def look_and_run(self: Runner, *args: Any, **kwargs: Any) -> Any:
            before_run(self)
            try:
                return run(self, *args, **kwargs)
            finally:
                after_train(self)

        return look_and_run

    for name in ('train', 'val', 'test'):
        setattr(Runner, name, _replacing(getattr(Runner, name), watched))


def _replacing(function: Callable,
               make: Callable[[Callable], Callable]) -> Callable:
    """What ``make`` makes of the original of ``function``."""
    original = getattr(function, '_fpq_original', function)
    new = make(original)
    new._fpq_original = original  # type: ignore[attr-defined]
    return new
