"""Of the study: does SFP's noise spoil batch norm's running statistics?

    python benchmarks/accuracy/bn_statistics.py 'resnet/fpq p=1.0/w2a4/0'

Tests the checkpoints of runs as they are, and with running statistics taken
anew from the training images without noise. ``grid.py`` makes the checkpoints.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cells import Cell
from mmengine.runner import Runner
from torch import nn
from train import ROOT, build_config, checkpoint

from fpq_plugin import load_model, reestimate_batch_norms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cells', nargs='+', type=Cell.parse,
                        metavar='MODEL/METHOD/BITS/SEED')
    parser.add_argument('--work', type=Path,
                        default=ROOT / 'work_dirs/accuracy')
    parser.add_argument(
        '--out', type=Path,
        default=Path(__file__).parent / 'results/bn_statistics.json')
    args = parser.parse_args()
    rows = []
    for cell in args.cells:
        rows.append(measure(cell, args.work))
        print(f'{cell}: {rows[-1]["as_trained"]:.2f} as trained, '
              f'{rows[-1]["taken_anew"]:.2f} with statistics taken anew')
    args.out.write_text(json.dumps(rows, indent=1) + '\n')


def measure(cell: Cell, work: Path) -> dict:
    """Top-1 (%) of a cell's checkpoint, before and after."""
    cfg = build_config(cell, work)
    model = load_model(cfg, str(checkpoint(cell, work)))
    row = dict(cell=str(cell), as_trained=top1(model, cfg))
    reestimate_batch_norms(
        model, Runner.build_dataloader(cfg.train_dataloader))
    row['taken_anew'] = top1(model, cfg)
    return row


def top1(model: nn.Module, cfg) -> float:
    """Accuracy (%) on the test images."""
    right = total = 0
    for batch in Runner.build_dataloader(cfg.test_dataloader):
        for sample in model.test_step(batch):
            right += int(sample.pred_label) == int(sample.gt_label)
            total += 1
    return 100 * right / total


if __name__ == '__main__':
    main()
