"""Whether a change of the code changed a result: short runs, bit for bit.

    python benchmarks/same_results.py record BEFORE.json
    python benchmarks/same_results.py compare BEFORE.json

``record`` trains every run of RUNS on scikit-learn's digits, each in a process
of its own, and writes what came out: a hash of the checkpoint's weights,
another of its scales, and all that was logged but times. ``compare`` trains
them again and names what differs. Both on one machine and one version of
torch: another processor rounds otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fpq_plugin

DIGITS = {
    'train_dataloader.dataset.pipeline': [dict(type='PackInputs')],
    'train_dataloader.batch_size': 100,
    'default_hooks.logger.interval': 5,
}
SMALL_RESNET = {
    **DIGITS,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.head.in_channels': 32,
}
RESNET = 'fashion_mnist/resnet_fpq_w4a4.py'
FIRST = 'fashion_mnist/resnet_fp.py'
NO_NOISE = {'default_hooks.fpq.perturbation': None}
NO_LOSS = {'default_hooks.fpq.distillation': None}
NOISE = 'default_hooks.fpq.perturbation.p'
BITS = ('default_hooks.fpq.weight.bits', 'default_hooks.fpq.activation.bits')
W2A2 = dict.fromkeys(BITS, 2)
BREVITAS = {'default_hooks.fpq.backend': 'brevitas'}
KD = {'default_hooks.fpq.distillation': dict(
    _delete_=True, type='LogitKD', loss_weight=3.0, temperature=4.0)}


def types(weight: str, activation: str) -> dict:
    """Options that name the fake quantizers' types."""
    return {
        'default_hooks.fpq.weight': dict(
            _delete_=True, type=weight, bits=4),
        'default_hooks.fpq.activation': dict(
            _delete_=True, type=activation, bits=4),
    }


# From a run's name to its config and options; 'ranks', 'resume' and
# 'compile' are this script's.
RUNS: dict[str, tuple[str, dict]] = {
    'fp': (FIRST, {'train_cfg.max_epochs': 3}),
    'fpq': (RESNET, {NOISE: 0.5}),
    'fpq compiled': (RESNET, {NOISE: 0.5, 'compile': True}),
    'fpq brevitas': (RESNET, {NOISE: 0.5, **BREVITAS}),
    'lsq w2a2': (RESNET, {**NO_NOISE, **NO_LOSS, **W2A2}),
    'csd': (RESNET, NO_NOISE),
    'kd with noise': (RESNET, {NOISE: 0.5, **KD}),
    'kd with noise brevitas': (RESNET, {NOISE: 0.5, **KD, **BREVITAS}),
    'dither by sample': (RESNET, {
        NOISE: 0.5, 'default_hooks.fpq.perturbation.where': 'before',
        'default_hooks.fpq.perturbation.granularity': 'sample'}),
    'two ranks': (RESNET, {NOISE: 0.5, 'ranks': 2}),
    'two ranks synced brevitas': (RESNET, {
        'ranks': 2, 'default_hooks.fpq.distillation.sync': True, **BREVITAS}),
    'resume': (RESNET, {NOISE: 0.5, 'resume': True}),
    'resume brevitas': (RESNET, {NOISE: 0.5, 'resume': True, **BREVITAS}),
    'accumulation and average': (RESNET, {
        NOISE: 0.5, 'optim_wrapper.accumulative_counts': 2,
        'custom_hooks': [dict(type='EMAHook')]}),
    'lsq plus': (RESNET, {
        NOISE: 0.5, **types('LSQPlusFakeQuantize', 'LSQPlusFakeQuantize')}),
    'pact': (RESNET, types('DoReFaFakeQuantize', 'PACTFakeQuantize')),
    'torch_ao': (RESNET, types('TorchAOFakeQuantize', 'TorchAOFakeQuantize')),
    'mobilenet w2a2': ('fashion_mnist/mobilenet_v2_fpq_w2a2.py', {
        'default_hooks.fpq.activation.observer': 'mse', **DIGITS}),
    'vit with attention': ('fashion_mnist/vit_fpq_w4a4.py', {
        NOISE: 0.5, 'default_hooks.fpq.attention': dict(bits=8), **DIGITS}),
}
# Full-precision checkpoints by the config's first word.
TEACHERS = {
    'resnet': FIRST,
    'mobilenet': 'fashion_mnist/mobilenet_v2_fp.py',
    'vit': 'fashion_mnist/vit_fp.py',
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('verb', choices=('record', 'compare', 'one'))
    parser.add_argument('file', type=Path)
    parser.add_argument('--only', nargs='+', choices=list(RUNS),
                        default=list(RUNS), metavar='RUN')
    args = parser.parse_args()
    if args.verb == 'one':
        return train(json.loads(args.file.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        found = dict(outcomes(Path(folder), args.only))
    if args.verb == 'record':
        args.file.write_text(json.dumps(found, indent=1) + '\n')
        return None
    before = json.loads(args.file.read_text())
    other = {
        name: [key for key in found[name]
               if found[name][key] != before[name][key]]
        for name in found
    }
    other = {name: keys for name, keys in other.items() if keys}
    print(f'\n{len(found) - len(other)} of {len(found)} runs are equal, bit '
          'for bit, in ' + ', '.join(next(iter(found.values()))))
    for name, keys in other.items():
        print(f'{name}: other {", ".join(keys)}')
    sys.exit(bool(other))


def outcomes(folder: Path, names: list[str]) -> Iterator[tuple[str, dict]]:
    """Train the runs; each one's outcome."""
    write_digits(folder / 'data/fashion_mnist')
    for number, name in enumerate(names, 1):
        print(f'[{number}/{len(names)}] {name}', flush=True)
        work = folder / name.replace(' ', '_')
        run(name, folder, work)
        yield name, outcome(work)


def run(name: str, folder: Path, work: Path) -> None:
    """Train one run to its end, through as many processes as it has."""
    config, options = RUNS[name]
    options = {**(SMALL_RESNET if 'resnet' in config else {}), **options}
    ranks, resume = options.pop('ranks', 1), options.pop('resume', False)
    env = dict(os.environ, OMP_NUM_THREADS='1',
               FPQ_DATA_ROOT=str(folder / 'data'),
               FPQ_COMPILE='1' if options.pop('compile', False) else '0')
    if config != FIRST:
        if hasattr(fpq_plugin, 'Recipe'):
            # What was the default before there were presets.
            options['default_hooks.fpq.preset'] = 'paper'
        options['load_from'] = teacher(config, folder, env)
        options['train_cfg.max_epochs'] = 2
    for epochs in (1, 2) if resume else (options['train_cfg.max_epochs'], ):
        if resume and epochs == 2:
            options['load_from'] = None
            options['resume'] = True
        stop = dict(epochs=epochs) if resume else {}
        start_process(config, options, work, env, ranks, **stop)


def start_process(config: str, options: dict, work: Path, env: dict,
                  ranks: int = 1, epochs: int | None = None) -> None:
    """Train in new processes."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / 'run.json'
    file.write_text(json.dumps(dict(
        config=config, options=options, work=str(work), ranks=ranks,
        epochs=epochs)))
    command = [sys.executable]
    if ranks > 1:
        command += ['-m', 'torch.distributed.run', '--standalone',
                    f'--nproc_per_node={ranks}']
    done = subprocess.run([*command, __file__, 'one', str(file)], env=env,
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}')


def teacher(config: str, folder: Path, env: dict) -> str:
    """The full-precision checkpoint for a config, trained if need be."""
    name = Path(config).name.partition('_')[0]
    work = folder / f'teacher_{name}'
    if not (work / 'epoch_1.pth').exists():
        start_process(TEACHERS[name], {
            **(SMALL_RESNET if name == 'resnet' else DIGITS),
            'train_cfg.max_epochs': 1}, work, {**env, 'FPQ_COMPILE': '0'})
    return str(work / 'epoch_1.pth')


def train(run: dict) -> None:
    """Train, in this process, what ``run`` says."""
    import torch
    from mmengine import Config
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    import mm_configs

    class Stop(Hook):
        """Ends the process after an epoch, as a kill would."""

        priority = 'LOWEST'

        def after_train_epoch(self, runner: Runner) -> None:
            if runner.epoch + 1 == run['epochs']:
                os._exit(0)

    torch.set_num_threads(1)
    cfg = Config.fromfile(mm_configs.path(run['config']))
    hook = cfg.get('default_hooks', {}).get('fpq', {})
    for key, value in run['options'].items():
        # mmengine takes it only where there is something to delete.
        if isinstance(value, dict) and not hook.get(key.split('.')[-1]):
            value.pop('_delete_', None)
    cfg.merge_from_dict(run['options'])
    cfg.work_dir = run['work']
    if run['ranks'] > 1:
        cfg.launcher = 'pytorch'
    runner = Runner.from_cfg(cfg)
    if run['epochs'] is not None and run['epochs'] < cfg.train_cfg.max_epochs:
        runner.register_hook(Stop())
    runner.train()


def outcome(work: Path) -> dict[str, str]:
    """What a run left, in hashes."""
    from mmengine.runner import CheckpointLoader

    path = max(work.glob('epoch_*.pth'), key=lambda p: p.stat().st_mtime)
    state = CheckpointLoader.load_checkpoint(str(path))['state_dict']
    scales = {k: v for k, v in state.items() if '_quantizer.' in k
              or 'products.' in k}
    rows = []
    for file in sorted(work.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            rows.append({k: v for k, v in json.loads(line).items()
                         if 'time' not in k and k != 'memory'})
    return dict(
        weights=digest({k: v for k, v in state.items() if k not in scales}),
        scales=digest(scales),
        metrics=hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16])


def digest(state: dict) -> str:
    """Hash of tensors and their names."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return found.hexdigest()[:16]


def write_digits(folder: Path) -> None:
    """scikit-learn's digits (8 x 8) as the files of an MNIST set of 28 x 28.

    They are repeated to 24 x 24 and padded, since the models are for 28 x 28.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15).astype(np.uint8)
    images = np.pad(images.repeat(3, 1).repeat(3, 2),
                    ((0, 0), (2, 2), (2, 2)))
    order = np.random.RandomState(0).permutation(len(images))
    folder.mkdir(parents=True)
    for name, part in (('train', order[:600]), ('t10k', order[1400:])):
        for kind, array in (('images-idx3', images),
                            ('labels-idx1', labels.astype(np.uint8))):
            array = array[part]
            header = struct.pack('>HBB', 0, 8, array.ndim)
            header += struct.pack(f'>{array.ndim}I', *array.shape)
            (folder / f'{name}-{kind}-ubyte').write_bytes(
                header + array.tobytes())


if __name__ == '__main__':
    main()
