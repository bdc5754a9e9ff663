"""One run of the benchmark, through a config that mim can train as well."""

from __future__ import annotations

import itertools
import json
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import torch
from cells import ANNEALED, METHODS, MODELS, Cell
from mmengine import Config
from mmengine.runner import Runner

import fpq_plugin
from fpq_plugin._compat.files import load_file
from fpq_plugin.openmmlab.teacher import fingerprint
from fpq_plugin.state import bare_state

ROOT = Path(__file__).resolve().parents[2]
BASES = ROOT / 'mm_configs/_base_'
FP_LR = 0.1
_number = itertools.count()


def config_text(cell: Cell, work: Path, epochs: int | None = None) -> str:
    """The cell's config file, without the method's own options."""
    load_from = checkpoint(cell.teacher, work, epochs)
    epochs = epochs or cell.epochs
    bases = ['fashion_mnist_1k.py', MODELS[cell.model].file, 'sgd_40e.py']
    lines = [
        f'randomness = dict(seed={cell.seed})',
        f'param_scheduler = dict(T_max={epochs})',
        f'train_cfg = dict(max_epochs={epochs}, val_interval={epochs})',
    ]
    if cell.method == 'fp':
        lines += [
            "custom_imports = dict(imports=['fpq_plugin'], "
            'allow_failed_imports=False)',
            f'optim_wrapper = dict(optimizer=dict(lr={FP_LR}))'
        ]
    else:
        fragment, _ = METHODS[cell.method]
        bases.append(f'methods/{fragment}.py')
        lines += [
            'default_hooks = dict(fpq=_base_.fpq)',
            f'load_from = {str(load_from)!r}'
        ]
        if fragment == 'lsq_sam':
            lines.append('optim_wrapper = _base_.sam')
        if cell.method in ANNEALED:
            lines += [
                "custom_imports = dict(imports=['fpq_plugin', 'anneal'], "
                'allow_failed_imports=False)',
                "custom_hooks = [dict(type='Anneal', "
                f'what={ANNEALED[cell.method]!r})]'
            ]
    names = ''.join(f'    {str(BASES / base)!r},\n' for base in bases)
    return f'_base_ = [\n{names}]\n' + '\n'.join(lines) + '\n'


def build_config(cell: Cell, work: Path,
                 epochs: int | None = None) -> Config:
    """The cell's config, on a file of its bases in its folder."""
    folder = work / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'bases.py'
    path.write_text(config_text(cell, work, epochs))
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(options(cell))
    cfg.work_dir = str(folder)
    cfg.experiment_name = f'{cell.key}_{next(_number)}'
    return cfg


def options(cell: Cell) -> dict:
    """What ``--cfg-options`` would say: bits and the method's options."""
    setup = MODELS[cell.model]
    if cell.method == 'fp':
        return setup.config
    weight, activation = map(int, re.findall(r'\d', cell.bits))
    hook = {
        'weight.bits': weight,
        'activation.bits': activation,
        **setup.hook,
        **METHODS[cell.method][1]
    }
    return {
        **setup.config,
        **{f'default_hooks.fpq.{k}': v
           for k, v in hook.items()}
    }


def checkpoint(cell: Cell, work: Path, epochs: int | None = None) -> Path:
    """The cell's last checkpoint."""
    return work / cell.key / f'epoch_{epochs or cell.epochs}.pth'


def train(cell: Cell, work: Path, epochs: int | None = None,
          channels_last: bool = False) -> dict:
    """Train and test ``cell``; its record.

    Args:
        cell (Cell): The run.
        work (Path): Folder of all work directories; the teacher's is there.
        epochs (int, optional): Epochs of the teacher, and again of the
            student. Defaults to None: the cell's.
        channels_last (bool): Whether the model is in that memory format.
            Defaults to False.

    Returns:
        dict: Top-1 (%) on the test set after the last epoch, the means of
        the losses over the last epoch, the process's seconds of CPU, and
        what made them.
    """
    cfg = build_config(cell, work, epochs)
    epochs = epochs or cell.epochs
    cfg.default_hooks.logger.interval = 20
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=epochs, save_optimizer=False)
    cfg.dump(Path(cfg.work_dir) / 'config.py')
    start = time.process_time()
    runner = Runner.from_cfg(cfg)
    if channels_last:
        runner.model.to(memory_format=torch.channels_last)
    runner.train()
    scalars = runner.message_hub.log_scalars
    last = len(runner.train_dataloader)

    def mean(name: str) -> float | None:
        if name not in scalars:
            return None
        return round(float(scalars[name].mean(last)), 5)

    return dict(
        cell=str(cell),
        top1=float(scalars['val/accuracy/top1'].current()),
        loss=mean('train/loss'),
        loss_csd=mean('train/loss_csd'),
        cpu_seconds=round(time.process_time() - start, 1),
        weights=weights_mark(checkpoint(cell, work, epochs)),
        **made_by(cell, epochs, channels_last))


def made_by(cell: Cell, epochs: int | None, channels_last: bool) -> dict:
    """What made a record, for one of a failure too."""
    return dict(
        options=options(cell),
        epochs=epochs or cell.epochs,
        channels_last=channels_last,
        commit=_commit(),
        version=fpq_plugin.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=_device())


def weights_mark(path: Path) -> str:
    """Hash of the weights in a checkpoint."""
    return fingerprint(bare_state(load_file(str(path))))


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'


def _commit() -> str:
    if shutil.which('git') is None:
        return ''
    run = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'],
                         capture_output=True, text=True)
    return run.stdout.strip()


def write(record: dict, path: Path) -> None:
    """Write a record whole or not at all."""
    part = path.with_suffix('.part')
    part.write_text(json.dumps(record, indent=1) + '\n')
    part.rename(path)
