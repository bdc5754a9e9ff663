"""Methods x models x bits x seeds on Fashion-MNIST: train what is missing.

    python benchmarks/accuracy/grid.py                  # the whole grid
    python benchmarks/accuracy/grid.py resnet/fpq/w2a4/0    # a cell of it

A run whose JSON is in ``--out`` is kept. The teacher of a run, the
full-precision run of its seed, is trained first if it is missing.
"""

from __future__ import annotations

import argparse
import logging
import time
import traceback
from pathlib import Path

import torch
from cells import Cell, grid
from train import ROOT, checkpoint, train, write


def main() -> None:
    args = parse()
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    cells = args.cells or list(grid())
    start = time.time()
    for number, cell in enumerate(cells):
        minutes = (time.time() - start) / 60
        print(f'[{number + 1}/{len(cells)}, {minutes:.0f} min] {cell}',
              flush=True)
        if args.minutes and minutes > args.minutes:
            print('the time is used up; the rest is for the next call')
            return
        for each in (cell.teacher, cell):
            run(each, args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cells', nargs='*', type=Cell.parse,
                        metavar='MODEL/METHOD/BITS/SEED')
    parser.add_argument('--out', type=Path,
                        default=Path(__file__).parent / 'results/runs')
    parser.add_argument('--work', type=Path,
                        default=ROOT / 'work_dirs/accuracy')
    parser.add_argument('--epochs', type=int,
                        help='instead of those of cells.EPOCHS')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--minutes', type=float,
                        help='start no further cell after that time')
    return parser.parse_args()


def run(cell: Cell, args: argparse.Namespace) -> None:
    """Train ``cell`` unless its record is there; a failure is recorded."""
    path = args.out / f'{cell.key}.json'
    is_teacher = cell.method == 'fp'
    made = checkpoint(cell, args.work, args.epochs)
    gone = is_teacher and not made.exists()
    if path.exists() and not gone:
        return
    try:
        record = train(cell, args.work, args.epochs)
    except (FloatingPointError, ValueError, RuntimeError) as error:
        if is_teacher:
            raise
        traceback.print_exc()
        record = dict(cell=str(cell), top1=None, error=str(error))
    write(record, path)
    print(f'    {cell}: top-1 {record["top1"]}, '
          f'{record.get("cpu_seconds")} s of CPU', flush=True)


if __name__ == '__main__':
    main()
