"""What joints cost in accuracy, and whether an engine answers as `mim test`.

    python benchmarks/engine_accuracy.py --work-dir work_dirs/engine_accuracy

A small ResNet on Fashion-MNIST, through ``mim train``: in full precision, then
at each bit width without a target and with ``target='onnxruntime'``. Each
checkpoint is exported and compared on all 10,000 test images: the first with
joints that are calibrated after the training, and for OpenVINO as well, if
that is installed. Runs and rows that are there are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

from machine import made_by
from mmengine import Config

from fpq_plugin.export import ExportReport, export_checkpoint

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / 'mm_configs/fashion_mnist'
RESULTS = HERE / 'results'
BITS = ('w8a8', 'w4a4', 'w2a2')
TEST_IMAGES = 10_000


def train(name: str, folder: Path, env: dict[str, str],
          options: dict[str, object]) -> str:
    """Train a config through mim, unless that was done; its checkpoint."""
    last = folder / 'last_checkpoint'
    done = folder / 'done'
    if not done.is_file():
        print('training', folder.name, flush=True)
        subprocess.run(
            [sys.executable, '-m', 'mim', 'train', 'mmpretrain',
             str(CONFIGS / f'{name}.py'), '--work-dir', str(folder),
             '--cfg-options', *(f'{k}={v}' for k, v in options.items())],
            env=env, check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT)
        done.touch()
    return last.read_text().strip()


def config_of(folder: Path) -> Config:
    """The config that a run wrote."""
    return Config.fromfile(str(next(folder.glob('*.py'))))


def top1_of(folder: Path) -> float:
    """Top-1 (%) of the last validation, which `mim test` repeats."""
    path = sorted(folder.glob('*/vis_data/scalars.json'))[-1]
    rows = map(json.loads, path.read_text().splitlines())
    return [row['accuracy/top1'] for row in rows if 'accuracy/top1' in row][-1]


def figures(report: ExportReport, trained: float) -> dict:
    """What is kept of an export."""
    parity, joined = report.parity, report.joined
    return dict(
        top1=parity.top1_exported, equal=parity.equal(),
        other_class=parity.other_class, top1_of_mim_test=trained,
        top1_joined=joined and joined.top1_exported,
        joints=report.late_joints,
        integer_biases=sum(not reason for _, reason in report.biases),
        layers=len(report.biases),
        integer_kernels=report.kernels and report.kernels.on_integers(),
        size=report.size,
        ratios={each.batch: each.ratio() for each in report.latencies})


def measure(seed: int, bits: str, folder: Path, env: dict[str, str],
            options: dict[str, object], start: str) -> dict:
    """Both trainings of one seed at one bit width, and their exports."""
    row: dict = dict(seed=seed, bits=bits)
    for kind, target in (('without', None), ('with', 'onnxruntime')):
        run = folder / f'{bits}_{kind}_{seed}'
        more = {'default_hooks.fpq.bits': bits, 'load_from': start,
                'default_hooks.fpq.baselines': False}
        if target is not None:
            more['default_hooks.fpq.target'] = target
        checkpoint = train(f'resnet_fpq_{bits}', run, env,
                           {**options, **more})
        trained = top1_of(run)
        engines = ['onnxruntime']
        if target is None and find_spec('openvino') is not None:
            engines.append('openvino')
        for engine in engines:
            report = export_checkpoint(
                config_of(run), checkpoint, run / f'{engine}.onnx',
                images=TEST_IMAGES, target=engine)
            row[f'{kind}, {engine}'] = figures(report, trained)
        row[kind] = trained
    return row


def table(rows: list[dict]) -> str:
    """The rows as Markdown, means of the seeds."""
    lines = [
        '| bits | seeds | top-1 without joints | trained with joints | '
        'joints after the training | engine, of the file | '
        'equal classes, % | top-1, file less `mim test` | integer kernels |',
        '|---|---|---|---|---|---|---|---|---|']
    for bits in BITS:
        own = [row for row in rows if row['bits'] == bits]
        for key in ('with, onnxruntime', 'without, onnxruntime',
                    'without, openvino'):
            found = [row[key] for row in own if key in row]
            if not found:
                continue
            late = [each['top1_joined'] for each in found
                    if each['top1_joined'] is not None]
            wanted = [each['top1_joined'] or each['top1_of_mim_test']
                      for each in found]
            kernels = {f'{each["integer_kernels"]} of {each["layers"]}'
                       for each in found
                       if each['integer_kernels'] is not None}
            off = max((each['top1'] - other
                       for each, other in zip(found, wanted)), key=abs)
            first = key.startswith('with,')
            lines.append('| ' + ' | '.join([
                bits.upper(), str(len(found)),
                f'{mean(row["without"] for row in own):.2f}',
                f'{mean(row["with"] for row in own):.2f}' if first else '',
                f'{mean(late):.2f}' if late else '',
                key.partition(', ')[2],
                f'{min(each["equal"] for each in found):.2f} at least',
                f'{off:+.2f} at most',
                ', '.join(sorted(kernels))]) + ' |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--bits', nargs='+', choices=BITS, default=BITS)
    parser.add_argument('--images', type=int, default=10_000)
    parser.add_argument('--data', type=Path, default=Path('data'))
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--out', type=Path,
                        default=RESULTS / 'engine_accuracy.json')
    args = parser.parse_args()
    folder = args.work_dir.resolve()
    env = {**os.environ, 'FPQ_DATA_ROOT': str(args.data.resolve()),
           'FPQ_WORK_DIRS': str(folder)}
    os.environ.update(env)
    rows = (json.loads(args.out.read_text())['rows']
            if args.out.is_file() else [])
    for seed in args.seeds:
        options: dict[str, object] = {
            'randomness.seed': seed,
            'train_dataloader.dataset.indices': args.images,
            'train_cfg.val_interval': 10}
        start = train('resnet_fp', folder / f'fp_{seed}', env, options)
        for bits in args.bits:
            if any((row['seed'], row['bits']) == (seed, bits)
                   for row in rows):
                continue
            rows.append(measure(seed, bits, folder, env, options, start))
            args.out.write_text(json.dumps(dict(
                **made_by(threads=1), images=args.images,
                rows=rows), indent=1) + '\n')
            args.out.with_suffix('.md').write_text(table(rows))
    print(table(rows))


if __name__ == '__main__':
    main()
