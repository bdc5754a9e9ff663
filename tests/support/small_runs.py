"""Runs of a model of three linear layers: a second each."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import torch
from mmengine import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

_NUMBER = itertools.count()


@MODELS.register_module(force=True)
class Three(BaseModel):
    """From (N, 4) to two classes."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.stem, self.mix = nn.Linear(4, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs, labels=None, mode='tensor'):
        out = self.head(self.mix(self.stem(inputs).relu()).relu())
        if mode == 'loss':
            return dict(loss=F.cross_entropy(out, labels))
        if mode == 'predict':
            return [dict(right=bool(right))
                    for right in out.argmax(1) == labels]
        return out


@METRICS.register_module(force=True)
class Right(BaseMetric):
    """The share of right answers."""

    def process(self, data_batch, data_samples):
        self.results += [sample['right'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(right=sum(results) / len(results))


@DATASETS.register_module(force=True)
class Points(Dataset):
    """120 points with two labels."""

    def __len__(self):
        return 120

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(4, generator=generator), index % 2


def start(folder: Path, model: type[nn.Module] = Three) -> str:
    """A full-precision checkpoint."""
    torch.manual_seed(0)
    path = folder / 'start.pth'
    torch.save(dict(state_dict=model().state_dict()), path)
    return str(path)


def config(folder: Path, fpq: dict | None = None, run: str = 'run',
           **more) -> Config:
    """Five iterations in ``folder/run``; ``fpq`` are the hook's options."""
    loader = dict(
        dataset=dict(type='Points'),
        batch_size=24,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'))
    return Config({
        **dict(
            model=dict(type='Three'),
            default_scope='mmengine',
            work_dir=str(folder / run),
            train_dataloader=loader,
            test_dataloader=copy.deepcopy(loader),
            test_cfg=dict(),
            test_evaluator=dict(type='Right'),
            val_dataloader=copy.deepcopy(loader),
            val_cfg=dict(),
            val_evaluator=dict(type='Right'),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            randomness=dict(seed=0),
            experiment_name=f'small{next(_NUMBER)}',
            default_hooks=dict(fpq=dict(
                type='FPQHook', calibration=dict(num_images=16),
                **(fpq or {})))),
        **more})


def train(cfg: Config) -> Runner:
    """Train; the runner."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner
