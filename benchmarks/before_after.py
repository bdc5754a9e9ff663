"""A training step and an import of this checkout over those of another one.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before

Each checkout has a process of its own, in which one step after the other is
asked for, in turn. The step is forward and backward of a W4A4 student with
noise, LSQ's quantizers and CSD, on options that both checkouts know. Imports
are new processes, in turn as well. Medians of the ratios, with quartiles.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parents[1]
MODELS = ('resnet18-32', 'mobilenet_v2-112')
IMPORT = 'import fpq_plugin'


class Checkout:
    """A process that imports one checkout and trains on demand.

    Args:
        folder (Path): The checkout.
        model (str): Of ``models.py``.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(folder), '--serve', model],
            env=environment(folder), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin
        assert self.process.stdout
        print('step', file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def environment(folder: Path) -> dict[str, str]:
    """The checkout's package before any other, one thread."""
    return dict(os.environ, PYTHONPATH=str(folder), OMP_NUM_THREADS='1')


def serve(model: str) -> None:
    """Train a step for each line of the input; its seconds are a line."""
    import copy
    import warnings

    import torch
    from models import build

    import fpq_plugin

    warnings.simplefilter('ignore')
    told, sys.stdout = sys.stdout, sys.stderr  # others have things to say
    torch.set_num_threads(1)
    student, images, _ = build(model, 'cpu')
    teacher = copy.deepcopy(student)
    lsq = dict(type='LSQFakeQuantize', bits=4)
    fpq_plugin.convert(student, weight=lsq, activation=lsq,
                       perturbation=dict(p=0.5))
    fpq_plugin.calibrate(student, [images])
    distiller = fpq_plugin.Distiller(student.train(), teacher,
                                     fpq_plugin.CSDLoss())
    for _ in sys.stdin:
        started = time.perf_counter()
        out = student(images)
        (out.square().mean() + distiller.loss()).backward()
        print(time.perf_counter() - started, file=told, flush=True)


def imports(folder: Path) -> float:
    """Seconds of a new process that imports the package."""
    started = time.perf_counter()
    subprocess.run([sys.executable, '-c', IMPORT], check=True,
                   env=environment(folder), capture_output=True)
    return time.perf_counter() - started


def told(name: str, now: list[float], before: list[float]) -> str:
    """The median of the ratios, with its quartiles."""
    low, middle, high = quantiles([a / b for a, b in zip(now, before)], n=4)
    return f'{name}: {middle:.3f} ({low:.3f} to {high:.3f}), {len(now)} rounds'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('before', type=Path)
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--serve', choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    before = args.before.resolve()
    for model in MODELS:
        pair = [Checkout(ROOT, model), Checkout(before, model)]
        times = [[checkout.step() for checkout in pair]
                 for _ in range(args.rounds + 5)][5:]
        for checkout in pair:
            checkout.end()
        print(told(f'step of {model}', *map(list, zip(*times))), flush=True)
    times = [[imports(folder) for folder in (ROOT, before)]
             for _ in range(args.rounds // 2)]
    print(told('import', *map(list, zip(*times))))
    return None


if __name__ == '__main__':
    main()
