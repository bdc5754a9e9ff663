"""Table and picture of the accuracy benchmark's runs.

    python benchmarks/accuracy/report.py

Reads ``results/runs/*.json``; writes ``results/table.md`` and
``results/accuracy.png``. A difference to LSQ is paired: of runs with the same
seed, and so the same teacher and order of images.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from cells import BITS, METHODS, MODELS, Cell
from scipy.stats import t

HERE = Path(__file__).parent
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One method in one setting.

    Attributes:
        method (str): The method.
        top1 (dict): From seed to top-1 (%).
        failed (int): Runs that ended in an error.
        gain (float, optional): Mean paired difference to LSQ, in points.
        margin (float, optional): Half its confidence interval; None for
            fewer than two pairs.
    """

    method: str
    top1: dict[int, float]
    failed: int
    gain: float | None
    margin: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=HERE / 'results')
    args = parser.parse_args()
    rows = collect(args.out / 'runs')
    text = markdown(rows)
    (args.out / 'table.md').write_text(text)
    draw(rows, args.out / 'accuracy.png')
    print(text)


def collect(folder: Path) -> dict[tuple[str, str], list[Row]]:
    """Rows by (model, bits), methods in METHODS' order after 'fp'."""
    found: dict[tuple, dict[str, dict]] = defaultdict(
        lambda: defaultdict(dict))
    for path in folder.glob('*.json'):
        record = json.loads(path.read_text())
        cell = Cell.parse(record['cell'])
        places = [(cell.model, cell.bits)]
        if cell.method == 'fp':  # beside all that it is the teacher of
            places = [(model, bits) for model in MODELS for bits in BITS
                      if Cell(model, '', '', 0).teacher.model == cell.model]
        for place in places:
            found[place][cell.method][cell.seed] = record['top1']
    return {
        (model, bits): [
            _row(method, found[model, bits])
            for method in ('fp', *METHODS) if method in found[model, bits]
        ]
        for model in MODELS for bits in BITS
        if set(found[model, bits]) - {'fp'}
    }


def _row(method: str, runs: dict[str, dict[int, float | None]]) -> Row:
    top1 = {seed: value for seed, value in sorted(runs[method].items())
            if value is not None}
    base = runs.get('lsq', {})
    pairs = [value - base[seed] for seed, value in top1.items()
             if base.get(seed) is not None]
    gain = margin = None
    if method != 'lsq' and pairs:
        gain, margin = paired(pairs)
    return Row(method, top1, len(runs[method]) - len(top1), gain, margin)


def paired(differences: list[float]) -> tuple[float, float | None]:
    """Mean, and half of its confidence interval by Student's t."""
    n = len(differences)
    mean = statistics.fmean(differences)
    if n < 2:
        return mean, None
    quantile = t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return mean, quantile * statistics.stdev(differences) / math.sqrt(n)


def markdown(rows: dict[tuple[str, str], list[Row]]) -> str:
    """All settings' tables."""
    lines = ['# Top-1 on Fashion-MNIST after training on 1,000 images', '',
             'Made by `python benchmarks/accuracy/report.py` from '
             '`results/runs/`; method names are those of '
             '`benchmarks/accuracy/cells.py`.', '']
    for (model, bits), group in rows.items():
        lines += [f'## {model}, {bits.upper()}', '',
                  '| method | seeds | mean | std | to LSQ, paired '
                  f'({CONFIDENCE:.0%} interval) |', '|---|---|---|---|---|']
        for row in group:
            values = list(row.top1.values())
            mean = f'{statistics.fmean(values):.2f}' if values else '-'
            std = f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-'
            gain = '' if row.gain is None else f'{row.gain:+.2f}'
            if row.margin is not None:
                gain += (f' ({row.gain - row.margin:+.2f} to '
                         f'{row.gain + row.margin:+.2f})')
            failed = f' + {row.failed} failed' if row.failed else ''
            lines.append(f'| {row.method} | {len(values)}{failed} | {mean} | '
                         f'{std} | {gain} |')
        lines.append('')
    return '\n'.join(lines)


def draw(rows: dict[tuple[str, str], list[Row]], path: Path) -> None:
    """Paired difference to LSQ: a row of panels a model, a column a width."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    models = list(dict.fromkeys(model for model, _ in rows))
    most = {m: max(len(g) for (model, _), g in rows.items() if model == m)
            for m in models}
    heights = [1 + 0.2 * most[m] for m in models]
    fig, axes = plt.subplots(
        len(models), len(BITS), figsize=(4 * len(BITS), sum(heights)),
        height_ratios=heights, squeeze=False, layout='constrained')
    for line, model in zip(axes, models):
        for axis, bits in zip(line, BITS):
            group = [row for row in rows.get((model, bits), ())
                     if row.gain is not None]
            axis.set_visible(bool(group))
            axis.errorbar(
                [row.gain for row in group], range(len(group)),
                xerr=[row.margin or 0 for row in group], fmt='o', capsize=3)
            axis.set_yticks(range(len(group)), [row.method for row in group])
            axis.axvline(0, color='k', linewidth=0.8)
            axis.invert_yaxis()
            axis.set_title(f'{model}, {bits.upper()}')
            axis.set_xlabel('points over LSQ')
    fig.savefig(path, dpi=90)


if __name__ == '__main__':
    main()
