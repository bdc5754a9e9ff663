"""The wheel in an empty environment: installed by pip, trains through mim.

Builds the wheel, makes an environment that has nothing else, lets pip find
all that it needs, and trains a config of the wheel and one that inherits from
it, in an empty folder. The figures go into docs/results/wheel.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / 'docs/results/wheel.json'
PINS = ROOT / 'requirements/py311-torch212.txt'
MINE = """
_base_ = [__import__('mm_configs').path('fashion_mnist/resnet_fpq_w4a4.py')]
load_from = 'fp/epoch_1.pth'
train_cfg = dict(max_epochs=1)
train_dataloader = dict(dataset=dict(indices=12000))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, default=ROOT / 'data',
                        help='the folder with fashion_mnist')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = try_in(Path(folder), args.data.resolve())
    RESULT.write_text(json.dumps(found, indent=1) + '\n')
    print(json.dumps(found, indent=1))


def try_in(folder: Path, data: Path) -> dict:
    """Build, install and train; versions, seconds and top-1."""
    kept = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    empty = folder / 'empty'
    empty.mkdir()

    def run(*command: str | Path) -> str:
        print('$', *command, flush=True)
        done = subprocess.run(
            [*map(str, command)], cwd=empty, text=True,
            env={**kept, 'FPQ_DATA_ROOT': str(data)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(done.stdout[-5000:])
        return done.stdout

    run(sys.executable, '-m', 'build', '--no-isolation', '--wheel',
        '--outdir', folder, ROOT)
    wheel, = folder.glob('*.whl')
    run(sys.executable, '-m', 'venv', folder / 'environment')
    python = folder / 'environment/bin/python'
    start = time.time()
    run(python, '-m', 'pip', 'install', *re.findall(
        r'^torch(?:vision)?==\S+', PINS.read_text(), re.MULTILINE))
    run(python, '-m', 'pip', 'install', f'{wheel}[mmpretrain]', 'mmcv-lite')
    found: dict = dict(wheel=wheel.name,
                       install_s=round(time.time() - start))
    start = time.time()
    mim = python, '-m', 'mim'
    config = run(python, '-m', 'mm_configs', 'fashion_mnist/resnet_fp.py')
    out = run(*mim, 'train', 'mmpretrain', config.strip(), '--work-dir', 'fp',
              '--cfg-options', 'train_cfg.max_epochs=1',
              'train_dataloader.dataset.indices=12000')
    found['fp_top1'] = top1(out)
    (empty / 'mine.py').write_text(MINE)
    found['fpq_top1'] = top1(run(*mim, 'train', 'mmpretrain', 'mine.py'))
    found['test_top1'] = top1(
        run(*mim, 'test', 'mmpretrain', 'mine.py', '--checkpoint',
            'work_dirs/mine/epoch_1.pth'))
    found['train_and_test_s'] = round(time.time() - start)
    listed = json.loads(run(python, '-m', 'pip', 'list', '--format', 'json',
                            '--disable-pip-version-check'))
    wanted = ('torch', 'torchvision', 'mmengine', 'mmpretrain', 'mmcv-lite',
              'numpy')
    found['versions'] = {each['name']: each['version'] for each in listed
                         if each['name'] in wanted}
    return found


def top1(log: str) -> float:
    """The last accuracy that a run logged, in %."""
    return float(re.findall(r'accuracy/top1: ([\d.]+)', log)[-1])


if __name__ == '__main__':
    main()
