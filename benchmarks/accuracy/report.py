"""Tables and pictures of the accuracy benchmark's runs.

    python benchmarks/accuracy/report.py

Reads ``results/runs/*.json``; writes to ``results``:

* ``short.md`` and ``accuracy.png``: the README's table and picture, four
  methods in three models;
* ``summary.md``: the methods side by side where the main ones share three
  seeds, theirs of those seeds alone;
* ``intervals.md``: paired differences of the main methods;
* ``noise.md``: what noise adds to each method;
* ``choices.md``: paired differences of the open choices;
* ``table.md``: everything; ``study.png``: the open choices.

A method needs three seeds to be in a table; what has fewer is listed below
``table.md``'s. A difference is paired: of runs with the same seed, and so the
same teacher and order of images.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from cells import BITS, METHODS, MODELS, Cell
from scipy.stats import t

HERE = Path(__file__).parent
CONFIDENCE = 0.95
MIN_SEEDS = 3
COMPARED = ('fp', 'lsq', 'lsq_plus', 'pact', 'lsq_sam', 'kd',
            'csd=0 kd=3 p=0', 'csd', 'fpq', 'fpq_kd', 'sfp_kd',
            'recommended')
MAIN = ('lsq', 'kd', 'fpq', 'sfp_kd')
COMPARED_ON = ('resnet', 'wide', 'mobilenet_slow_steps', 'resnet18',
               'mobilenet_v2')
STUDIED = ('wide', 'w2a2')
# The README's models and methods, in its words.
SHOWN = {'resnet': 'thin ResNet', 'wide': 'Wide ResNet',
         'mobilenet': 'MobileNetV2 x0.5'}
WORDS = {'fp': 'full precision', 'lsq': 'LSQ',
         'fpq': "FPQ, preset 'paper'",
         'recommended': "FPQ, preset 'recommended'"}
# Colours that the colour-blind can tell apart (Okabe and Ito), and markers.
STYLES = {'lsq': ('#D55E00', 's'), 'fpq': ('#0072B2', 'o'),
          'recommended': ('#007A5A', 'D')}
# A method, and the one that it is compared with.
PAIRS = (('kd', 'lsq'), ('fpq', 'lsq'), ('fpq', 'kd'), ('sfp_kd', 'lsq'),
         ('sfp_kd', 'kd'), ('sfp_kd', 'fp'), ('fpq', 'lsq_plus'),
         ('fpq', 'pact'), ('recommended', 'lsq'), ('recommended', 'kd'),
         ('recommended', 'sfp_kd'), ('recommended', 'fp'))
# A method, the same with noise, and its p.
NOISE = (('lsq', 'sfp', 0.1), ('csd', 'fpq', 0.1), ('csd', 'fpq p=0.5', 0.5),
         ('kd', 'csd=0 kd=1 p=0.5', 0.5), ('csd=0 kd=3 p=0', 'sfp_kd', 0.5),
         ('csd=0 kd=10 p=0', 'csd=0 kd=10 p=0.5', 0.5))
# Where: a method, and what it is compared with; '@' where that is elsewhere.
CHOICES = {
    ('wide', 'w2a2'): (
        ('csd=10 kd=0 p=0.1', 'fpq'), ('csd=30 kd=0 p=0.1', 'fpq'),
        ('fpq channel_sum', 'fpq'), ('fpq lambda=0.3', 'fpq'),
        ('csd=0 kd=3 p=0', 'kd'), ('csd=0 kd=10 p=0', 'kd'),
        ('fpq p=0.3', 'fpq'), ('fpq p=0.5', 'fpq'), ('fpq p=0.7', 'fpq'),
        ('fpq before', 'fpq'), ('fpq sample', 'fpq'), ('per_tensor', 'fpq'),
        ('weight_noise', 'fpq'), ('fpq p annealed', 'fpq'),
        ('fpq lambda annealed', 'fpq'), ('fpq eps=0.01', 'fpq'),
        ('fpq last stage', 'fpq'), ('csd=3 kd=3 p=0.5', 'sfp_kd'),
        ('lsq_sam', 'lsq'), ('torch_ao', 'lsq')),
    ('resnet18', 'w2a4'): (('sfp_kd', 'csd=0 kd=3 p=0'), ),
    ('wide', 'w2a4'): (('lsq_sam', 'lsq'), ),
    ('wide', 'w4a4'): (('lsq_sam', 'lsq'), ),
    ('wide_weak_teacher', 'w2a2'): (
        ('kd', 'lsq'), ('fpq', 'lsq'), ('sfp_kd', 'lsq')),
    ('wide_160_epochs', 'w2a2'): (
        ('fpq', 'lsq'), ('sfp_kd', 'lsq'), ('sfp_kd', 'fp')),
    ('wide_5000_images', 'w2a2'): (
        ('fpq', 'lsq'), ('kd', 'lsq'), ('sfp_kd', 'lsq'), ('sfp_kd', 'fp')),
    ('mobilenet_slow_steps', 'w2a2'): (
        ('fpq', 'fpq @mobilenet'), ('lsq', 'lsq @mobilenet')),
    ('mobilenet_slow_steps', 'w4a4'): (
        ('fpq', 'fpq @mobilenet'), ('lsq', 'lsq @mobilenet')),
    ('mobilenet_clipped', 'w2a2'): (
        ('fpq', 'fpq @mobilenet'), ('lsq', 'lsq @mobilenet'),
        ('sfp_kd', 'lsq')),
}

_Rows = dict[tuple[str, str], list['Row']]


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
        to_fp (float, optional): The same difference to full precision.
        fp_margin (float, optional): Half its confidence interval.
    """

    method: str
    top1: dict[int, float]
    failed: int
    gain: float | None
    margin: float | None
    to_fp: float | None
    fp_margin: float | None

    @property
    def runs(self) -> int:
        """How many there were."""
        return len(self.top1) + self.failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=HERE / 'results')
    args = parser.parse_args()
    rows = collect(args.out / 'runs')
    for name, text in texts(rows).items():
        (args.out / name).write_text(text)
        print(text)
    rows = of_enough_seeds(rows)
    draw_shown(rows, args.out / 'accuracy.png')
    draw_study(rows.get(STUDIED, []), args.out / 'study.png')


def texts(rows: _Rows) -> dict[str, str]:
    """From a file's name to what it holds."""
    enough = of_enough_seeds(rows)
    return {'short.md': short(enough), 'summary.md': summary(enough),
            'intervals.md': intervals(enough), 'noise.md': noise(enough),
            'choices.md': choices(enough),
            'table.md': markdown(enough) + unfinished(rows)}


def of_enough_seeds(rows: _Rows) -> _Rows:
    """The rows that a table may show."""
    kept = {place: [row for row in group if row.runs >= MIN_SEEDS]
            for place, group in rows.items()}
    return {place: group for place, group in kept.items()
            if any(row.method != 'fp' for row in group)}


def unfinished(rows: _Rows) -> str:
    """The other rows, one a line."""
    lines = [f'* {model}, {bits.upper()}, {row.method}: '
             + ', '.join(f'{top1:.2f} (seed {seed})'
                         for seed, top1 in row.top1.items())
             for (model, bits), group in rows.items() for row in group
             if row.runs < MIN_SEEDS]
    if not lines:
        return ''
    return (f'\n## Fewer than {MIN_SEEDS} seeds yet\n\n' + '\n'.join(lines)
            + '\n')


def collect(folder: Path) -> _Rows:
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
    for runs in found.values():
        taught = {seed for method, tops in runs.items() if method != 'fp'
                  for seed in tops}
        for seed in runs.get('fp', {}).keys() - taught:
            del runs['fp'][seed]
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
    return Row(method, top1, len(runs[method]) - len(top1),
               *_over(runs, method, 'lsq'), *_over(runs, method, 'fp'))


def _over(runs: dict[str, dict[int, float | None]], method: str,
          base: str) -> tuple[float | None, float | None]:
    """The method's paired difference to another one."""
    pairs = _pairs(runs.get(base, {}), runs[method])
    if not pairs or method == base:
        return None, None
    return paired(list(pairs.values()))


def _pairs(base: dict[int, float | None],
           other: dict[int, float | None]) -> dict[int, float]:
    """Differences of the seeds that both have."""
    return {seed: value - base[seed] for seed, value in other.items()
            if value is not None and base.get(seed) is not None}


def paired(differences: list[float]) -> tuple[float, float | None]:
    """Mean, and half of its confidence interval by Student's t."""
    n = len(differences)
    mean = statistics.fmean(differences)
    if n < 2:
        return mean, None
    quantile = t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return mean, quantile * statistics.stdev(differences) / math.sqrt(n)


def compared(rows: _Rows) -> list[tuple[str, str]]:
    """The settings in which methods are held side by side."""
    return [place for place, group in rows.items() if place[0] in COMPARED_ON
            and len(shared(group)) >= MIN_SEEDS]


def shown(rows: _Rows) -> list[tuple[str, str]]:
    """The README's settings."""
    return [place for place, group in rows.items() if place[0] in SHOWN
            and len(shared(group, tuple(STYLES))) >= MIN_SEEDS]


def shared(group: list[Row], methods: tuple[str, ...] = MAIN) -> set[int]:
    """The seeds that all of some methods have."""
    seeds = {row.method: set(row.top1) for row in group}
    return set.intersection(*(seeds.get(method, set()) for method in methods))


def of_shared_seeds(group: list[Row],
                    methods: tuple[str, ...] = MAIN) -> list[Row]:
    """Rows that may be compared: of some methods, and their teachers'.

    The other methods' are of all seeds that they have. A failed run of a main
    one is of no shared seed.
    """
    common = shared(group, methods)
    runs = {row.method: {seed: top1 for seed, top1 in row.top1.items()
                         if seed in common
                         or row.method not in ('fp', *methods)}
            for row in group}
    rows = [
        replace(_row(row.method, runs),
                failed=0 if row.method in methods else row.failed)
        for row in group
    ]
    return [row for row in rows if row.runs >= MIN_SEEDS]


def summary(rows: _Rows) -> str:
    """Mean top-1 of the methods side by side, the best quantized one bold."""
    places = compared(rows)
    found = {place: of_shared_seeds(rows[place]) for place in places}
    means = {place: {row.method: statistics.fmean(row.top1.values())
                     for row in group if not row.failed}
             for place, group in found.items()}
    failed = {place: {row.method: f'{row.failed} of {row.runs} failed'
                      for row in group if row.failed}
              for place, group in found.items()}
    lines = ['| | ' + ' | '.join(f'{model}, {bits.upper()}'
                                 for model, bits in places) + ' |',
             '|---|' + '---|' * len(places)]
    for method in COMPARED:
        entries = []
        for place in places:
            value = means[place].get(method)
            best = max(v for m, v in means[place].items()
                       if m in COMPARED[1:])
            text = (failed[place].get(method, '') if value is None
                    else f'{value:.2f}')
            entries.append(f'**{text}**' if value == best else text)
        lines.append(f'| `{method}` | ' + ' | '.join(entries) + ' |')
    return '\n'.join(lines) + '\n'


def short(rows: _Rows) -> str:
    """Mean top-1 of the README's methods and models."""
    places = shown(rows)
    lines = ['| | ' + ' | '.join(f'{SHOWN[model]} {bits.upper()}'
                                 for model, bits in places) + ' |',
             '|---|' + '---|' * len(places)]
    means = {place: {row.method: f'{statistics.fmean(row.top1.values()):.2f}'
                     for row in of_shared_seeds(rows[place], tuple(STYLES))
                     if row.method in WORDS}
             for place in places}
    lines += [f'| {words} | '
              + ' | '.join(means[place][method] for place in places) + ' |'
              for method, words in WORDS.items()]
    return '\n'.join(lines) + '\n'


def intervals(rows: _Rows) -> str:
    """Paired differences of the main methods, of the summary's seeds."""
    lines = ['| | seeds | ' + ' | '.join(
        f'`{method}` over `{base}`' for method, base in PAIRS) + ' |',
        '|---|---|' + '---|' * len(PAIRS)]
    for model, bits in compared(rows):
        group = rows[model, bits]
        common = shared(group)
        runs = {row.method: {seed: top1 for seed, top1 in row.top1.items()
                             if seed in common} for row in group}
        # No line breaks within an interval.
        entries = [_gain(*_over(runs, method, base)).replace(
            ' to ', '\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}')
            if method in runs else '' for method, base in PAIRS]
        lines.append(f'| `{model}`, {bits.upper()} | {len(common)} | '
                     + ' | '.join(entries) + ' |')
    return '\n'.join(lines) + '\n'


def choices(rows: _Rows) -> str:
    """Paired differences of CHOICES."""
    lines = ['| where | method | over | points '
             f'({CONFIDENCE:.0%} interval) | pairs |', '|---|---|---|---|---|']
    for (model, bits), pairs in CHOICES.items():
        for method, base in pairs:
            base, _, other = base.partition(' @')
            tops, others = (
                {row.method: row.top1 for row in rows.get(place, ())}
                for place in ((model, bits), (other or model, bits)))
            if base not in others or method not in tops:
                continue
            found = list(_pairs(others[base], tops[method]).values())
            named = f'`{base}`' + (f' of `{other}`' if other else '')
            lines.append(f'| `{model}`, {bits.upper()} | `{method}` | {named} '
                         f'| {_gain(*paired(found))} | {len(found)} |')
    return '\n'.join(lines) + '\n'


def noise(rows: _Rows) -> str:
    """What noise adds to a method: by setting, and over networks.

    A network is a model and a seed: its runs at several bits have one
    teacher, so their mean counts once. STUDIED, where the amount of noise was
    chosen, is left out of the mean.
    """
    found = {place: {row.method: row.top1 for row in rows[place]}
             for place in compared(rows)}
    lines = ['| without, with noise | its p | ' + ' | '.join(
        f'{model}, {bits.upper()}' for model, bits in found)
        + f' | networks ({CONFIDENCE:.0%} interval), their number |',
        '|---|' + '---|' * (len(found) + 2)]
    for base, noisy, p in NOISE:
        networks, entries = defaultdict(list), []
        for place, runs in found.items():
            pairs = _pairs(runs.get(base, {}), runs.get(noisy, {}))
            entries.append(
                f'{statistics.fmean(pairs.values()):+.2f} ({len(pairs)})'
                if pairs else '')
            if place != STUDIED:
                for seed, difference in pairs.items():
                    networks[place[0], seed].append(difference)
        means = [statistics.fmean(each) for each in networks.values()]
        pooled = f'{_gain(*paired(means))}, {len(means)}' if means else ''
        lines.append(f'| `{base}`, `{noisy}` | {p} | ' + ' | '.join(entries)
                     + f' | {pooled} |')
    return '\n'.join(lines) + '\n'


def _gain(mean: float | None, margin: float | None) -> str:
    if mean is None:
        return ''
    text = f'{mean:+.2f}'
    if margin is None:
        return text
    return f'{text} ({mean - margin:+.2f} to {mean + margin:+.2f})'


def markdown(rows: _Rows) -> str:
    """All settings' tables."""
    lines = ['# Top-1 on Fashion-MNIST after training on 1,000 images', '',
             'Made by `python benchmarks/accuracy/report.py` from '
             '`results/runs/`; method names are those of '
             '`benchmarks/accuracy/cells.py`.', '']
    for (model, bits), group in rows.items():
        lines += [f'## {model}, {bits.upper()}', '',
                  '| method | seeds | mean | std | to LSQ, paired '
                  f'({CONFIDENCE:.0%} interval) | to FP |',
                  '|---|---|---|---|---|---|']
        for row in group:
            values = list(row.top1.values())
            mean = f'{statistics.fmean(values):.2f}' if values else '-'
            std = f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-'
            gains = [_gain(*each) for each in (
                (row.gain, row.margin), (row.to_fp, row.fp_margin))]
            failed = f' + {row.failed} failed' if row.failed else ''
            lines.append(f'| {row.method} | {len(values)}{failed} | {mean} | '
                         f'{std} | {" | ".join(gains)} |')
        lines.append('')
    return '\n'.join(lines)


def draw_shown(rows: _Rows, path: Path) -> None:
    """The README's picture: distance from full precision over bits.

    The distance is paired, since a teacher's seed moves its students with
    it by more than one method differs from another.
    """
    plt = _pyplot()
    fig, axes = plt.subplots(1, len(SHOWN), figsize=(8, 3.4), sharey=True,
                             layout='constrained')
    for axis, (model, title) in zip(axes, SHOWN.items()):
        places = [place for place in shown(rows) if place[0] == model]
        axis.axhline(0, color='black', linestyle='--', linewidth=1.2)
        for shift, (method, (color, marker)) in zip((-0.06, 0, 0.06),
                                                    STYLES.items()):
            found = [_to_teacher(rows[place], method) for place in places]
            axis.errorbar(
                [x + shift for x in range(len(places))],
                [mean for mean, _ in found], yerr=[e for _, e in found],
                color=color, marker=marker, markersize=5, capsize=3,
                linewidth=1.8, elinewidth=1)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(places)),
                        [bits.upper() for _, bits in places])
        axis.set_xlim(-0.35, len(places) - 0.65)
        axis.grid(axis='y', color='#dddddd', linewidth=0.6)
        axis.spines[['top', 'right']].set_visible(False)
    numbers = {len(shared(rows[place], tuple(STYLES)))
               for place in shown(rows)}
    axes[0].set_ylabel('top-1, points from full precision')
    _label(axes[0])
    fig.supxlabel(
        'Bits of weights and activations. Means over '
        f'{" or ".join(map(str, sorted(numbers)))} seeds; bars: one standard '
        'error of the paired difference.', fontsize=9)
    fig.savefig(path, dpi=200)


def _to_teacher(group: list[Row], method: str) -> tuple[float, float]:
    """Mean paired difference to full precision, and its standard error."""
    tops = {row.method: row.top1
            for row in of_shared_seeds(group, tuple(STYLES))}
    found = list(_pairs(tops['fp'], tops[method]).values())
    return (statistics.fmean(found),
            statistics.stdev(found) / math.sqrt(len(found)))


def _label(axis) -> None:
    """The lines' names, in their colours, where the first panel is empty."""
    axis.text(0.03, 0.42, WORDS['fp'] + ' (dashed)',
              transform=axis.transAxes, fontsize=9)
    for number, (method, (color, _)) in enumerate(reversed(STYLES.items())):
        axis.text(0.03, 0.33 - 0.09 * number, WORDS[method], color=color,
                  transform=axis.transAxes, fontsize=9, fontweight='bold')


def draw_study(group: list[Row], path: Path) -> None:
    """Points over LSQ of every choice that was studied in one setting."""
    plt = _pyplot()
    group = [row for row in group if row.gain is not None]
    fig, axis = plt.subplots(figsize=(6.5, 1 + 0.2 * len(group)),
                             layout='constrained')
    axis.errorbar([row.gain for row in group], range(len(group)),
                  xerr=[row.margin or 0 for row in group], fmt='o',
                  color='#0072B2', capsize=3)
    axis.set_yticks(range(len(group)), [row.method for row in group])
    axis.axvline(0, color='k', linewidth=0.8)
    axis.grid(axis='x', color='#dddddd', linewidth=0.6)
    axis.invert_yaxis()
    model, bits = STUDIED
    axis.set_title(f'{model}, {bits.upper()}')
    axis.set_xlabel(f'points over LSQ, with {CONFIDENCE:.0%} intervals')
    fig.savefig(path, dpi=100)


def _pyplot():
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    return pyplot


if __name__ == '__main__':
    main()
