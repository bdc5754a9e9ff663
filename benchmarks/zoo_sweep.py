"""Every family of mmpretrain's model index takes FPQ steps.

Of each folder in the index the smallest config of an ImageClassifier is
trained for two iterations: in full precision, then with the unchanged W4A4
fragment of ``mm_configs`` on each backend, through Runner and hook. Weights
are random (saved, and given as ``load_from``), images are noise of the
model's own input size, the batch is 2, calibration takes 4 images.

Each family runs in a process of its own. A finished one leaves a file in
``--rows`` and is not run again. Run from the repository's root:

    python benchmarks/zoo_sweep.py               # runs what is missing
    python benchmarks/zoo_sweep.py --only resnet beit
    python benchmarks/zoo_sweep.py --table       # the table of what there is
"""

from __future__ import annotations

import argparse
import json
import os
import os.path as osp
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import Dataset

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/results'
FRAGMENT = ROOT / 'mm_configs/_base_/fpq_w4a4.py'
BACKENDS = ('torch_ao', 'brevitas')
BATCH, ITERATIONS = 2, 2


@DATASETS.register_module()
class NoiseImages(Dataset):
    """Noise with labels, as mmpretrain's pipelines end.

    Args:
        size (int): Height and width.
        num_classes (int): Labels are below it.
        multi_label (bool): Whether a sample has several labels.
    """

    def __init__(self, size: int, num_classes: int,
                 multi_label: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        number = BATCH * ITERATIONS
        self.images = torch.randint(
            256, (number, 3, size, size), generator=generator).byte()
        labels = torch.randint(num_classes, (number, ), generator=generator)
        self.labels = labels[:, None] if multi_label else labels
        self.multi_label = multi_label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        from mmpretrain.structures import DataSample
        sample = DataSample().set_gt_label(self.labels[index])
        return dict(inputs=self.images[index], data_samples=sample)


@HOOKS.register_module()
class StepRecord(Hook):
    """Keeps each iteration's seconds, losses, and what FPQ did in it.

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
        for hook in runner.hooks:
            if type(hook).__name__ == 'FPQHook':
                self.table = hook._table
                self.distilled = len(hook._distiller.layer_losses())
                self.not_distilled = hook._distiller.left_out()


def families() -> dict[str, list[str]]:
    """Configs of each folder of mmpretrain's index, smallest model first."""
    home = Path(find_spec('mmpretrain').origin).parent / '.mim'
    index = yaml.safe_load((home / 'model-index.yml').read_text())['Import']
    found = {}
    for metafile in index:
        models = yaml.safe_load((home / metafile).read_text())['Models']
        models.sort(key=lambda m: m['Metadata'].get('Parameters') or 1e12)
        found[metafile.split('/')[1]] = [
            str(home / m['Config']) for m in models if m.get('Config')
        ]
    return found


def classifier(configs: list[str]) -> Config | None:
    """The first config that is an ImageClassifier's with training data."""
    for path in configs:
        cfg = Config.fromfile(path)
        if (cfg.model.get('type') == 'ImageClassifier'
                and cfg.get('train_dataloader') is not None):
            cfg.zoo_path = path
            return cfg
    return None


def input_size(cfg: Config) -> int:
    """Height and width that the config's test pipeline ends with."""
    loader = cfg.get('test_dataloader') or cfg.train_dataloader
    for step in reversed(loader.dataset.pipeline):
        size = step.get('crop_size') or step.get('scale')
        if size and 'Edge' not in step['type']:
            return size if isinstance(size, int) else size[0]
    return 224


def small_run(cfg: Config, work_dir: str) -> Config:
    """The config's own model and optimizer on two batches of noise."""
    cfg = cfg.copy()
    _drop_pretrained(cfg.model)
    classes = cfg.model.head.get('num_classes') or cfg.model.head.get(
        'num_labels', 1000)
    multi = 'MultiLabel' in cfg.model.head.type or 'CSRA' in \
        cfg.model.head.type
    cfg.train_dataloader = dict(
        batch_size=BATCH,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='NoiseImages',
            size=input_size(cfg),
            num_classes=classes,
            multi_label=multi))
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    for key in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{key}_{part}'] = None
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
        cfg.optim_wrapper.type = 'OptimWrapper'
        cfg.optim_wrapper.pop('loss_scale', None)
        cfg.optim_wrapper.pop('dtype', None)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1000, save_last=False)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []),
                        dict(type='StepRecord')]
    cfg.randomness = dict(seed=0)
    cfg.work_dir = work_dir
    cfg.load_from = None
    return cfg


def with_fragment(cfg: Config, backend: str, checkpoint: str) -> Config:
    """What ``_base_`` with the fragment gives, and the checkpoint."""
    cfg = cfg.copy()
    cfg.merge_from_dict(Config.fromfile(str(FRAGMENT)).to_dict())
    cfg.default_hooks.fpq = cfg.fpq
    cfg.default_hooks.fpq.backend = backend
    cfg.default_hooks.fpq.calibration.num_images = BATCH * ITERATIONS
    cfg.load_from = checkpoint
    return cfg


def run_family(name: str) -> dict:
    """Train one family in full precision and on both backends."""
    import mmpretrain  # noqa: F401

    import fpq_plugin  # noqa: F401
    init_default_scope('mmpretrain')
    configs = families()[name]
    cfg = classifier(configs)
    if cfg is None:
        return dict(family=name, fp='no ImageClassifier with training data')
    row = dict(
        family=name,
        config=cfg.zoo_path.partition('/configs/')[2],
        input=input_size(cfg))
    with tempfile.TemporaryDirectory() as folder:
        small = small_run(cfg, folder)
        checkpoint = osp.join(folder, 'fp.pth')
        try:
            record, runner = train(small, f'{name}_fp', checkpoint)
        except Exception as error:
            return dict(row, fp=_reason(error))
        row.update(fp='ok', fp_seconds=record.seconds[-1],
                   parameters=sum(p.numel()
                                  for p in runner.model.parameters()))
        del runner
        for backend in BACKENDS:
            row[backend] = run_backend(
                with_fragment(small, backend, checkpoint),
                f'{name}_{backend}', row['fp_seconds'])
    return row


def train(cfg: Config, name: str, save_to: str | None = None):
    """Two iterations; with ``save_to``, the start weights go there first."""
    cfg.experiment_name = name
    runner = Runner.from_cfg(cfg)
    if save_to:
        runner.model.init_weights()
        torch.save(dict(state_dict=runner.model.state_dict()), save_to)
        runner.load_checkpoint(save_to)
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


def table(rows: list[dict]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        '| family | config | input | M par. | quantized | left float | '
        'distilled | torch_ao | x FP | brevitas | x FP |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        if row.get('fp') != 'ok':
            lines.append(f'| {row["family"]} | {row.get("config", "")} | | | '
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


def _drop_pretrained(node: object) -> None:
    """Remove ``init_cfg`` that would download weights."""
    if isinstance(node, dict):
        init = node.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            node.pop('init_cfg')
        for child in node.values():
            _drop_pretrained(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _drop_pretrained(child)


def run_all(names: list[str], rows: Path, timeout: int) -> None:
    """Run each family that has no row yet in a process of its own."""
    for number, name in enumerate(names, 1):
        path = rows / f'{name}.json'
        if path.exists():
            continue
        start = time.time()
        with open(rows / f'{name}.log', 'w') as log:
            try:
                code = subprocess.run(
                    [sys.executable, __file__, '--rows', str(rows), '--row',
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rows', type=Path, default=ROOT / 'work_dirs/zoo')
    parser.add_argument('--only', nargs='+', help='families')
    parser.add_argument('--timeout', type=int, default=1200)
    parser.add_argument('--table', action='store_true')
    parser.add_argument('--row', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rows.mkdir(parents=True, exist_ok=True)
    if args.row:
        row = run_family(args.row)
        (args.rows / f'{args.row}.json').write_text(json.dumps(row, indent=1))
        return
    names = args.only or list(families())
    if not args.table:
        run_all(names, args.rows, args.timeout)
    rows = [json.loads(p.read_text()) for p in sorted(
        args.rows.glob('*.json'))]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / 'zoo_mmpretrain.json').write_text(json.dumps(rows, indent=1))
    (RESULTS / 'zoo_mmpretrain.md').write_text(table(rows))
    print(table(rows))


if __name__ == '__main__':
    main()
