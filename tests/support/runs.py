"""Whole runs on scikit-learn's digits, in this process or through mim."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine import Config
from mmengine.runner import Runner
from sklearn.datasets import load_digits

from fpq_plugin._compat.files import load_file

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'mm_configs'
_NUMBER = itertools.count()


def make_digits(folder: Path) -> None:
    """Write the digits (8 x 8, 1,400 + 397) as the files of an MNIST set."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    labels = labels.astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))
    folder.mkdir(parents=True)
    for name, part in (('train', order[:1400]), ('t10k', order[1400:])):
        for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
            array = array[part]
            header = struct.pack('>HBB', 0, 8, array.ndim)
            header += struct.pack(f'>{array.ndim}I', *array.shape)
            (folder / f'{name}-{kind}-ubyte').write_bytes(
                header + array.tobytes())


def options(**more) -> dict:
    """Overrides that make a Fashion-MNIST config a digits run of seconds."""
    pack = [dict(type='PackInputs')]
    return {
        'train_dataloader.dataset.pipeline': pack,
        'train_dataloader.batch_size': 100,
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.head.in_channels': 32,
        'default_hooks.logger.interval': 5,
        **more
    }


def config(name: str, work_dir: Path, **more) -> Config:
    """A config of ``mm_configs``, or a path, as a digits run."""
    path = Path(name) if Path(name).is_absolute() else CONFIGS / name
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(options(**more))
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{work_dir.name}_{next(_NUMBER)}'
    return cfg


def train(cfg: Config) -> Runner:
    """Train in this process; the runner, after training."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def log_of(work_dir: Path) -> str:
    """The text of all logs in a work directory."""
    return '\n'.join(p.read_text() for p in sorted(work_dir.glob('*/*.log')))


def scalars_of(work_dir: Path, key: str) -> list[float]:
    """A logged scalar's values over the last run in a work directory."""
    import json
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    rows = (json.loads(line) for line in files[-1].read_text().splitlines())
    return [row[key] for row in rows if key in row]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint that mmengine wrote."""
    return load_file(str(path))['state_dict']


def mim_command(*args: str) -> list[str]:
    return [sys.executable, '-m', 'mim', *map(str, args)]


def write_config(path: Path, name: str, **more) -> Path:
    """A user's config file on a config of ours, as a digits run."""
    tree: dict = {}
    for key, value in options(**more).items():
        *parents, leaf = key.split('.')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    lines = [f'_base_ = [{str(CONFIGS / name)!r}]']
    lines += [f'{key} = {value!r}' for key, value in tree.items()]
    path.write_text('\n'.join(lines) + '\n')
    return path


def mim(*args: str, cwd: Path, **env: str) -> str:
    """Run mim to its end; its output.

    What hangs is ended with all its processes, which hold the pipe.
    """
    process = subprocess.Popen(
        mim_command(*args),
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True)
    try:
        output, _ = process.communicate(timeout=400)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output[-5000:]
    return output
