"""Methods x models x bits x seeds on Fashion-MNIST: train what is missing.

    python benchmarks/accuracy/grid.py                      # the whole grid
    python benchmarks/accuracy/grid.py --models wide mobilenet
    python benchmarks/accuracy/grid.py resnet/fpq/w2a4/0    # a cell of it

A run whose JSON is in ``--out`` is kept. The teachers of the runs, the
full-precision runs of their seeds, are trained first where they are missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from cells import MODELS, Cell, grid
from train import ROOT, checkpoint, made_by, train, weights_mark, write

_Each = Callable[[list[tuple[Cell, argparse.Namespace]]], Iterable[str]]


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    args.deadline = time.time() + 60 * args.minutes if args.minutes else None
    cells = args.cells or [cell for cell in grid()
                           if cell.model in args.models]
    teachers = (cell.teacher for cell in cells)
    start = time.time()
    with workers(args.workers, args.threads) as each:
        for phase in (teachers, cells):
            todo = [(cell, args) for cell in dict.fromkeys(phase)]
            for number, line in enumerate(each(todo), 1):
                minutes = (time.time() - start) / 60
                print(f'[{number}/{len(todo)}, {minutes:.0f} min] {line}',
                      flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('cells', nargs='*', type=Cell.parse,
                        metavar='MODEL/METHOD/BITS/SEED')
    parser.add_argument('--models', nargs='+', choices=MODELS, metavar='MODEL',
                        default=list(MODELS),
                        help='those of the whole grid: ' + ', '.join(MODELS))
    parser.add_argument('--out', type=Path,
                        default=Path(__file__).parent / 'results/runs')
    parser.add_argument('--work', type=Path,
                        default=ROOT / 'work_dirs/accuracy')
    parser.add_argument('--epochs', type=int,
                        help="instead of the model's own")
    parser.add_argument('--threads', type=int, default=1,
                        help='of each worker')
    parser.add_argument('--workers', type=int, default=1,
                        help='processes that train a run each')
    parser.add_argument('--channels-last', action='store_true',
                        help="another order of memory, a CPU's faster one; "
                        'its rounding gives other networks')
    parser.add_argument('--minutes', type=float,
                        help='start no further cell after that time')
    return parser.parse_args()


@contextmanager
def workers(number: int, threads: int) -> Iterator[_Each]:
    """A function that trains cells, in this process or in several."""
    if number == 1:
        _settle(threads)
        yield lambda todo: map(_run, todo)
        return
    context = multiprocessing.get_context('spawn')
    with context.Pool(number, _settle, (threads, )) as pool:
        yield lambda todo: pool.imap_unordered(_run, todo)


def _settle(threads: int) -> None:
    logging.disable(logging.INFO)
    torch.set_num_threads(threads)


def _run(job: tuple[Cell, argparse.Namespace]) -> str:
    try:
        return run(*job)
    except Exception:
        traceback.print_exc()  # without a record, so it is tried again
        return f'{job[0]}: failed'


def run(cell: Cell, args: argparse.Namespace) -> str:
    """Train ``cell`` unless its record is there; a failure is recorded.

    Returns:
        str: What came of it, for the eye.
    """
    path = args.out / f'{cell.key}.json'
    is_teacher = cell.method == 'fp'
    if path.exists() and not is_teacher:
        return f'{cell}: its record is there'
    late = args.deadline and time.time() > args.deadline
    if path.exists():
        return _teacher_of_record(cell, args, path, late)
    if late:
        return f'{cell}: left for the next call'
    if not is_teacher and not checkpoint(
            cell.teacher, args.work, args.epochs).exists():
        return f'{cell}: left out, its teacher is not there'
    try:
        record = train(cell, args.work, args.epochs, args.channels_last)
    except (FloatingPointError, ValueError, RuntimeError) as error:
        if is_teacher:
            raise
        traceback.print_exc()
        record = dict(
            cell=str(cell), top1=None, error=str(error),
            **made_by(cell, args.epochs, args.channels_last))
    write(record, path)
    return f'{cell}: top-1 {record["top1"]}'


def _teacher_of_record(cell: Cell, args: argparse.Namespace, path: Path,
                       late: bool) -> str:
    """See to it that the teacher's weights are those of its record.

    Gone ones are trained again. Others, as of another processor, are not kept:
    the runs that have records did not start from them.
    """
    past = json.loads(path.read_text())
    made = checkpoint(cell, args.work, args.epochs)
    found = dict(past)
    if made.exists():
        found['weights'] = weights_mark(made)
    elif late:
        return f'{cell}: left for the next call'
    else:
        found = train(cell, args.work, args.epochs, args.channels_last)
    # Older records have no mark of the weights.
    if all(past[key] == found[key] for key in ('top1', 'weights')
           if key in past):
        return f'{cell}: its record is there'
    made.unlink()
    return (f'{cell}: not the network of its record; take other seeds, or '
            'another --out and --work')


if __name__ == '__main__':
    main()
