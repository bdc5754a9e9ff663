"""FPQ's Hessian trace against LSQ's, at each bit width, with error bars.

Takes the Fashion-MNIST runs of ``mm_configs/fashion_mnist`` from a folder
with a sub-folder for each; prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fpq_plugin.analysis import hessian_trace, mean_loss
from fpq_plugin.analysis.data import draw, loader_of, prepared
from fpq_plugin.analysis.subject import load_subjects

CONFIGS = Path('mm_configs/fashion_mnist')
RUNS = ('resnet_fp', 'resnet_lsq_w4a4', 'resnet_fpq_w4a4', 'resnet_lsq_w2a4',
        'resnet_fpq_w2a4', 'resnet_lsq_w2a2', 'resnet_fpq_w2a2')


def ratio(ours: dict, theirs: dict) -> tuple[float, float]:
    """FPQ's trace over LSQ's and its error, that of the probes."""
    value = ours['value'] / theirs['value']
    parts = [t['error'] / t['value'] for t in (ours, theirs)]
    return value, abs(value) * (parts[0]**2 + parts[1]**2)**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', type=Path)
    parser.add_argument('--images', type=int, default=1024)
    parser.add_argument('--probes', type=int, default=24)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    os.environ.setdefault('FPQ_WORK_DIRS', str(args.runs))
    pairs = []
    for run in RUNS:
        files = sorted((args.runs / run).glob('epoch_*.pth'))
        if (args.runs / run / 'done').exists():
            pairs.append((str(CONFIGS / f'{run}.py'), str(files[-1])))
        else:
            print(f'{run}: not trained yet, left out')
    subjects = load_subjects(pairs)
    rows = []
    for split in ('train', 'val'):
        batches = draw(loader_of(subjects[0].config, split), args.images, 0,
                       progress=False)
        for subject in subjects:
            data = prepared(subject.model, batches)
            found = hessian_trace(subject.model, data, args.probes)
            rows.append(dict(
                model=subject.label, split=split,
                loss=mean_loss(subject.model, data),
                **asdict(found.total), data_error=found.data_error))
            print(f'{split:6}{subject.label:18} loss {rows[-1]["loss"]:.4f}  '
                  f'trace {found.total}, of the images '
                  f'{found.data_error:.2g}', flush=True)
    ratios = []
    by_name = {(row['split'], row['model']): row for row in rows}
    for (split, model), row in by_name.items():
        theirs = by_name.get((split, model.replace('_fpq_', '_lsq_')))
        if '_fpq_' not in model or theirs is None:
            continue
        value, error = ratio(row, theirs)
        ratios.append(dict(split=split, model=model, ratio=value,
                           error=error))
        print(f'{split:6}{model}: {value:.2f} +- {error:.2f} of LSQ\'s')
    args.out.write_text(json.dumps(
        dict(command=shlex.join(['python', *sys.argv]),
             torch=torch.__version__, images=args.images,
             probes=args.probes, rows=rows, ratios=ratios), indent=1) + '\n')


if __name__ == '__main__':
    main()
