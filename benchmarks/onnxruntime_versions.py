"""Do old and new onnxruntimes open our files, and answer alike?

Exports trained Fashion-MNIST models and runs each file on the first test
images in every version of onnxruntime, installed in an environment of its
own. Top-1 and the largest difference of a logit are to the trained model.

    python benchmarks/onnxruntime_versions.py --runs work_dirs --data data
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import torch
from export import CONFIGS, ROOT, last_epoch
from machine import made_by

from fpq_plugin import load_model
from fpq_plugin.openmmlab.export_run import (
    export_checkpoint,
    image_batches,
    ordered_images,
)

MODELS = ['resnet_fpq_w8a8', 'resnet_fpq_w4a4', 'vit_fpq_w8a8',
          'mobilenet_v2_fpq_w4a4']
RUN = """
import sys, numpy, onnxruntime
folder, *names = sys.argv[1:]
images = numpy.load(f'{folder}/images.npy')
for name in names:
    session = onnxruntime.InferenceSession(f'{folder}/{name}.onnx')
    logits, = session.run(None, {session.get_inputs()[0].name: images})
    numpy.save(f'{folder}/{name}.npy', logits)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=Path, default=Path('work_dirs'))
    parser.add_argument('--data', type=Path, default=Path('data'))
    parser.add_argument('--versions', nargs='+',
                        default=['1.20', '1.24', '1.32'])
    parser.add_argument('--images', type=int, default=500)
    parser.add_argument('--out', type=Path, default=ROOT /
                        'benchmarks/results/onnxruntime_versions.json')
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(FPQ_DATA_ROOT=str(args.data.resolve()),
                      FPQ_WORK_DIRS=str(args.runs.resolve()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = {name: export(name, args, folder) for name in MODELS}
        rows = [row for version in args.versions
                for row in compare(version, trained, folder)]
    for row in rows:
        print(row)
    args.out.write_text(json.dumps(
        dict(made_by(1), images=args.images, rows=rows), indent=1) + '\n')


def export(name: str, args: argparse.Namespace, folder: Path) -> np.ndarray:
    """Write the model's ONNX file and the images; its own logits."""
    config, checkpoint = CONFIGS / f'{name}.py', last_epoch(args.runs / name)
    export_checkpoint(str(config), str(checkpoint), folder / f'{name}.onnx',
                      args.images)
    model = load_model(str(config), str(checkpoint))
    images = torch.cat([
        x for x, _ in image_batches(
            model, ordered_images(model._config), args.images)])
    np.save(folder / 'images.npy', images.numpy())
    with torch.no_grad():
        return model(images).numpy()


def compare(version: str, trained: dict[str, np.ndarray],
            folder: Path) -> list[dict]:
    """Rows of one version of onnxruntime."""
    home = folder / version
    venv.create(home, with_pip=True)
    python = home / 'bin/python'
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', 'numpy',
                    f'onnxruntime=={version}.*'], check=True)
    found = subprocess.check_output(
        [python, '-c', 'import onnxruntime; print(onnxruntime.__version__)'],
        text=True).strip()
    done = subprocess.run([python, '-c', RUN, folder, *trained],
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        return [dict(onnxruntime=found, error=done.stderr.splitlines()[-1])]
    rows = []
    for name, logits in trained.items():
        exported = np.load(folder / f'{name}.npy')
        same = exported.argmax(1) == logits.argmax(1)
        rows.append(dict(
            onnxruntime=found, model=name, equal=100 * float(same.mean()),
            largest_difference=float(abs(exported - logits).max())))
    return rows


if __name__ == '__main__':
    sys.exit(main())
