"""Does a first run hold? Small models x rates x bits, for several recipes.

Each of twelve models is trained in full precision on 1,024 images of
Fashion-MNIST, and then quantized and trained on at five rates around that of
its full-precision training. Nothing is tuned. A run holds if it ends within 5
points of the same recipe's best rate; it diverges if it ends 20 points below
that, or in a value that is not finite. The rates at which full precision
itself, trained on in the same way, does not hold are not held against a
recipe.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from machine import made_by
from rich.progress import track
from small_models import CHANNELS, SMALL
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import fpq_plugin
from fpq_plugin.convert import noise_clock
from fpq_plugin.optimizer_watch import watch
from fpq_plugin.recipe import Recipe

LSQ = dict(type='LSQFakeQuantize')


def _fading(by: float) -> dict:
    return dict(distillation=[
        dict(type='CSDLoss', fades='out', fades_by=by),
        dict(type='LogitKD', loss_weight=3.0, fades='in', fades_by=by)])


RECIPES: dict[str, dict | None] = {
    'full precision': None,
    'paper': dict(preset='paper'),
    'recommended': {},
    'running statistics': dict(batch_norms=None),
    # When CSD has given way to the logits: a share of the training, or as
    # many iterations.
    **{f'recommended, fades_by={by}': _fading(by) for by in (1.0, 64)},
    **{f'running statistics, fades_by={by}': dict(
        _fading(by), batch_norms=None) for by in (1.0, 0.25)},
    # What each part of it does.
    'steps by their size': dict(
        weight=LSQ, activation=dict(LSQ, observer='mse')),
    'ranges of min and max': dict(activation=dict(observer='min_max')),
    'sum of the losses': dict(objective='sum'),
    'logits alone': dict(
        distillation=dict(type='LogitKD', loss_weight=3.0, temperature=4.0)),
    'layers alone': dict(distillation=dict(type='CSDLoss')),
    'no distillation': dict(perturbation=None, distillation=None),
    'no noise': dict(perturbation=None),
}
"""Name to the options of the hook; None trains in full precision."""

BITS = ('w4a4', 'w2a4', 'w2a2')
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
TRAIN, TEST, CALIBRATION = 1024, 1000, 100
HOLDS, DIVERGES = 5.0, 20.0


def images(folder: Path, part: str, number: int) -> tuple[Tensor, Tensor]:
    """The first images of a part, (N, 1, 28, 28), and labels (N,)."""
    raw = np.fromfile(folder / f'{part}-images-idx3-ubyte', np.uint8,
                      16 + number * 784)[16:]
    labels = np.fromfile(folder / f'{part}-labels-idx1-ubyte', np.uint8,
                         8 + number)[8:]
    x = torch.from_numpy(raw.reshape(number, 1, 28, 28).astype(np.float32))
    return (x - 73) / 90, torch.from_numpy(labels.astype(np.int64))


class Trainer:
    """One model and its data, in this process.

    Args:
        name (str): Key of :data:`SMALL`.
        data (Path): Folder of Fashion-MNIST's files.
        cache (Path): Folder that keeps the full-precision weights.
    """

    def __init__(self, name: str, data: Path, cache: Path) -> None:
        self.build, self.rate = SMALL[name]
        self.train_set, self.test_set = (
            (x.expand(-1, 3 if name in CHANNELS else 1, -1, -1), y)
            for x, y in (images(data, 'train', TRAIN),
                         images(data, 't10k', TEST)))
        self.file = cache / f'{name}.pth'

    def full_precision(self, epochs: int = 12) -> nn.Module:
        """The trained model; trained at the first call."""
        torch.manual_seed(0)
        model = self.build()
        if not self.file.exists():
            steps = epochs * TRAIN // 64
            optimizer = _optimizer(model, 'sgd', self.rate)
            scheduler = CosineAnnealingLR(optimizer, steps)
            for x, y in self.batches(64, steps, 0):
                _step(optimizer, F.cross_entropy(model(x), y))
                scheduler.step()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), self.file)
        model.load_state_dict(torch.load(self.file))
        return model

    def quantized(self, options: dict | None, factor: float, kind: str,
                  batch: int, steps: int, seed: int) -> dict:
        """Train on from full precision; what came of it.

        Args:
            options (dict, optional): Of the hook; None: stay float.
            factor (float): On the rate of the full-precision training.
            kind (str): 'sgd' or 'adam'.
            batch (int): Images an iteration.
            steps (int): Iterations.
            seed (int): Of the images' order and the noise.
        """
        model = self.full_precision()
        result = dict(start=self.top1(model))
        distiller = None
        if options is not None:
            recipe, teacher = Recipe(**options), copy.deepcopy(model)
            recipe.convert(model)
            watch(model)
            fpq_plugin.calibrate(model, [self.train_set[0][:CALIBRATION]])
            result['calibrated'] = self.top1(model)
            if recipe.distillation:
                distiller = fpq_plugin.Distiller(
                    model, teacher, recipe.losses(), warn=lambda text: None)
        torch.manual_seed(seed)
        clock = noise_clock(model)
        if clock is not None:
            clock.seed = seed
        optimizer = _optimizer(
            model, kind, factor * (self.rate if kind == 'sgd' else 2e-3))
        scheduler = CosineAnnealingLR(optimizer, steps)
        model.train()
        losses = []
        for step, (x, y) in enumerate(self.batches(batch, steps, seed)):
            if clock is not None:
                clock.start_iteration(step)
            loss = F.cross_entropy(model(x), y)
            losses.append(float(loss.detach()))
            if distiller is not None:
                distiller.set_progress(step, steps)
                loss = (distiller.mean_with(loss) if recipe.objective == 'mean'
                        else loss + distiller.loss())
            if not torch.isfinite(loss):
                return dict(result, losses=_rounded(losses), top1=None)
            _step(optimizer, loss)
            scheduler.step()
        if options is not None and recipe.batch_norm_images():
            fpq_plugin.reestimate_batch_norms(
                model, (x for x, _ in self.batches(
                    batch, recipe.batch_norm_images() // batch, seed)))
        return dict(result, losses=_rounded(losses), top1=self.top1(model))

    def batches(self, size: int, steps: int,
                seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of training images and labels, each epoch in an order."""
        generator = torch.Generator().manual_seed(seed)
        x, y = self.train_set
        order = torch.cat([
            torch.randperm(TRAIN, generator=generator)
            for _ in range(math.ceil(steps * size / TRAIN))
        ])
        for picked in order[:steps * size].split(size):
            yield x[picked], y[picked]

    @torch.no_grad()
    def top1(self, model: nn.Module) -> float:
        """Share of the test images that are classified right, in %."""
        model.eval()
        x, y = self.test_set
        right = sum(
            int((model(a).argmax(1) == b).sum())
            for a, b in zip(x.split(250), y.split(250)))
        return 100 * right / TEST


def _optimizer(model: nn.Module, kind: str,
               rate: float) -> torch.optim.Optimizer:
    groups = fpq_plugin.param_groups(model, lr=rate, weight_decay=5e-4)
    if kind == 'sgd':
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def run(name: str, recipe: str, bits: str, factor: float,
        args: argparse.Namespace) -> dict:
    """One run, in a process of the pool."""
    torch.set_num_threads(1)
    options = RECIPES[recipe]
    if options is not None:
        options = dict(options, bits=bits, backend=args.backend)
    trainer = Trainer(name, args.data, args.cache)
    result = trainer.quantized(options, factor, args.optimizer, args.batch,
                               args.steps, args.seed)
    return dict(model=name, recipe=recipe, bits=bits, factor=factor,
                optimizer=args.optimizer, batch=args.batch,
                steps=args.steps, backend=args.backend, seed=args.seed,
                **result)


def key(row: dict) -> tuple:
    """What a run is known by."""
    return tuple(row[k] for k in ('model', 'recipe', 'bits', 'factor',
                                  'optimizer', 'batch', 'steps', 'backend',
                                  'seed'))


def verdicts(rows: list[dict]) -> list[dict]:
    """Rows with ``lost``, points below the best rate of the same run."""
    best: dict[tuple, float] = {}
    for row in rows:
        other = key(dict(row, factor=0))
        best[other] = max(best.get(other, 0.0), row['top1'] or 0.0)
    return [
        dict(row, lost=best[key(dict(row, factor=0))] - row['top1']
             if row['top1'] is not None else math.inf) for row in rows
    ]


def table(rows: list[dict]) -> str:
    """Runs that diverged and that did not hold, by recipe and bits."""
    rows = verdicts(rows)
    holds = {
        (row['model'], row['optimizer'], row['batch'], row['steps'],
         row['factor']) for row in rows
        if row['recipe'] == 'full precision' and row['lost'] <= HOLDS
    }
    lines = ['| optimizer, batch, iterations | recipe | bits | runs | '
             'diverged | lost more than 5 points | top-1, mean of models | '
             'at the best rates |',
             '|---|---|---|---|---|---|---|---|']
    rows = [row for row in rows if (
        row['model'], row['optimizer'], row['batch'], row['steps'],
        row['factor']) in holds]

    def group(row: dict) -> tuple:
        return (row['optimizer'], row['batch'], row['steps'], row['backend'],
                list(RECIPES).index(row['recipe']), row['bits'])

    for which, part in itertools.groupby(sorted(rows, key=group), group):
        mine = list(part)
        reached: dict[str, list[float]] = {}
        for row in mine:
            reached.setdefault(row['model'], []).append(row['top1'] or 10.0)
        lines.append(
            f'| {which[0]}, {which[1]}, {which[2]} | {mine[0]["recipe"]}'
            f'{"" if which[3] == "torch_ao" else ", " + which[3]} | '
            f'{which[5]} | {len(mine)} | '
            f'{sum(row["lost"] > DIVERGES for row in mine)} | '
            f'{sum(row["lost"] > HOLDS for row in mine)} | '
            f'{np.mean([np.mean(each) for each in reached.values()]):.2f} | '
            f'{np.mean([max(each) for each in reached.values()]):.2f} |')
    return '\n'.join(lines)


def draw(rows: list[dict], bits: str, file: Path) -> None:
    """One panel a model: top-1 over the rate, a line a recipe."""
    shown = {'full precision': ('0.5', '--'), 'paper': ('C1', '-'),
             'recommended': ('C0', '-')}
    figure, axes = plt.subplots(3, 4, figsize=(11, 7), sharex=True,
                                sharey=True, layout='constrained')
    for name, axis in zip(SMALL, axes.flat):
        for recipe, (color, style) in shown.items():
            mine = sorted(
                (row['factor'], row['top1'] or 10.0) for row in rows
                if row['model'] == name and row['recipe'] == recipe
                and row['optimizer'] == 'sgd' and row['batch'] == 64
                and row['steps'] == 48
                and row['bits'] in (bits, 'w32a32'))
            if mine:
                axis.plot(*zip(*mine), color=color, ls=style, marker='o',
                          ms=4, label=recipe)
        axis.set(title=name, xscale='log', ylim=(0, 90))
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("rate / full precision's")
    for axis in axes[:, 0]:
        axis.set_ylabel('top-1 (%)')
    axes.flat[0].legend(fontsize=8, loc='lower left')
    figure.suptitle(f'After 48 iterations at {bits.upper()}; 10 is chance, '
                    'or a value that is not finite')
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is asked for and has no row; write rows and table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', choices=SMALL,
                        default=list(SMALL))
    parser.add_argument('--recipes', nargs='+', choices=RECIPES,
                        default=list(RECIPES))
    parser.add_argument('--bits', nargs='+', default=BITS)
    parser.add_argument('--rates', nargs='+', type=float, default=RATES)
    parser.add_argument('--optimizer', choices=('sgd', 'adam'), default='sgd')
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--steps', type=int, default=48)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--backend', default='torch_ao')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--data', type=Path,
                        default=Path('data/fashion_mnist'))
    parser.add_argument('--cache', type=Path,
                        default=Path('work_dirs/stability'))
    parser.add_argument('--out', type=Path,
                        default=Path('benchmarks/results/stability.json'))
    args = parser.parse_args()
    os.environ.setdefault('FPQ_COMPILE', '0')
    torch.set_num_threads(1)
    rows = (json.loads(args.out.read_text())['rows']
            if args.out.exists() else [])
    known = {key(row) for row in rows}
    todo = [
        (name, recipe, bits, factor)
        for name, recipe in itertools.product(args.models, args.recipes)
        for bits in (args.bits if RECIPES[recipe] is not None else ['w32a32'])
        for factor in args.rates
        if (name, recipe, bits, factor, args.optimizer, args.batch,
            args.steps, args.backend, args.seed) not in known
    ]
    for name in args.models:
        Trainer(name, args.data, args.cache).full_precision()
    with ProcessPoolExecutor(args.workers) as pool:
        waiting = [pool.submit(run, *each, args) for each in todo]
        for done in track(as_completed(waiting), 'runs', len(waiting)):
            rows.append(done.result())
            part = args.out.with_suffix('.part')
            part.write_text(json.dumps(
                dict(made_by(1), rows=sorted(rows, key=key)), indent=0))
            part.replace(args.out)
    args.out.with_suffix('.md').write_text(table(rows) + '\n')
    for bits in {row['bits'] for row in rows} & set(BITS):
        draw(rows, bits, args.out.with_name(f'stability_{bits}.png'))
    print(table(rows))


if __name__ == '__main__':
    main()
