"""Runs of well under a second: a net of three layers, numbers as images."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path
from runpy import run_path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import fpq_plugin  # noqa: F401

SECONDS = 90  # two ranks may take
_NUMBER = itertools.count()


@MODELS.register_module()
class ToyNet(BaseModel):
    """From (N, 4) to two classes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 8), nn.Linear(8, 8),
                                  nn.Linear(8, 2))

    def logits(self, x):
        return self.c(self.b(self.a(x).relu()).relu())

    def forward(self, x, y=None, mode='tensor'):
        out = self.logits(x)
        if mode == 'loss':
            return dict(loss=F.cross_entropy(out, y))
        return out if mode == 'tensor' else [
            dict(pred=int(row.argmax())) for row in out]


@DATASETS.register_module()
class Numbers(Dataset):
    """40 inputs with a label."""

    def __init__(self, shape=(4, )):
        self.shape = tuple(shape)
        self.read = []

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.read.append(index)
        generator = torch.Generator().manual_seed(int(index))
        return torch.randn(self.shape, generator=generator), index % 2


class At(Hook):
    """Calls a function with the runner at a point of a run."""

    priority = 'LOW'

    def __init__(self, **functions):
        for name, function in functions.items():
            setattr(self, name,
                    lambda runner, *a, f=function, **k: f(runner))


def register(registry, kind):
    """A class of a test, under its name."""
    registry.register_module(name=kind.__name__, module=kind, force=True)
    return kind.__name__


def float_weights(folder: Path, model: type = ToyNet) -> str:
    """A full-precision checkpoint of a model."""
    torch.manual_seed(0)
    path = folder / f'{model.__name__}.pth'
    if not path.exists():
        torch.save(dict(state_dict=model().state_dict()), path)
    return str(path)


def toy_config(folder: Path, model: type = ToyNet, fpq: dict | None = None,
               name: str = 'run', **more) -> Config:
    """A run of five iterations; ``fpq`` are options of the hook."""
    cfg = dict(
        model=dict(type=register(MODELS, model)),
        load_from=float_weights(folder, model),
        work_dir=str(folder / name),
        train_dataloader=dict(
            dataset=dict(type='Numbers'),
            batch_size=8,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.05, weight_decay=0.1)),
        randomness=dict(seed=0),
        log_level='WARNING',
        experiment_name=f'{folder.name}_{name}_{next(_NUMBER)}',
        default_hooks=dict(
            fpq=dict(type='FPQHook', calibration=dict(num_images=16),
                     **(fpq or {}))))
    return Config({**cfg, **more})


def toy_train(*args, **more) -> Runner:
    """Train as :func:`toy_config` says; the runner."""
    runner = Runner.from_cfg(toy_config(*args, **more))
    runner.train()
    return runner


def on_gloo(**wrapper) -> dict:
    """Config of a run on gloo's ranks, in DDP with these options."""
    return dict(
        launcher='pytorch',
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        model_wrapper_cfg=dict(type='MMDistributedDataParallel',
                               broadcast_buffers=False, **wrapper))


def on_ranks(function, folder: Path, *args) -> list:
    """What ``function(folder, *args)`` returns on each of two gloo ranks.

    A test's module cannot be imported by name in another process.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    where = function.__code__.co_filename, function.__name__
    ranks = mp.spawn(_be_a_rank, (port, *where, folder, args), nprocs=2,
                     join=False)
    end = time.monotonic() + SECONDS
    try:
        while not ranks.join(timeout=5):
            assert time.monotonic() < end, 'the ranks wait for ever'
    finally:
        for process in ranks.processes:
            process.kill()
    return [torch.load(folder / f'rank{rank}.pth', weights_only=False)
            for rank in range(2)]


def _be_a_rank(rank, port, file, name, folder, args):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    result = run_path(file, run_name='rank')[name](folder, *args)
    torch.save(result, folder / f'rank{rank}.pth')
    if dist.is_initialized():
        dist.barrier()
    # Below torch 2.8 the group's end may wait for ever for a thread.
    os._exit(0)
