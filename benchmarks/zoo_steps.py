"""Two FPQ training steps of a model of the zoo, and the table of them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, Sampler

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/results'
FRAGMENT = ROOT / 'mm_configs/_base_/fpq_w4a4.py'
BACKENDS = ('torch_ao', 'brevitas')
BATCH, ITERATIONS = 2, 2


@HOOKS.register_module()
class StepRecord(Hook):
    """Keeps each iteration's seconds, losses, and what FPQ did; then stops.

    Attributes:
        seconds (list[float]): Time of each iteration.
        losses (dict[str, float]): Losses of the last iteration.
        table (list): FPQ's table of layers.
        distilled (int): Layers distilled in the last iteration.
        not_distilled (dict[str, str]): Layers left out, with the reason.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: dict[str, float] = {}
        self.table: list = []
        self.distilled = 0
        self.not_distilled: dict[str, str] = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._start = time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        self.losses = {k: float(v) for k, v in outputs.items()}
        runner.train_loop.stop_training = len(self.seconds) == ITERATIONS
        for hook in runner.hooks:
            if type(hook).__name__ == 'FPQHook':
                self.table = hook._table
                distiller = hook.session.distiller
                self.distilled = len(distiller.layer_losses())
                self.not_distilled = distiller.left_out()


def drop_pretrained(node: object) -> None:
    """Remove ``init_cfg``, or mmseg's ``pretrained``, that would download."""
    if isinstance(node, dict):
        if isinstance(node.get('pretrained'), str):
            node.pop('pretrained')
        init = node.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            node.pop('init_cfg')
        for child in node.values():
            drop_pretrained(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            drop_pretrained(child)


def shorten(cfg: Config, work_dir: str) -> None:
    """Make a config's run one of two iterations on the CPU, in place.

    Model, optimizer, schedules, loop and hooks stay as they are; StepRecord
    stops the loop. The learning rate is a hundredth of the config's, which is
    for training from scratch with many times the batch.
    """
    drop_pretrained(cfg.model)
    for key in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{key}_{part}'] = None
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
        cfg.optim_wrapper.pop('loss_scale', None)
        cfg.optim_wrapper.pop('dtype', None)
    cfg.optim_wrapper.optimizer.lr *= 0.01
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1000, save_last=False)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []),
                        dict(type='StepRecord')]
    cfg.randomness = dict(seed=0)
    cfg.work_dir = work_dir
    cfg.load_from = None
    cfg.resume = False


def with_fragment(cfg: Config, backend: str, checkpoint: str) -> Config:
    """What ``_base_`` with the fragment gives, and the checkpoint."""
    cfg = cfg.copy()
    cfg.merge_from_dict(Config.fromfile(str(FRAGMENT)).to_dict())
    cfg.default_hooks.fpq = cfg.fpq
    cfg.default_hooks.fpq.backend = backend
    cfg.default_hooks.fpq.calibration.num_images = BATCH * ITERATIONS
    cfg.load_from = checkpoint
    return cfg


def train(cfg: Config, name: str, save_to: str | None = None):
    """Two iterations; with ``save_to``, the start weights go there first."""
    cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    if save_to:
        runner.model.init_weights()
        # BYOL's average asks for it in a forward.
        runner.message_hub.update_info('max_iters', ITERATIONS)
        fit_statistics(runner)
        torch.save(dict(state_dict=runner.model.state_dict()), save_to)
        runner._load_from = save_to
    runner.train()
    record, = (h for h in runner.hooks if isinstance(h, StepRecord))
    return record, runner


def run_backend(cfg: Config, name: str, fp_seconds: float) -> dict:
    """One backend's part of a row."""
    try:
        record, runner = train(cfg, name)
    except Exception as error:
        traceback.print_exc()
        return dict(step=_reason(error))
    left = {}
    for layer in record.table:
        if min(layer.weight_bits, layer.activation_bits) == 32:
            left.setdefault(layer.why, []).append(layer.name)
    reasons = {}
    for layer, why in record.not_distilled.items():
        reasons.setdefault(why, []).append(layer)
    finite = all(torch.isfinite(p).all() for p in runner.model.parameters())
    return dict(
        step='ok' if len(record.seconds) == ITERATIONS else 'too few',
        finite=finite and all(map(_is_finite, record.losses.values())),
        losses=record.losses,
        layers=len(record.table),
        quantized=len(record.table.quantized()),
        left_out=left,
        distilled=record.distilled,
        not_distilled=reasons,
        seconds=record.seconds[-1],
        times_fp=record.seconds[-1] / fp_seconds)


@torch.no_grad()
def fit_statistics(runner: Runner) -> None:
    """Give the batch norms the statistics of the training data.

    With random weights the initial ones are so far off that calibration, in
    eval mode, would see other features than training does.
    """
    model = runner.model
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    model.train()
    # YOLOX's data preprocessor asks for it, as the training loop would tell.
    runner.message_hub.update_info('iter', runner.iter)
    for batch in Runner.build_dataloader(runner.cfg.train_dataloader):
        data = model.data_preprocessor(batch, True)
        model._run_forward(data, mode='loss')
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


@DATA_SAMPLERS.register_module()
class FewSamples(Sampler):
    """The first samples, of an epoch that seems as long as ImageNet's.

    So that schedules, which are set up for that length, can be built.
    """

    def __init__(self, dataset: Dataset, seed: int | None = None) -> None:
        self.number = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.number))

    def __len__(self) -> int:
        return 1_281_167


def run_row(row: dict, short: Callable[[str], Config]) -> dict:
    """Train in full precision, then on both backends.

    Args:
        row (dict): What is known of the row; ``family`` names it.
        short (Callable): The run's config, made by :func:`shorten`, in the
            given work directory.

    Returns:
        dict: The row, with what happened.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = short(folder)
        checkpoint = str(Path(folder) / 'fp.pth')
        try:
            record, runner = train(cfg, f'{row["family"]}_fp', checkpoint)
        except Exception as error:
            traceback.print_exc()
            return dict(row, fp=_reason(error))
        finite = all(map(_is_finite, record.losses.values())) and all(
            torch.isfinite(p).all() for p in runner.model.parameters())
        row.update(
            fp='ok' if finite else 'not finite',
            fp_seconds=record.seconds[-1],
            parameters=sum(p.numel() for p in runner.model.parameters()))
        del runner
        for backend in BACKENDS:
            row[backend] = run_backend(
                with_fragment(cfg, backend, checkpoint),
                f'{row["family"]}_{backend}', row['fp_seconds'])
    return row


def table(rows: list[dict], missing: list[str]) -> str:
    """The rows as a table in Markdown, and which ones are missing."""
    lines = [
        '| family | config | input | M par. | quantized | left float | '
        'distilled | torch_ao | x FP | brevitas | x FP |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    without: dict[str, list[str]] = {}
    for row in rows:
        if 'config' not in row:
            without.setdefault(row['fp'], []).append(row['family'])
            continue
        if row['fp'] != 'ok':
            lines.append(f'| {row["family"]} | {row["config"]} | | | '
                         f'| | | no step in full precision: {row["fp"]} | '
                         '| | |')
            continue
        one = next((row[b] for b in BACKENDS
                    if row.get(b, {}).get('step') == 'ok'), {})
        cells = [
            row['family'], row['config'], row['input'],
            f'{row["parameters"] / 1e6:.1f}',
            f'{one.get("quantized", "")} of {one.get("layers", "")}',
            _reasons(one.get('left_out', {})),
            _distilled(one),
        ]
        for backend in BACKENDS:
            part = row.get(backend, dict(step='not run'))
            good = part['step'] == 'ok' and part['finite']
            cells += ['ok' if good else part['step'] if part['step'] != 'ok'
                      else 'not finite',
                      f'{part["times_fp"]:.2f}' if good else '']
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    trained = [r for r in rows if r.get('fp') == 'ok']
    lines.append('')
    for backend in BACKENDS:
        good = sum(r.get(backend, {}).get('step') == 'ok'
                   and r[backend]['finite'] for r in trained)
        lines.append(f'{backend}: {good} of {len(trained)} families that take '
                     'a full-precision step take FPQ steps with finite '
                     'losses.')
    lines += ['', *(f'{why}: {", ".join(names)}.'
                    for why, names in without.items())]
    if missing:
        lines += ['', f'Not run yet: {", ".join(missing)}.']
    return '\n'.join(lines) + '\n'


def _distilled(part: dict) -> str:
    text = str(part.get('distilled', ''))
    notes = _reasons(part.get('not_distilled', {}))
    return f'{text}; not: {notes}' if notes else text


def _reasons(groups: dict[str, list[str]]) -> str:
    return '; '.join(
        f'{len(names)}: {why}' if len(names) > 2
        else f'{", ".join(names)}: {why}' for why, names in groups.items())


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0][:150]}'


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float('inf')


def run_all(script: str, names: list[str], rows: Path,
            timeout: int) -> None:
    """Run each family that has no row yet in a process of its own."""
    for number, name in enumerate(names, 1):
        path = rows / f'{name}.json'
        if path.exists():
            continue
        start = time.time()
        with open(rows / f'{name}.log', 'w') as log:
            try:
                code = subprocess.run(
                    [sys.executable, script, '--rows', str(rows), '--row',
                     name],
                    stdout=log, stderr=subprocess.STDOUT, timeout=timeout,
                    env={**os.environ, 'PYTHONPATH': str(ROOT)}).returncode
                failure = f'process ended with {code}'
            except subprocess.TimeoutExpired:
                failure = f'no end within {timeout} s'
        if not path.exists():
            path.write_text(json.dumps(dict(family=name, fp=failure)))
        row = json.loads(path.read_text())
        state = {b: row[b]['step'] for b in BACKENDS if b in row}
        print(f'{number}/{len(names)} {name}: {row["fp"]} {state} '
              f'{time.time() - start:.0f} s', flush=True)


def sweep(script: str, description: str, names: list[str], result: str,
          run: Callable[[str], dict]) -> None:
    """The command line of a sweep.

    Args:
        script (str): The file that is run.
        description (str): What it does.
        names (list[str]): Names of all rows.
        result (str): Name of the result files, without suffix.
        run (Callable): Makes the row of a name.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=Path,
                        default=ROOT / f'work_dirs/{result}')
    parser.add_argument('--only', nargs='+', help='names of rows')
    parser.add_argument('--timeout', type=int, default=1200)
    parser.add_argument('--table', action='store_true')
    parser.add_argument('--row', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rows.mkdir(parents=True, exist_ok=True)
    if args.row:
        row = run(args.row)
        (args.rows / f'{args.row}.json').write_text(json.dumps(row, indent=1))
        return
    if not args.table:
        run_all(script, args.only or names, args.rows, args.timeout)
    rows = [json.loads((args.rows / f'{name}.json').read_text())
            for name in names if (args.rows / f'{name}.json').exists()]
    done = {row['family'] for row in rows}
    text = table(rows, [name for name in names if name not in done])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f'{result}.json').write_text(json.dumps(rows, indent=1))
    (RESULTS / f'{result}.md').write_text(text)
    print(text)
