"""The blocks of the manual's pages, and runs of the configs among them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from runs import CONFIGS, ROOT, options, train

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
HOOK = "dict(type='FPQHook', bits='w4a4')"
_NUMBER = itertools.count()


class Block(NamedTuple):
    """One fenced block: what stands behind its fence, and the text."""

    page: str
    line: int
    kind: str
    text: str


def blocks(page: Path, kind: str = '') -> list[Block]:
    """The page's blocks of one kind, or all."""
    text = page.read_text()
    found = re.finditer(r'^```(.*)\n([^\0]*?)^```$', text, re.MULTILINE)
    made = [
        Block(page.name, text[:m.start()].count('\n') + 1, m[1], m[2])
        for m in found
    ]
    return [block for block in made if kind in ('', block.kind)]


def every(kind: str) -> list[Block]:
    """The blocks of one kind of all pages."""
    return [block for page in PAGES for block in blocks(page, kind)]


def train_two_iterations(block: Block, folder: Path) -> None:
    """Train what a config block says, on digits or on pictures of noise.

    Its full-precision checkpoint is one of random weights. A fragment is a
    part of a config that inherits Fashion-MNIST's full-precision one; the
    hook is put in where the fragment does not do so.
    """
    text = block.text
    if block.kind == 'python fragment':
        base = CONFIGS / 'fashion_mnist/resnet_fp.py'
        if 'default_hooks' not in text:
            text += f'default_hooks = dict(fpq={HOOK})\n'
        text = f'_base_ = [{str(base)!r}]\n' + text
    text = text.replace("'mm_configs/", f"'{CONFIGS}/")
    path = folder / 'block.py'
    path.write_text(text)
    cfg = Config.fromfile(str(path))
    cfg.work_dir = str(folder / 'run')
    cfg.experiment_name = f'manual_{next(_NUMBER)}'
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if cfg.train_dataloader.dataset.type == 'FashionMNIST':
        cfg.merge_from_dict(options(**{
            'train_dataloader.dataset.indices': 256,
            'train_dataloader.batch_size': 128}))
    else:
        cfg.merge_from_dict({
            'train_dataloader.batch_size': 2,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'default_hooks.fpq.calibration.num_images': 4})
        cfg.train_dataloader.dataset = dict(
            type='CustomDataset', data_root=noise_pictures(folder / 'noise'),
            pipeline=cfg.train_dataloader.dataset.pipeline)
    init_default_scope(cfg.default_scope)
    cfg.load_from = str(folder / 'full_precision.pth')
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), cfg.load_from)
    assert train(cfg).iter == 2


def noise_pictures(folder: Path) -> str:
    """Four pictures of two classes; the folder."""
    rng = np.random.default_rng(0)
    for name in ('a/0', 'a/1', 'b/0', 'b/1'):
        path = folder / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return str(folder)
