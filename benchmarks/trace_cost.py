"""CPU seconds of a Hessian trace estimate, and of a training step.

    python benchmarks/trace_cost.py --models resnet18-32 resnet18-224

The model is quantized to W4A4. A product with the Hessian on one batch is
timed alone, and the estimate as ``hessian_trace`` makes it, of 8 probes and
a sketch of 4, on that batch.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from models import MODELS, build

import fpq_plugin
from fpq_plugin.analysis import PlainBatch, hessian_trace, left_unchanged
from fpq_plugin.analysis.hessian import SurrogateHessian
from fpq_plugin.analysis.measuring import weighted_layers

PROBES, SKETCH = 8, 4


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call, after one to warm up.

    One thread's CPU time, unlike the clock's, is hardly that of other work.
    """
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(name: str) -> dict:
    """One model's row."""
    model, x, y = build(name, 'cpu')
    fpq_plugin.convert(model)
    fpq_plugin.calibrate(model, [x])
    batch = PlainBatch(x, y)
    weights = [layer.weight for layer in weighted_layers(model).values()]

    def step() -> None:
        model.train()
        batch.loss(model).backward()

    row = dict(model=name, images=len(x), step=seconds(step, 3))
    with left_unchanged(model, 0, weights):
        hessian = SurrogateHessian(model, weights, [batch])
        vector = torch.randn(hessian.shape[0])
        row['product'] = seconds(lambda: hessian @ vector, 3)
    row['estimate'] = seconds(
        lambda: hessian_trace(model, [batch], PROBES, SKETCH), 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', choices=MODELS,
                        default=['resnet18-32'])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent /
                        'results/trace_cost.json')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.models:
        row = measure(name)
        rows.append(row)
        print(f'{name}, {row["images"]} images: training step '
              f'{row["step"]:.2f} s, product {row["product"]:.2f} s, '
              f'estimate of {PROBES} probes {row["estimate"]:.1f} s',
              flush=True)
    args.out.write_text(json.dumps(
        dict(command=shlex.join(['python', *sys.argv]),
             machine=platform.machine(), threads=1, torch=torch.__version__,
             probes=PROBES, sketch=SKETCH, rows=rows), indent=1) + '\n')


if __name__ == '__main__':
    main()
