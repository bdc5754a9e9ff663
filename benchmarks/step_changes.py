"""How much one update changes a learned step, and why.

SGD at rate r changes a step s that is learned by its size by ``r g dL/ds``,
with LSQ's factor g, and so its logarithm by ``r (g / s^2) (s dL/ds)``. One
that is learned in the logarithm changes by ``r (s dL/ds)``. The two differ by
``g / s^2``, which is no property of the loss: it is large where steps are
small (weights) and where few elements share one (a channel).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from machine import made_by
from rich.progress import track
from small_models import SMALL
from stability import CALIBRATION, RECIPES, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

import fpq_plugin
from fpq_plugin.quantizers import named_quantizers
from fpq_plugin.recipe import Recipe

UPDATES = 10


def logs(model: nn.Module, part: str) -> Tensor:
    """Logarithms of all steps of 'weight' or 'input' quantizers, (S,)."""
    return torch.cat([
        quantizer.step().log()
        for name, quantizer in named_quantizers(model).items() if part in name
    ])


def changes(name: str, recipe: Recipe, data: Path, cache: Path) -> dict:
    """The largest change of a step in the first updates, by part.

    Nothing bounds the change here.
    """
    trainer = Trainer(name, data, cache)
    model = trainer.full_precision()
    teacher = copy.deepcopy(model)
    recipe.convert(model)
    fpq_plugin.calibrate(model, [trainer.train_set[0][:CALIBRATION]])
    for quantizer in named_quantizers(model).values():
        quantizer.max_change = math.inf
    distiller = fpq_plugin.Distiller(model, teacher, recipe.losses(),
                                     warn=lambda text: None)
    optimizer = torch.optim.SGD(
        fpq_plugin.param_groups(model, lr=trainer.rate), momentum=0.9)
    most = dict(weight=0.0, input=0.0)
    model.train()
    distiller.set_progress(0, 1)
    for x, y in trainer.batches(64, UPDATES, 0):
        before = {part: logs(model, part) for part in most}
        loss = F.cross_entropy(model(x), y)
        loss = (distiller.mean_with(loss) if recipe.objective == 'mean' else
                loss + distiller.loss())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for part, old in before.items():
            change = (logs(model, part) - old).abs().nan_to_num(1e9)
            most[part] = max(most[part], float(change.max()))
    return most


def ratios(name: str, data: Path, cache: Path) -> dict:
    """Median and largest ``g / s^2`` of weights and of features at W4A4."""
    trainer = Trainer(name, data, cache)
    model = trainer.full_precision()
    fpq_plugin.convert(model, **{
        part: dict(type='LSQFakeQuantize', bits=4)
        for part in ('weight', 'activation')})
    found: dict[str, list[Tensor]] = dict(weight=[], input=[])

    def look(quantizer: nn.Module, args: tuple, output: Tensor) -> None:
        part = 'weight' if quantizer.is_per_channel else 'input'
        found[part].append(
            quantizer.grad_factor(args[0]) / quantizer.step()**2)

    fpq_plugin.calibrate(model, [trainer.train_set[0][:CALIBRATION]])
    for quantizer in named_quantizers(model).values():
        quantizer.register_forward_hook(look)
    with torch.no_grad():
        model(trainer.train_set[0][:64])
    return {
        part: [float(torch.cat(values).median()),
               float(torch.cat(values).max())]
        for part, values in found.items()
    }


def main() -> None:
    """Measure all models; write rows and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path,
                        default=Path('data/fashion_mnist'))
    parser.add_argument('--cache', type=Path,
                        default=Path('work_dirs/stability'))
    parser.add_argument('--out', type=Path,
                        default=Path('benchmarks/results/step_changes.json'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ('steps by their size', 'recommended')
    rows = []
    for name in track(SMALL, 'models'):
        torch.manual_seed(0)
        rows.append(dict(
            model=name, ratio=ratios(name, args.data, args.cache),
            **{kind: changes(name, Recipe(**RECIPES[kind] or {}, bits='w4a4'),
                             args.data, args.cache) for kind in kinds}))
    args.out.write_text(json.dumps(dict(made_by(1), rows=rows), indent=1))
    lines = ['| model | g / s^2 of weights: median, largest | of features | '
             'largest change of log s in an update, weights: by size | in '
             'the logarithm | features: by size | in the logarithm |',
             '|---|---|---|---|---|---|---|']
    for row in rows:
        cells = [row['model'], *(
            '{:.3g}, {:.3g}'.format(*row['ratio'][part])
            for part in ('weight', 'input'))]
        cells += [f'{row[kind][part]:.2g}' for part in ('weight', 'input')
                  for kind in kinds]
        lines.append(f'| {" | ".join(cells)} |')
    args.out.with_suffix('.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
