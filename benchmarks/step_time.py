"""Time and memory of one training step: FPQ, its parts and its peers.

Forward and backward, no optimizer. Repetitions of all variants are
interleaved, so that a busy machine slows each alike; medians are reported.

    python benchmarks/step_time.py --models resnet18-32 mobilenet_v2-112
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from models import MODELS, build
from rich.console import Console
from rich.progress import track
from rich.table import Table
from variants import VARIANTS, Step

from fpq_plugin.compiled import compile_report

HERE = Path(__file__).parent
# glibc otherwise hands a step's memory back to the kernel, and the next step
# pays thousands of page faults to get it again.
KEEP = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_=str(2**33),
            MALLOC_TOP_PAD_=str(2**28))
WARM_UP = 2
console = Console(width=100)


def main() -> None:
    args = parse()
    if args.keep_memory and any(os.environ.get(k) != v
                                for k, v in KEEP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv],
                  {**os.environ, **KEEP})
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(peak_memory(args.models[0], args.memory_of)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    reports = []
    for name in args.models:
        report = measure(name, args)
        show(report)
        kind = '_keep_memory' if args.keep_memory else ''
        path = args.out / f'step_time_{name}{kind}.json'
        path.write_text(json.dumps(report, indent=2) + '\n')
        reports.append(report)
    draw(reports, args.out / f'step_time{kind}.png')
    console.print(f'JSON and step_time{kind}.png are in {args.out}')


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', choices=MODELS, metavar='MODEL',
                        default=['resnet18-32', 'mobilenet_v2-112'],
                        help=', '.join(MODELS))
    parser.add_argument('--variants', nargs='+', choices=VARIANTS,
                        metavar='VARIANT', default=list(VARIANTS),
                        help=', '.join(VARIANTS))
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--keep-memory', action='store_true',
                        help='run all with an allocator that keeps freed '
                        'memory (Linux, CPU)')
    parser.add_argument('--out', type=Path, default=HERE / 'results')
    parser.add_argument('--memory-of', choices=VARIANTS,
                        help=argparse.SUPPRESS)
    return parser.parse_args()


def device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def measure(name: str, args: argparse.Namespace) -> dict:
    """All variants on one model: medians in ms, memory in MiB, ratios."""
    model, x, y = build(name, device())
    steps, rows = {}, {}
    for variant in track(args.variants, f'{name}: build and warm up',
                         console=console):
        before = compile_report().seconds
        steps[variant] = VARIANTS[variant](model, x, y)
        for _ in range(WARM_UP):
            steps[variant]()
        rows[variant] = dict(compile_s=compile_report().seconds - before)
    times = {variant: [] for variant in steps}
    faults = {variant: [] for variant in steps}
    for _ in track(range(args.repeats), f'{name}: steps', console=console):
        for variant, step in steps.items():
            before = page_faults()
            times[variant].append(seconds(step))
            faults[variant].append(page_faults() - before)
    for variant in track(steps, f'{name}: memory', console=console):
        rows[variant]['ms'] = 1e3 * statistics.median(times[variant])
        rows[variant]['ms_min'] = 1e3 * min(times[variant])
        rows[variant]['page_faults'] = statistics.median(faults[variant])
        rows[variant]['peak_mib'] = memory_in_child(name, variant, args)
    for row in rows.values():
        for key, base in (('to_fp', 'FP'),
                          ('to_floor', 'FP + teacher (floor)')):
            if base in rows:
                row[key] = row['ms'] / rows[base]['ms']
    return dict(
        model=name, batch=list(x.shape), command=command(),
        repeats=args.repeats, threads=args.threads, torch=torch.__version__,
        keep_memory=args.keep_memory, device=device_name(),
        cpus=os.cpu_count(),
        compilations=compile_report().count,
        compile_failure=compile_report().failure, variants=rows)


def seconds(step: Step) -> float:
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def synchronize() -> None:
    if device() == 'cuda':
        torch.cuda.synchronize()


def memory_in_child(name: str, variant: str, args) -> float:
    out = subprocess.run([
        sys.executable, __file__, '--models', name, '--memory-of', variant,
        '--threads', str(args.threads)
    ], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def peak_memory(name: str, variant: str) -> float:
    """MiB that a step needs beyond model, teacher and compiled code."""
    step = VARIANTS[variant](*build(name, device()))
    step()
    if device() == 'cuda':
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - base) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    base = status('VmRSS')
    step()
    return (status('VmHWM') - base) / 2**10


def status(key: str) -> int:
    """A line of Linux's process status, in KiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines
                if line.startswith(key))


def command() -> str:
    words = ['python', 'benchmarks/step_time.py', *sys.argv[1:]]
    return ' '.join(f'"{w}"' if ' ' in w else w for w in words)


def device_name() -> str:
    if device() == 'cuda':
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    names = [line.split(':')[1].strip()
             for line in (info.read_text().splitlines()
                          if info.exists() else ())
             if line.startswith('model name')]
    return names[0] if names else platform.processor()


def show(report: dict) -> None:
    table = Table(title=f'{report["model"]}, batch {report["batch"]}, '
                  f'{report["threads"]} thread(s), {report["device"]}, torch '
                  f'{report["torch"]}')
    for column in ('variant', 'ms', 'x FP', 'x floor', 'peak MiB',
                   'page faults', 'compile s'):
        table.add_column(column, justify='left' if column == 'variant'
                         else 'right')
    for variant, row in report['variants'].items():
        table.add_row(
            variant, f'{row["ms"]:.1f}', f'{row.get("to_fp", 0):.2f}',
            f'{row.get("to_floor", 0):.2f}', f'{row["peak_mib"]:.0f}',
            f'{row["page_faults"]:.0f}', f'{row["compile_s"]:.1f}')
    console.print(table)


def draw(reports: list[dict], path: Path) -> None:
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(1, len(reports), squeeze=False,
                             figsize=(5.5 * len(reports), 4),
                             layout='constrained')
    for axis, report in zip(axes[0], reports):
        rows = report['variants']
        bars = axis.barh(list(rows), [row['ms'] for row in rows.values()])
        axis.bar_label(bars, [f'{row["ms"]:.0f}' for row in rows.values()],
                       padding=2)
        if 'FP + teacher (floor)' in rows:
            axis.axvline(rows['FP + teacher (floor)']['ms'], color='k',
                         linestyle=':', label='floor')
            axis.legend()
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.set_xlabel('ms a step (median)')
        axis.set_title(f'{report["model"]}, {report["threads"]} thread(s)')
    fig.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
