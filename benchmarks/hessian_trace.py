"""FPQ's Hessian trace against LSQ's, at each bit width, with error bars.

Beside it: the task loss; what weight noise of one step would cost by the
trace ("rounding"); and the loss under real noise of one step.

Takes the Fashion-MNIST runs of ``mm_configs/fashion_mnist`` from a folder
with a sub-folder for each; prints a table and writes JSON. Rows that are
there already, of the same settings, are kept.
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

from fpq_plugin.analysis import (
    HessianTrace,
    hessian_trace,
    noise_gradient_norm,
)
from fpq_plugin.analysis.batches import (
    build_loader,
    draw_batches,
    preprocessed,
)
from fpq_plugin.analysis.measuring import weighted_layers
from fpq_plugin.analysis.stability import weight_steps
from fpq_plugin.analysis.trained_models import (
    TrainedModel,
    load_trained_models,
)

CONFIGS = Path('mm_configs/fashion_mnist')
RUNS = ('resnet_fp', 'resnet_lsq_w4a4', 'resnet_fpq_w4a4', 'resnet_lsq_w2a4',
        'resnet_fpq_w2a4', 'resnet_lsq_w2a2', 'resnet_fpq_w2a2')


def rounding_cost(trained: TrainedModel, trace: HessianTrace) -> float:
    """What weight noise of one step costs to second order, equation (7).

    ``sum over layers of E[d^2] Tr(H_l) / 2`` with d uniform in a step, the
    channels' mean; unlike the trace it does not change with the scale of the
    weights. A float model's steps are those of 4 bits.
    """
    steps = weight_steps(weighted_layers(trained.model))
    return sum(
        float(step.square().mean()) / 24 * trace.layers[name].value
        for name, step in steps.items())


def ratio(ours: dict, theirs: dict) -> tuple[float, float]:
    """FPQ's trace over LSQ's and its error, that of the probes."""
    value = ours['value'] / theirs['value']
    parts = [t['error'] / t['value'] for t in (ours, theirs)]
    return value, abs(value) * (parts[0]**2 + parts[1]**2)**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', type=Path)
    parser.add_argument('--splits', nargs='+', default=['train', 'val'])
    parser.add_argument('--images', type=int, default=512)
    parser.add_argument('--probes', type=int, default=16)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    os.environ.setdefault('FPQ_WORK_DIRS', str(args.runs))
    settings = dict(images=args.images, probes=args.probes)
    rows = kept_rows(args.out, settings)
    pairs = []
    for run in RUNS:
        files = sorted((args.runs / run).glob('epoch_*.pth'))
        if (args.runs / run / 'done').exists():
            pairs.append((str(CONFIGS / f'{run}.py'), str(files[-1])))
        else:
            print(f'{run}: not trained yet, left out')
    models = load_trained_models(pairs)
    for split in args.splits:
        loader = build_loader(models[0].config, split)
        batches = draw_batches(loader, args.images, 0, progress=False)
        for one in models:
            if any((r['split'], r['model']) == (split, one.label)
                   for r in rows):
                continue
            data = preprocessed(one.model, batches)
            found = hessian_trace(one.model, data, args.probes)
            noise = noise_gradient_norm(one.model, data)
            rows.append(dict(
                split=split, model=one.label,
                loss=noise.clean_loss,
                **asdict(found.total), data_error=found.data_error,
                rounding=rounding_cost(one, found),
                feature_noise=asdict(noise.feature_loss),
                weight_noise=asdict(noise.weight_loss)))
            write(args.out, settings, rows)
            print(table(rows[-1:]), flush=True)
    print(table(rows))
    for row in write(args.out, settings, rows):
        print(f'{row["split"]:6}{row["model"]}: {row["ratio"]:.2f} +- '
              f"{row['error']:.2f} of LSQ's")


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""

    def of(estimate: dict) -> str:
        return f'{estimate["value"]:.3f} ± {estimate["error"]:.3f}'

    lines = [
        '| images | model | task loss | trace ± probes (± images) | rounding '
        '| loss, feature noise | loss, weight noise |', '|' + '---|' * 7
    ]
    lines += [
        f'| {r["split"]} | {r["model"]} | {r["loss"]:.3f} | {r["value"]:.0f} '
        f'± {r["error"]:.0f} (± {r["data_error"]:.0f}) | {r["rounding"]:.3f} '
        f'| {of(r["feature_noise"])} | {of(r["weight_noise"])} |'
        for r in rows
    ]
    return '\n'.join(lines)


def kept_rows(path: Path, settings: dict) -> list[dict]:
    """Rows that an earlier call made with the same settings."""
    if not path.exists():
        return []
    past = json.loads(path.read_text())
    same = all(past[key] == value for key, value in settings.items())
    return past['rows'] if same else []


def write(path: Path, settings: dict, rows: list[dict]) -> list[dict]:
    """Write the rows; the ratios of FPQ's trace to LSQ's, which it adds."""
    rows.sort(key=lambda r: (r['split'], RUNS.index(r['model'])))
    by_name = {(row['split'], row['model']): row for row in rows}
    ratios = []
    for (split, model), row in by_name.items():
        theirs = by_name.get((split, model.replace('_fpq_', '_lsq_')))
        if '_fpq_' in model and theirs is not None:
            value, error = ratio(row, theirs)
            ratios.append(dict(split=split, model=model, ratio=value,
                               error=error))
    path.write_text(json.dumps(
        dict(command=shlex.join(['python', *sys.argv]),
             torch=torch.__version__, **settings, rows=rows, ratios=ratios),
        indent=1) + '\n')
    return ratios


if __name__ == '__main__':
    main()
