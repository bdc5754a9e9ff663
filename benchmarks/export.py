"""Exported models against trained ones: parity, size and latency.

For trained Fashion-MNIST models, on all 10,000 test images: top-1 of
``mim test``, of the ONNX file in onnxruntime and, at W8A8, of torch's int8
layers. For architectures of usual size, which take no training to weigh and
time: file size and latency with random weights.

    python benchmarks/export.py --runs work_dirs --data data
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch
from models import build

import fpq_plugin
from fpq_plugin import calibrate, convert, load_model
from fpq_plugin.export import export_onnx, to_torch_int8
from fpq_plugin.export.parity import measure_parity
from fpq_plugin.export.runtime import saturates
from fpq_plugin.export.torch_int8 import kernels_saturate
from fpq_plugin.openmmlab.export_run import (
    export_checkpoint,
    image_batches,
    ordered_images,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'mm_configs/fashion_mnist'
TRAINED = [
    f'{model}_fpq_{bits}' for model in ('resnet', 'mobilenet_v2', 'vit')
    for bits in ('w8a8', 'w4a4', 'w2a2')
]
USUAL = ['resnet18-224', 'mobilenet_v2-112', 'vit-small-224']
IMAGES = 10000


def last_epoch(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return Path((folder / 'last_checkpoint').read_text().strip())


def mim_top1(config: Path, checkpoint: Path) -> float:
    """Top-1 (%) that ``mim test`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, '-m', 'mim', 'test', 'mmpretrain', config,
             '--checkpoint', checkpoint, '--work-dir', folder],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f'{done.stdout[-3000:]}\nmim test {config.name} failed')
    return float(re.findall(r'accuracy/top1: ([\d.]+)', done.stdout)[-1])


def trained_row(name: str, runs: Path) -> dict:
    """Figures of one trained model."""
    config, checkpoint = CONFIGS / f'{name}.py', last_epoch(runs / name)
    with tempfile.TemporaryDirectory() as folder:
        report = export_checkpoint(
            str(config), str(checkpoint), Path(folder) / 'model.onnx', IMAGES)
    row = dict(
        name=name, mim_test_top1=mim_top1(config, checkpoint),
        **report.as_dict())
    del row['path'], row['layers']
    if name.endswith('w8a8') and not kernels_saturate():
        model = load_model(str(config), str(checkpoint))
        batches = image_batches(model, ordered_images(model._config), IMAGES)
        row['torch_int8'] = measure_parity(
            model, [to_torch_int8(model)], batches)[0].as_dict()
    return row


def usual_row(name: str, bits: int) -> dict:
    """Size and latency of an architecture with random weights."""
    model, x, _ = build(name, 'cpu')
    x = x[:4]
    with torch.no_grad():
        model(x)  # batch norm statistics
    convert(model, weight=dict(bits=bits), activation=dict(bits=bits))
    calibrate(model, [x])
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(model, Path(folder) / 'model.onnx', [(x, None)],
                             tolerance=100)
    row = dict(name=name, bits=bits, **report.as_dict())
    del row['path'], row['layers'], row['parity']
    return row


def table(trained: list[dict], usual: list[dict]) -> str:
    """The figures as text."""
    lines = [f'{"":24}{"mim test":>9}{"onnxrt":>8}{"equal %":>9}'
             f'{"largest":>9}{"size":>7}{"latency, unpacked: 1, 32":>28}'
             '  torch int8']
    for row in trained:
        parity, int8 = row['parity'], row.get('torch_int8')
        times = ''.join(
            f'{each["ratio"]:7.2f}{each["unpacked_ratio"]:7.2f}'
            for each in row['latencies'])
        text = f'{int8["equal"]:.2f} % equal' if int8 else ''
        lines.append(
            f'{row["name"]:24}{row["mim_test_top1"]:9.2f}'
            f'{parity["top1_exported"]:8.2f}{parity["equal"]:9.2f}'
            f'{parity["largest_difference"]:9.1e}{row["size_ratio"]:7.3f}'
            f'{times}  {text}')
    lines.append('')
    for row in usual:
        times = ', '.join(
            f'{each["ratio"]:.2f} ({each["unpacked_ratio"]:.2f} unpacked) at '
            f'batch {each["batch"]}' for each in row['latencies'])
        lines.append(f'{row["name"]:20} W{row["bits"]}A{row["bits"]}  size '
                     f'{row["size_ratio"]:.3f}  latency {times}')
    return '\n'.join(lines)


def cpu() -> str:
    """The processor's name."""
    try:
        text = Path('/proc/cpuinfo').read_text()
    except OSError:
        return platform.processor()
    vnni = 'without' if saturates() else 'with'
    return f'{re.findall("model name.*: (.*)", text)[0]}, {vnni} VNNI'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=Path, default=Path('work_dirs'),
                        help='folder of the runs, one for each config')
    parser.add_argument('--data', type=Path, default=Path('data'),
                        help='folder that holds fashion_mnist/')
    parser.add_argument('--out', type=Path,
                        default=ROOT / 'benchmarks/results/export.json')
    parser.add_argument('--only', nargs='+', choices=[*TRAINED, *USUAL],
                        help='run these and keep the other rows of --out')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ.update(FPQ_DATA_ROOT=str(args.data.resolve()),
                      FPQ_WORK_DIRS=str(args.runs.resolve()))
    rows: dict[str, dict] = {}
    if args.only and args.out.is_file():
        rows = json.loads(args.out.read_text())['rows']
    made_by = dict(
        machine=cpu(), threads=args.threads, python=platform.python_version(),
        torch=torch.__version__, onnxruntime=onnxruntime.__version__,
        fpq=fpq_plugin.__version__)
    for name in args.only or [*TRAINED, *USUAL]:
        print(name, flush=True)
        if name in TRAINED:
            rows[name] = trained_row(name, args.runs)
        else:
            for bits in (8, 4):
                rows[f'{name}_w{bits}a{bits}'] = usual_row(name, bits)
        args.out.write_text(json.dumps(dict(
            command='python benchmarks/export.py', **made_by, rows=rows),
            indent=1) + '\n')
    print(table([rows[name] for name in TRAINED if name in rows],
                [row for row in rows.values() if 'bits' in row]))


if __name__ == '__main__':
    main()
