"""How the cost of a step grows with batch, image size, depth and processes.

CIFAR ResNets, forward and backward, the variants of each point interleaved.
With several processes each has one thread, its own batch and DDP (gloo), as
one GPU a process would.

    python benchmarks/scaling.py --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from machine import made_by
from models import build
from peak_memory import in_child
from rich.console import Console
from rich.progress import track
from timing import interleaved
from torch.nn.parallel import DistributedDataParallel
from variants import VARIANTS

FLOOR = 'FP + teacher (floor)'
NAMES = ['FP', FLOOR, 'LSQ', 'FPQ']
GROWTH = {
    'batch': [dict(model='resnet18-32', batch=n) for n in (8, 16, 32, 64)],
    'pixels': [dict(model='resnet18-32', pixels=n) for n in (16, 32, 48, 64)],
    'depth': [dict(model=f'resnet{n}-32', batch=16)
              for n in (18, 34, 50, 101)],
    'processes': [dict(processes=n) for n in (1, 2)],
}
KINDS = list(GROWTH)
WARM_UP = 2
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('kinds', nargs='*', metavar='KIND',
                        help=f'of {", ".join(KINDS)}: measure these, keep the '
                        'other figures; all by default')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path,
                        default=Path(__file__).parent / 'results')
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f'{unknown.pop()!r} is none of {", ".join(KINDS)}')
    torch.set_num_threads(args.threads)
    path = args.out / 'scaling.json'
    kept = json.loads(path.read_text()) if args.kinds else {}
    report = {**kept, **made_by(args.threads)}
    for kind in args.kinds or KINDS:
        report[kind] = [
            in_processes(point['processes'], args.repeats)
            if kind == 'processes' else dict(point, **measure(point, args))
            for point in track(GROWTH[kind], f'against {kind}',
                               console=console)]
    path.write_text(json.dumps(report, indent=2) + '\n')
    draw(report, args.out / 'scaling.png')
    show(report)


def measure(point: dict, args: argparse.Namespace) -> dict:
    """Median ms and peak MiB of each variant at a point."""
    sizes = dict(batch=point.get('batch'), pixels=point.get('pixels'))
    batch = build(point['model'], 'cpu', **sizes)
    steps = {name: VARIANTS[name](*batch) for name in NAMES}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    return dict(
        ms=medians(steps, args.repeats),
        peak_mib={name: in_child(point['model'], name, args.threads, **sizes)
                  for name in NAMES})


def medians(steps: dict, repeats: int) -> dict[str, float]:
    """Milliseconds."""
    times, _ = interleaved(steps, range(repeats))
    return {name: 1e3 * statistics.median(found)
            for name, found in times.items()}


def in_processes(number: int, repeats: int) -> dict:
    """Median ms of a step of ResNet-18 in each of ``number`` processes."""
    results = torch.multiprocessing.get_context('spawn').SimpleQueue()
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='29511')
    torch.multiprocessing.spawn(worker, (number, repeats, results), number)
    return dict(model='resnet18-32', processes=number, ms=results.get())


def worker(rank: int, world: int, repeats: int, results) -> None:
    """One of the processes; the first tells its times."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=world)
    steps = {}
    for name in NAMES:
        step = VARIANTS[name](*build('resnet18-32', 'cpu'))
        step.model = DistributedDataParallel(step.model)
        steps[name] = step
        for _ in range(WARM_UP):
            step()
    torch.distributed.barrier()
    found = medians(steps, repeats)
    if rank == 0:
        results.put(found)
    torch.distributed.destroy_process_group()


def label(kind: str, point: dict) -> str:
    """What stands under a point of the picture."""
    value = point['model' if kind == 'depth' else kind]
    return str(value).removesuffix('-32').removeprefix('resnet')


def show(report: dict) -> None:
    for kind in KINDS:
        for point in report[kind]:
            ms, mib = point['ms'], point.get('peak_mib')
            text = ', '.join(f'{name} {ms[name]:.0f} ms' for name in NAMES)
            text += f'; LSQ / FP {ms["LSQ"] / ms["FP"]:.2f}'
            text += f', FPQ / floor {ms["FPQ"] / ms[FLOOR]:.2f}'
            if mib:
                text += f'; memory FPQ / LSQ {mib["FPQ"] / mib["LSQ"]:.2f}'
            console.print(f'{kind} {label(kind, point)}: {text}')


def draw(report: dict, path: Path) -> None:
    """Time over, memory under, a column for each kind of growth."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(2, len(KINDS), figsize=(13, 6),
                             layout='constrained')
    for column, kind in zip(axes.T, KINDS):
        for axis, key in zip(column, ('ms', 'peak_mib')):
            points = [point for point in report[kind] if key in point]
            if not points:
                axis.set_axis_off()
                continue
            for name in NAMES:
                axis.plot([label(kind, point) for point in points],
                          [point[key][name] for point in points],
                          marker='o', label=name)
            axis.set_ylim(bottom=0)
            axis.set_xlabel(kind)
    axes[0, 0].set_ylabel('ms a step (median)')
    axes[1, 0].set_ylabel('MiB a step (peak)')
    axes[0, 0].legend()
    fig.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
