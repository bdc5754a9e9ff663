"""The main job on real data: FP, then LSQ and FPQ at W4A4, all through mim.

Prints one table and writes it, the figures as JSON and the learning curves as
a picture. A run that is there already, made by the same config and version, is
kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

CONFIGS = Path(__file__).resolve().parents[1] / 'mm_configs/fashion_mnist'
RUNS = {
    'FP': 'resnet_fp',
    'LSQ': 'resnet_lsq_w4a4',
    'FPQ': 'resnet_fpq_w4a4',
}


def mim(verb: str, config: str, env: dict[str, str], *args: str) -> str:
    """Run mim, pass its log on line by line, return it."""
    command = [
        sys.executable, '-m', 'mim', verb, 'mmpretrain',
        str(CONFIGS / f'{config}.py'), *args
    ]
    print('\n$', ' '.join(command), flush=True)
    lines = []
    with subprocess.Popen(
            command,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            lines.append(line)
            if re.search(r'Epoch\(|- FPQ|Error| (Conv2d|Linear) ', line):
                print(line, end='', flush=True)
    if process.returncode:
        sys.exit(''.join(lines[-40:]) + f'\nmim {verb} {config} failed')
    return ''.join(lines)


def curve(folder: Path) -> list[float]:
    """Top-1 (%) after each epoch of the folder's last run."""
    path = sorted(folder.glob('*/vis_data/scalars.json'))[-1]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row['accuracy/top1'] for row in rows if 'accuracy/top1' in row]


def shortened(name: str, out: Path, epochs: int | None,
              images: int | None) -> dict:
    """Options that end a run, and the one it starts from, earlier."""
    options: dict = {}
    if images is not None:
        options['train_dataloader.dataset.indices'] = images
    if epochs is not None:
        options.update({'train_cfg.max_epochs': epochs,
                        'param_scheduler.T_max': epochs})
        if name != 'FP':
            options['load_from'] = f'{out}/{RUNS["FP"]}/epoch_{epochs}.pth'
    return options


def run(name: str, out: Path, env: dict[str, str], epochs: int | None,
        images: int | None) -> dict:
    """Train and test one of RUNS; its row of the table."""
    from mmengine import Config
    from mmengine.registry import MODELS, init_default_scope

    from fpq_plugin import __version__
    from fpq_plugin.openmmlab.config_checks import recipe_of

    config, folder = RUNS[name], out / RUNS[name]
    cfg = Config.fromfile(str(CONFIGS / f'{config}.py'))
    options = shortened(name, out, epochs, images)
    cfg.merge_from_dict(options)
    made_by = f'{__version__}\n{cfg.pretty_text}'
    kept = folder / 'row.json'
    if kept.is_file() and json.loads(kept.read_text())['by'] == made_by:
        print(f'{name}: kept from {folder}; remove that to run it again')
        return json.loads(kept.read_text())['row']
    start = time.time()
    changed = [f'{key}={value}' for key, value in options.items()]
    mim('train', config, env, '--work-dir', str(folder),
        *(['--cfg-options', *changed] if changed else []))
    minutes = (time.time() - start) / 60
    epochs = cfg.train_cfg.max_epochs
    tested = mim('test', config, env, '--checkpoint',
                 str(folder / f'epoch_{epochs}.pth'), '--work-dir',
                 str(out / f'{config}_test'))
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    bits, size = 'float32', sum(p.numel() for p in model.parameters()) * 4
    recipe = recipe_of(cfg)
    if recipe is not None:
        table = recipe.convert(model)
        bits = f'W{recipe.weight["bits"]}A{recipe.activation["bits"]}'
        size += table.weight_bytes() - 4 * sum(
            torch.Size(row.shape).numel() for row in table)
    row = dict(
        method=name,
        top1=float(re.findall(r'accuracy/top1: ([\d.]+)', tested)[-1]),
        epochs=epochs,
        minutes=round(minutes, 2),
        bits=bits,
        kilobytes=round(size / 1000, 1),
        seed=cfg.randomness.seed,
        curve=curve(folder))
    kept.write_text(json.dumps(dict(by=made_by, row=row)))
    return row


def verdict(rows: dict[str, dict]) -> str:
    """What the table says of FPQ against LSQ, one seed's noise included."""
    gain = rows['FPQ']['top1'] - rows['LSQ']['top1']
    top1 = rows['LSQ']['top1'] / 100
    error = 100 * (2 * top1 * (1 - top1) / 10000)**0.5
    word = 'above' if gain > 0 else 'below' if gain < 0 else 'equal to'
    clear = ('more' if abs(gain) > 2 * error else 'not more')
    return (f'FPQ is {abs(gain):.2f} points {word} LSQ with this one seed: '
            f'{clear} than two standard errors ({2 * error:.2f}) of the '
            'difference on 10,000 test images.')


def report(rows: dict[str, dict], out: Path, command: str) -> str:
    """The table as text; written with the figures and the picture."""
    lines = [
        f'{"method":8}{"top-1 %":>9}{"epochs":>8}{"minutes":>9}  '
        f'{"bits":9}{"weights kB":>11}{"seed":>6}'
    ]
    lines += [
        f'{r["method"]:8}{r["top1"]:9.2f}{r["epochs"]:8}{r["minutes"]:9.1f}  '
        f'{r["bits"]:9}{r["kilobytes"]:11.1f}{r["seed"]:6}'
        for r in rows.values()
    ]
    lines.append(verdict(rows))
    text = '\n'.join(lines)
    (out / 'table.txt').write_text(text + '\n')
    (out / 'results.json').write_text(
        json.dumps(
            dict(
                command=command,
                torch=torch.__version__,
                threads=torch.get_num_threads(),
                rows=list(rows.values())),
            indent=1) + '\n')
    draw(rows, out / 'curves.png')
    return text


def draw(rows: dict[str, dict], path: Path) -> None:
    """Draw top-1 against epochs; the FP model's end as a line."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout='constrained')
    full = rows['FP']['epochs']
    for name, row in rows.items():
        first = 1 if name == 'FP' else full + 1
        epochs = range(first, first + row['epochs'])
        axes.plot(epochs, row['curve'], marker='o',
                  label=f'{name} {row["bits"]}: {row["top1"]:.2f} %')
    axes.axhline(rows['FP']['top1'], color='0.6', linestyle=':', zorder=0)
    axes.axvline(full + 0.5, color='0.8', zorder=0)
    axes.set_ylim(min(min(r['curve'][1:] or r['curve'])
                      for r in rows.values()) - 1)
    axes.set_xlabel('epoch (quantized training starts from the FP model)')
    axes.set_ylabel('Fashion-MNIST test top-1, %')
    axes.legend(loc='lower right')
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True,
                        help='folder that holds fashion_mnist/')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--epochs', type=int,
                        help='of each run; default: as its config says')
    parser.add_argument('--images', type=int,
                        help='train on so many; default: all 60,000')
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        'FPQ_DATA_ROOT': str(args.data.resolve()),
        'FPQ_WORK_DIRS': str(out),
    }
    os.environ.update(FPQ_DATA_ROOT=env['FPQ_DATA_ROOT'],
                      FPQ_WORK_DIRS=env['FPQ_WORK_DIRS'])
    rows = {name: run(name, out, env, args.epochs, args.images)
            for name in RUNS}
    changed = ''.join(f' --{key} {value}' for key, value in (
        ('epochs', args.epochs), ('images', args.images)) if value)
    command = f'python tools/demo.py{changed}' if changed else 'make demo'
    print('\n' + report(rows, out, command))
    print(f'\nwritten: {out}/table.txt, results.json, curves.png')


if __name__ == '__main__':
    main()
