"""Latency of exported files in engines, beside FP32 and the engine's own PTQ.

Each model of mmpretrain has random weights, and batch norms fitted to the
images. Three files of it are opened in an engine and called in turn, one image
a call: full precision, the engine's own post-training quantization to 8 bits,
and ours. Ratios are medians over the rounds of such turns. Rows that are there
are kept:

    python benchmarks/engines.py
    python benchmarks/engines.py --models resnet18 --bits w8a8 --again
    python benchmarks/engines.py --profile mobilenet_v2 w8a8
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
from machine import made_by
from models import ZOO, zoo_model
from runtimes import ENGINES, Engine, Kernel, Run, Subject
from stability import images as fashion_mnist
from timing import interleaved
from torch import Tensor
from torch.nn.functional import interpolate

import fpq_plugin
from fpq_plugin import Recipe
from fpq_plugin.export import ExportReport, parity
from fpq_plugin.export.formats import format_of

ROOT = Path(__file__).resolve().parents[1]
BITS = ('w8a8', 'w4a4', 'w2a2')
KINDS = dict(float='FP32', own='own PTQ', ours='ours')
RATIOS = (('ours', 'float'), ('own', 'float'), ('ours', 'own'))
PIXELS, WARM_UP = 224, 3


# -- files ----------------------------------------------------------------

def some_images(number: int, data: Path) -> Tensor:
    """Images of Fashion-MNIST, enlarged, in three channels."""
    small, _ = fashion_mnist(data, 'train', number)
    return interpolate(small, (PIXELS, PIXELS), mode='bilinear').repeat(
        1, 3, 1, 1)


class Exported:
    """The file that we make of a model.

    Args:
        subject (Subject): The model.
        bits (str): As 'w4a4'.
        target (str, optional): The engine that it is for; None: any.
        ending (str): Of the file.
    """

    def __init__(self, subject: Subject, bits: str, target: str | None,
                 ending: str) -> None:
        model, images = copy.deepcopy(subject.model), subject.images
        Recipe(bits=bits, perturbation=None, distillation=None,
               target=target).convert(model)
        options = {}
        if target is not None:
            fpq_plugin.add_joints(model, images, target=target)
            options['target'] = target
        fpq_plugin.calibrate(model, [images])
        self.report: ExportReport | None = None

        def make(path: Path) -> None:
            # Random weights leave many classes close to the best, and deep
            # networks of them magnify a value that is rounded the other way:
            # in MobileNetV2 torch in float64 differs by 13 % from itself.
            with mock.patch.object(parity, 'MEAN_DIFFERENCE', math.inf):
                self.report = format_of(path).write(
                    model, path, [(images, None)], tolerance=100, **options)

        self.path = subject.file(f'{bits}_{target}{ending}', make)
        with torch.no_grad():
            self.outputs = model(images).numpy()


class Files:
    """The files of one model, each made once.

    Args:
        subject (Subject): The model.
        for_engines (bool): Whether ours are made for the engine that is to
            take them, or for any.
    """

    def __init__(self, subject: Subject, for_engines: bool) -> None:
        self.subject = subject
        self.for_engines = for_engines
        self._exported: dict[tuple, Exported] = {}

    def target(self, engine: Engine) -> str | None:
        """What our file is for."""
        return engine.target if self.for_engines else None

    def exported(self, engine: Engine, bits: str) -> Exported:
        """Our file."""
        which = bits, self.target(engine), engine.ending
        if which not in self._exported:
            self._exported[which] = Exported(self.subject, *which)
        return self._exported[which]

    def all(self, engine: Engine, bits: str) -> dict[str, Callable]:
        """Kind to a function that makes the file."""
        makes = dict(
            float=partial(engine.float_file, self.subject),
            own=partial(engine.own_file, self.subject))
        makes['ours'] = lambda: self.exported(engine, bits).path
        return makes


def attempt(makes: dict[str, Callable]) -> tuple[dict, dict[str, str]]:
    """What the functions return, and the messages of those that raise."""
    done, errors = {}, {}
    for name, make in makes.items():
        try:
            done[name] = make()
        except Exception as error:
            errors[name] = f'{type(error).__name__}: {error}'[:500]
    return done, errors


# -- measuring ------------------------------------------------------------

def measure(engine: Engine, files: Files, bits: str, rounds: int) -> dict:
    """One row: the three files of a model in an engine.

    Args:
        engine (Engine): Where they run.
        files (Files): Those of the model.
        bits (str): Of ours.
        rounds (int): Calls of each that count.

    Returns:
        dict: Per kind of file time, size, kernels and the difference of its
        outputs to torch's; ratios of times as median and quartiles; parity
        by the export; messages of what could not be made or opened.
    """
    subject = files.subject
    image = next(subject.each_image())
    paths, errors = attempt(files.all(engine, bits))
    runs, more = attempt({kind: partial(opened, engine, path, image)
                          for kind, path in paths.items()})
    errors.update(more)
    times, _ = interleaved(
        {kind: partial(run, image) for kind, run in runs.items()},
        range(WARM_UP + rounds))
    times = {kind: each[WARM_UP:] for kind, each in times.items()}
    row = dict(
        model=subject.name, bits=bits, engine=engine.title,
        version=engine.version(), target=files.target(engine), rounds=rounds)
    for kind, run in runs.items():
        ours = kind == 'ours'
        kernels = engine.kernels(paths[kind], image, 1)
        row[kind] = dict(
            milliseconds=round(1e3 * median(times[kind]), 3),
            bytes=size(paths[kind]),
            difference=difference(
                run, subject, files.exported(engine, bits).outputs if ours
                else subject.outputs),
            kernels=len(kernels), integer=sum(k.integer for k in kernels),
            kinds=dict(Counter(k.kind for k in kernels).most_common()))
    row['ratios'] = {
        f'{a}/{b}': spread([x / y for x, y in zip(times[a], times[b])])
        for a, b in RATIOS if a in times and b in times
    }
    if 'ours' in paths:
        row['parity'] = files.exported(engine, bits).report.parity.as_dict()
    return dict(row, errors=errors) if errors else row


def opened(engine: Engine, path: Path, image: np.ndarray) -> Run:
    """The file, opened, and called once to see that it runs."""
    run = engine.open(path, image.shape)
    run(image)
    return run


def spread(values: list[float]) -> list[float]:
    """Median and quartiles."""
    low, middle, high = quantiles(values, n=4)
    return [round(x, 4) for x in (middle, low, high)]


def size(path: Path) -> int:
    """Bytes of a file, and of the weights beside it."""
    weights = path.with_suffix('.bin')
    return path.stat().st_size + (
        weights.stat().st_size if weights.exists() else 0)


def difference(run: Run, subject: Subject, wanted: np.ndarray) -> float:
    """Mean difference of outputs over their spread."""
    found = np.concatenate([run(x).copy() for x in subject.each_image()])
    return float(abs(found - wanted).mean() / wanted.std())


# -- profile --------------------------------------------------------------

def profile(engine: Engine, files: Files, bits: str, calls: int,
            slowest: int = 12) -> str:
    """Where the time goes by the engine's own profiler, as text.

    Args:
        engine (Engine): Where the files run.
        files (Files): Those of a model.
        bits (str): Of ours.
        calls (int): Times of a kernel are medians of as many.
        slowest (int): So many of our kernels that do not compute on integers
            are listed one by one. Defaults to 12.
    """
    image = next(files.subject.each_image())
    paths, errors = attempt(files.all(engine, bits))
    found, more = attempt({
        kind: partial(engine.kernels, path, image, calls)
        for kind, path in paths.items()
    })
    kinds = [kind for kind in ('ours', 'own', 'float') if kind in found]
    parts = {kind: by_kind(found[kind]) for kind in kinds}
    totals = {kind: sum(k.seconds for k in found[kind]) for kind in kinds}
    lines = [f'{engine.title}: {files.subject.name} {bits.upper()}, '
             'milliseconds, share of the time, kernels',
             ' ' * 42 + ''.join(f'{KINDS[kind]:^26}' for kind in kinds)]

    def line(title: str, cells: list[tuple[float, int] | None]) -> str:
        text = [
            f'{1e3 * cell[0]:10.3f}{100 * cell[0] / totals[kind]:7.1f} %'
            f'{cell[1]:5}  ' if cell else f'{"-":>10}{"":16}'
            for kind, cell in zip(kinds, cells)
        ]
        return (f'{title:42}' + ''.join(text)).rstrip()

    order = {name: max((parts[kind].get(name, (0, 0))[0], -number)
                       for number, kind in enumerate(kinds))
             for name in set().union(*parts.values())}
    for name in sorted(order, key=order.get, reverse=True):
        lines.append(line(name, [parts[kind].get(name) for kind in kinds]))
    for title, integer in (('integer kernels', True), ('others', False)):
        lines.append(line(title, [
            (sum(k.seconds for k in found[kind] if k.integer == integer),
             sum(k.integer == integer for k in found[kind]))
            for kind in kinds]))
    lines.append(line('all', [
        (totals[kind], len(found[kind])) for kind in kinds]))
    lines += ['', 'Our slowest that do not compute on integers:']
    others = [k for k in found.get('ours', ()) if not k.integer]
    others.sort(key=lambda k: -k.seconds)
    lines += [f'{1e3 * k.seconds:8.3f} ms  {k.kind}  {k.shape}  {k.name}'
              for k in others[:slowest]]
    lines += [f'{KINDS[kind]}: {message}'
              for kind, message in {**errors, **more}.items()]
    return '\n'.join(lines)


def by_kind(kernels: list[Kernel]) -> dict[str, tuple[float, int]]:
    """Kind to seconds and number."""
    sums: dict[str, tuple[float, int]] = {}
    for kernel in kernels:
        seconds, number = sums.get(kernel.kind, (0.0, 0))
        sums[kernel.kind] = seconds + kernel.seconds, number + 1
    return sums


# -- results --------------------------------------------------------------

def key(row: dict) -> tuple[str, str, str]:
    """What a row is known by."""
    return row['model'], row['bits'], row['engine']


def in_order(rows: list[dict]) -> list[dict]:
    """The rows by model, bits and engine, as in the lists of this file."""
    titles = [engine.title for engine in ENGINES.values()]
    return sorted(rows, key=lambda row: (
        list(ZOO).index(row['model']), BITS.index(row['bits']),
        titles.index(row['engine'])))


def engines_of(rows: list[dict]) -> list[str]:
    """The engines that have rows."""
    return [engine.title for engine in ENGINES.values()
            if any(row['engine'] == engine.title for row in rows)]


def table(rows: list[dict]) -> str:
    """Ratios and integer kernels, a line for each model and bits."""
    engines = engines_of(rows)
    found = {key(row): row for row in rows}
    head = ['model', 'bits']
    for engine in engines:
        head += [f'{engine}: ours / FP32', 'own PTQ / FP32', 'ours / own PTQ',
                 'integer kernels: ours', 'own PTQ']
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for model, (title, _) in ZOO.items():
        for bits in BITS:
            mine = [found.get((model, bits, engine)) for engine in engines]
            if any(mine):
                cells = [cell for row in mine for cell in _cells(row)]
                lines.append(
                    f'| {" | ".join([title, bits.upper(), *cells])} |')
    for bits in BITS:
        cells = []
        for engine in engines:
            means = [_mean(rows, bits, engine, a, b) for a, b in RATIOS]
            cells += [*means, '', '']
        if any(cells):
            lines.append(f'| geometric mean | {bits.upper()} | '
                         f'{" | ".join(cells)} |')
    return '\n'.join(lines)


def _cells(row: dict | None) -> Iterator[str]:
    for a, b in RATIOS:
        ratio = row and row['ratios'].get(f'{a}/{b}')
        yield f'{ratio[0]:.2f}' if ratio else '-'
    for kind in ('ours', 'own'):
        part = row and row.get(kind)
        yield (f'{part["integer"]} of {part["kernels"]}'
               if part and part['kernels'] else '-')


def _mean(rows: list[dict], bits: str, engine: str, a: str, b: str) -> str:
    values = [row['ratios'][f'{a}/{b}'][0] for row in rows
              if (row['bits'], row['engine']) == (bits, engine)
              and f'{a}/{b}' in row['ratios']]
    return f'{geometric_mean(values):.2f}' if values else ''


def draw(rows: list[dict], file: Path) -> None:
    """One panel an engine: a line a model, time over full precision."""
    engines = engines_of(rows)
    models = [name for name in ZOO if any(
        row['model'] == name for row in rows)]
    marks = dict(zip(BITS, (('C0', 'o'), ('C1', 's'), ('C2', '^'))))
    figure, axes = plt.subplots(
        1, len(engines), figsize=(1.5 + 4.2 * len(engines),
                                  1.6 + 0.42 * len(models)),
        sharey=True, layout='constrained', squeeze=False)
    for engine, axis in zip(engines, axes[0]):
        mine = [row for row in rows if row['engine'] == engine]

        def points(a: str, bits: tuple[str, ...],
                   mine: list[dict] = mine) -> list[float]:
            return [_or_nan([
                row['ratios'][f'{a}/float'][0] for row in mine
                if row['model'] == name and row['bits'] in bits
                and f'{a}/float' in row['ratios']]) for name in models]

        heights = np.arange(len(models))
        axis.scatter(points('own', BITS), heights, marker='|', s=160,
                     linewidths=2.5, color='0.45', zorder=2,
                     label="the engine's own PTQ, 8 bits")
        for number, (bits, (color, mark)) in enumerate(marks.items()):
            axis.scatter(points('ours', (bits, )),
                         heights + 0.16 * (number - 1), marker=mark, s=28,
                         color=color, zorder=3, label=f'ours, {bits.upper()}')
        axis.axvline(1, color='k', lw=1, zorder=1)
        axis.set(title=engine, xlabel='time / FP32', xlim=(0, None),
                 ylim=(len(models) - 0.5, -0.5), yticks=heights,
                 yticklabels=[ZOO[n][0] for n in models])
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8,
                  loc='outside lower center', ncols=4)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _or_nan(values: list[float]) -> float:
    return median(values) if values else math.nan


def save(rows: list[dict], made: dict, out: Path) -> None:
    """Write rows, table and picture."""
    part = out.with_suffix('.part')
    part.write_text(json.dumps(
        dict(made, rows=in_order(rows)), indent=1) + '\n')
    part.replace(out)
    out.with_suffix('.md').write_text(table(rows) + '\n')
    if rows:
        draw(rows, out.with_suffix('.png'))


# -- the command ----------------------------------------------------------

def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [name for name, engine in ENGINES.items() if not engine.missing()]
    parser.add_argument('--models', nargs='+', choices=ZOO, default=list(ZOO))
    parser.add_argument('--bits', nargs='+', choices=BITS, default=BITS)
    parser.add_argument('--engines', nargs='+', choices=here, default=here)
    parser.add_argument('--rounds', type=int, default=40)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--images', type=int, default=8,
                        help='of calibration and comparison')
    parser.add_argument('--data', type=Path,
                        default=Path('data/fashion_mnist'))
    parser.add_argument('--no-target', action='store_true',
                        help='make our files for no engine, without joints')
    parser.add_argument('--again', action='store_true',
                        help='measure rows that are there, too')
    parser.add_argument('--profile', nargs=2, metavar=('MODEL', 'BITS'),
                        help="print the engine's own profile instead")
    parser.add_argument('--calls', type=int, default=20,
                        help='of each file in a profile')
    parser.add_argument('--out', type=Path,
                        default=ROOT / 'benchmarks/results/engines.json')
    args = parser.parse_args()
    if args.profile:
        name, bits = args.profile
        if name not in ZOO or bits not in BITS:
            parser.error(f'--profile takes one of {", ".join(ZOO)} and one '
                         f'of {", ".join(BITS)}')
        args.models, args.bits = [name], [bits]
    return args


def main() -> None:
    """Measure what is asked for and has no row, or print profiles."""
    args = parse()
    os.environ.setdefault('FPQ_COMPILE', '0')
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    engines = [ENGINES[name](args.threads) for name in args.engines]
    made = dict(made_by(args.threads), images=args.images)
    rows = ({key(row): row for row in json.loads(args.out.read_text())['rows']}
            if args.out.exists() else {})

    def wanted(name: str, bits: str, engine: Engine) -> bool:
        row = rows.get((name, bits, engine.title))
        target = None if args.no_target else engine.target
        return (bool(args.profile) or args.again or row is None
                or 'errors' in row or row['target'] != target)

    images = some_images(args.images, args.data)
    for name in args.models:
        todo = [(bits, engine) for bits in args.bits for engine in engines
                if wanted(name, bits, engine)]
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = Files(
                Subject(name, zoo_model(name, images), images, Path(folder)),
                not args.no_target)
            for bits, engine in todo:
                if args.profile:
                    print(profile(engine, files, bits, args.calls), '\n')
                    continue
                row = measure(engine, files, bits, args.rounds)
                rows[key(row)] = row
                save(list(rows.values()), made, args.out)
                print(name, bits, engine.title, row['ratios'],
                      row.get('errors', ''), flush=True)
    if not args.profile:
        print(table(list(rows.values())))


if __name__ == '__main__':
    main()
