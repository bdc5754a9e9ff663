"""What conversion and calibration take beyond the forward passes.

ResNet-50, 100 images of 224 x 224 in batches: seconds of the float model's
forward passes, of ``convert`` and of ``calibrate`` on the same batches.

    python benchmarks/calibration_time.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from machine import made_by
from models import build
from timing import seconds

import fpq_plugin

IMAGES, BATCH = 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--backends', nargs='+',
                        default=['torch_ao', 'brevitas'])
    parser.add_argument('--out', type=Path,
                        default=Path(__file__).parent / 'results')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = {backend: [] for backend in args.backends}
    for _ in range(args.repeats):
        for backend, found in rounds.items():
            found.append(one_round(backend))
    report = made_by(args.threads)
    for backend, found in rounds.items():
        report[backend] = {key: statistics.median(r[key] for r in found)
                           for key in found[0]}
        print(backend, ', '.join(f'{key} {value:.2f} s' for key, value in
                                 report[backend].items()))
    (args.out / 'calibration_time.json').write_text(
        json.dumps(report, indent=2) + '\n')


def one_round(backend: str) -> dict[str, float]:
    """Seconds of the parts."""
    model, x, _ = build('resnet50-224', 'cpu', batch=BATCH)
    batches = [x + i for i in range(IMAGES // BATCH)]
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    model(x)  # oneDNN's first call chooses its kernels
    times = dict(forward=seconds(forward))
    times['convert'] = seconds(
        lambda: fpq_plugin.convert(model, backend=backend))
    times['calibrate'] = seconds(lambda: fpq_plugin.calibrate(model, batches))
    times['beyond'] = (times['convert'] + times['calibrate']
                       - times['forward'])
    return times


if __name__ == '__main__':
    main()
