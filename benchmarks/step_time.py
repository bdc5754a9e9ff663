"""Time and memory of one training step: FPQ, its parts and its peers.

Forward and backward, no optimizer. Repetitions of all variants are
interleaved, so that a busy machine slows each alike; medians are reported.

    python benchmarks/step_time.py --models resnet18-32 mobilenet_v2-112

Peers of ``requirements/peers.txt`` are measured where they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import torch
from machine import made_by
from models import MODELS, build
from peak_memory import in_child, peak
from peers import PEERS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import interleaved
from variants import VARIANTS

from fpq_plugin._compat.kernels import compile_report

HERE = Path(__file__).parent
# glibc otherwise hands a step's memory back to the kernel, and the next step
# pays thousands of page faults to get it again.
KEEP = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_=str(2**33),
            MALLOC_TOP_PAD_=str(2**28))
WARM_UP = 2
FLOOR = 'FP + teacher (floor)'
console = Console(width=100)


def main() -> None:
    args = parse()
    if args.keep_memory and any(os.environ.get(k) != v
                                for k, v in KEEP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv],
                  {**os.environ, **KEEP})
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    kind = '_keep_memory' if args.keep_memory else ''
    kind += '_cuda' if device() == 'cuda' else ''
    for name in args.models:
        report = measure(name, args)
        path = args.out / f'step_time_{name}{kind}.json'
        path.write_text(json.dumps(report, indent=2) + '\n')
        add_memory(report, args)
        path.write_text(json.dumps(report, indent=2) + '\n')
        show(report)
        draw(report, path.with_suffix('.png'))
    console.print(f'JSON and pictures are in {args.out}')


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', choices=MODELS, metavar='MODEL',
                        default=['resnet18-32', 'mobilenet_v2-112'],
                        help=', '.join(MODELS))
    parser.add_argument('--variants', nargs='+', choices=VARIANTS,
                        metavar='VARIANT', default=list(VARIANTS),
                        help=', '.join(VARIANTS))
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--batch', type=int,
                        help="images, instead of the model's own number")
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--keep-memory', action='store_true',
                        help='run all with an allocator that keeps freed '
                        'memory (Linux, CPU)')
    parser.add_argument('--out', type=Path, default=HERE / 'results')
    return parser.parse_args()


def device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def measure(name: str, args: argparse.Namespace) -> dict:
    """All variants on one model: medians in ms, page faults, ratios."""
    model, x, y = build(name, device(), args.batch)
    steps, rows = {}, {}
    for variant in track(args.variants, f'{name}: build and warm up',
                         console=console):
        before = compile_report().seconds
        rows[variant] = {}
        try:
            step = VARIANTS[variant](model, x, y)
            for _ in range(WARM_UP):
                step()
        except Exception as error:
            if variant not in PEERS:
                raise
            rows[variant]['refused'] = f'{type(error).__name__}: {error}'
            continue
        steps[variant] = step
        rows[variant]['compile_s'] = compile_report().seconds - before
    times, faults = interleaved(steps, track(
        range(args.repeats), f'{name}: steps', console=console))
    for variant in steps:
        rows[variant]['ms'] = 1e3 * statistics.median(times[variant])
        rows[variant]['ms_min'] = 1e3 * min(times[variant])
        rows[variant]['page_faults'] = statistics.median(faults[variant])
    for variant in steps:
        for key, base in (('to_fp', 'FP'), ('to_floor', FLOOR)):
            if base in steps:
                rows[variant][key] = rows[variant]['ms'] / rows[base]['ms']
    return dict(
        model=name, batch=list(x.shape), repeats=args.repeats,
        keep_memory=args.keep_memory, **made_by(args.threads),
        compilations=compile_report().count,
        compile_failure=compile_report().failure, variants=rows)


def add_memory(report: dict, args: argparse.Namespace) -> None:
    """Peak memory of each variant, in MiB; a CPU's takes a process each."""
    rows = report['variants']
    on_gpu = device() == 'cuda'
    for variant in track([v for v in rows if 'ms' in rows[v]],
                         f'{report["model"]}: memory', console=console):
        rows[variant]['peak_mib'] = (
            peak(report['model'], variant, args.batch) if on_gpu else
            in_child(report['model'], variant, args.threads, args.batch))


def show(report: dict) -> None:
    table = Table(title=f'{report["model"]}, batch {report["batch"]}, '
                  f'{report["threads"]} thread(s), {report["device"]}, torch '
                  f'{report["torch"]}')
    for column in ('variant', 'ms', 'x FP', 'x floor', 'peak MiB',
                   'page faults', 'compile s'):
        table.add_column(column, justify='left' if column == 'variant'
                         else 'right')
    for variant, row in report['variants'].items():
        if 'refused' in row:
            table.add_row(variant, 'refused')
            continue
        table.add_row(
            variant, f'{row["ms"]:.1f}', f'{row.get("to_fp", 0):.2f}',
            f'{row.get("to_floor", 0):.2f}', f'{row["peak_mib"]:.0f}',
            f'{row["page_faults"]:.0f}', f'{row["compile_s"]:.1f}')
    console.print(table)


def draw(report: dict, path: Path) -> None:
    """Bars of the steps' times, with the floor as a line."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    rows = {name: row['ms'] for name, row in report['variants'].items()
            if 'ms' in row}
    fig, axis = plt.subplots(figsize=(6, 1 + 0.25 * len(rows)),
                             layout='constrained')
    bars = axis.barh(list(rows), list(rows.values()))
    axis.bar_label(bars, [f'{ms:.0f}' for ms in rows.values()], padding=2)
    if FLOOR in rows:
        axis.axvline(rows[FLOOR], color='k', linestyle=':', label='floor')
        axis.legend()
    axis.margins(x=0.15)
    axis.invert_yaxis()
    axis.set_xlabel('ms a step (median)')
    axis.set_title(f'{report["model"]}, {report["threads"]} thread(s)')
    fig.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
