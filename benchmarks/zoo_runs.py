"""Short real runs of one model of each kind: does the loss fall?

A ViT and a MobileNetV2 on scikit-learn's digits, RetinaNet and SegFormer on
generated shapes; all small. Each is trained in full precision, then from that
checkpoint with the W4A4 fragment, for an epoch count that is in the table.
The loss is the mean of the model's own losses in an epoch. ``tox -e dense``
has what it needs:

    python benchmarks/zoo_runs.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import Dataset
from zoo_steps import FRAGMENT, RESULTS, ROOT

sys.path.insert(0, str(ROOT / 'tools'))
SIZE = 64


@DATASETS.register_module()
class Digits(Dataset):
    """scikit-learn's 1,797 digits, four times their size, in three channels.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits
        images, labels = load_digits(return_X_y=True)
        images = torch.tensor(images).reshape(-1, 1, 8, 8) * 15
        images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
        self.images = images.expand(-1, 3, -1, -1).byte()
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        from mmpretrain.structures import DataSample
        return dict(
            inputs=self.images[index],
            data_samples=DataSample().set_gt_label(int(self.labels[index])))


@HOOKS.register_module()
class EpochLosses(Hook):
    """Keeps the mean of the model's own loss in each epoch."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def before_train_epoch(self, runner) -> None:
        self._values: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        # 'loss' is the sum with loss_csd, unless the model has one by that
        # name.
        own = [float(value) for key, value in outputs.items()
               if 'loss' in key and key not in ('loss', 'loss_csd')]
        self._values.append(sum(own) if own else float(outputs['loss']))

    def after_train_epoch(self, runner) -> None:
        self.epochs.append(sum(self._values) / len(self._values))


def classifier(backbone: dict, channels: int, neck: bool) -> dict:
    """A classifier of digits."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[75.0], std=[90.0]),
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling') if neck else None,
        head=dict(type='LinearClsHead' if neck else
                  'VisionTransformerClsHead', num_classes=10,
                  in_channels=channels))


def digits(model: dict, optimizer: dict) -> dict:
    """A run on digits."""
    return dict(default_scope='mmpretrain', model=model, optimizer=optimizer,
                batch_size=64, epochs=(8, 4), dataset=dict(type='Digits'))


def runs(folder: Path) -> dict[str, dict]:
    """The four runs; ``folder`` holds the shapes."""
    from zoo_dense import detection_data, segmentation_data
    adam = dict(type='AdamW', lr=2e-3, weight_decay=0.01)
    found = {
        'ViT': digits(
            classifier(
                dict(type='VisionTransformer', img_size=32, patch_size=4,
                     arch=dict(embed_dims=48, num_layers=4, num_heads=4,
                               feedforward_channels=96)), 48, False), adam),
        'MobileNetV2': digits(
            classifier(dict(type='MobileNetV2', widen_factor=0.25), 1280,
                       True),
            dict(type='SGD', lr=0.05, momentum=0.9)),
    }
    for name, data, library, path, change in (
        ('RetinaNet', detection_data(folder, False, SIZE), 'mmdet',
         'retinanet/retinanet_r18_fpn_1x_coco.py',
         dict(bbox_head=dict(num_classes=2, stacked_convs=1, in_channels=64,
                             feat_channels=64),
              neck=dict(out_channels=64))),
        ('SegFormer', segmentation_data(folder), 'mmseg',
         'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
         dict(data_preprocessor=dict(size=(SIZE, SIZE)),
              decode_head=dict(num_classes=3, channels=64)))):
        cfg = _zoo(library, path)
        cfg.merge_from_dict(dict(model=change))
        cfg.model.backbone.init_cfg = None
        found[name] = dict(
            default_scope=library, model=cfg.model, dataset=data,
            optimizer=dict(adam, lr=5e-4), batch_size=4, epochs=(10, 4))
    return found


def _zoo(library: str, path: str) -> Config:
    from importlib.util import find_spec
    home = Path(find_spec(library).origin).parent / '.mim/configs'
    return Config.fromfile(str(home / path))


def train(name: str, spec: dict, work_dir: Path) -> dict:
    """Full precision, then FPQ; the losses of all epochs."""
    init_default_scope(spec['default_scope'])
    checkpoint = work_dir / f'{name}.pth'
    row = dict(model=name)
    for method, epochs in zip(('FP', 'FPQ W4A4'), spec['epochs']):
        cfg = Config(dict(
            default_scope=spec['default_scope'],
            model=spec['model'],
            train_dataloader=dict(
                batch_size=spec['batch_size'], num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=spec['dataset']),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(spec['optimizer']),
                               clip_grad=dict(max_norm=10)),
            default_hooks=dict(checkpoint=dict(
                type='CheckpointHook', interval=1000, save_last=False)),
            custom_hooks=[dict(type='EpochLosses')],
            randomness=dict(seed=0),
            experiment_name=f'{name}_{method}'.replace(' ', '_'),
            work_dir=str(work_dir)))
        if method != 'FP':
            cfg.merge_from_dict(Config.fromfile(str(FRAGMENT)).to_dict())
            cfg.default_hooks.fpq = cfg.fpq
            cfg.default_hooks.fpq.calibration.num_images = 32
            cfg.optim_wrapper.optimizer.lr *= 0.2
            cfg.load_from = str(checkpoint)
        start = time.time()
        runner = Runner.from_cfg(cfg)
        runner.train()
        record, = (h for h in runner.hooks if isinstance(h, EpochLosses))
        row[method] = dict(losses=record.epochs,
                           seconds=time.time() - start)
        torch.save(dict(state_dict=runner.model.state_dict()), checkpoint)
    return row


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = ['| model | FP, epochs | first | last | FPQ W4A4, epochs | first '
             '| last |', '|---|---|---|---|---|---|---|']
    for row in rows:
        cells = [row['model']]
        for method in ('FP', 'FPQ W4A4'):
            losses = row[method]['losses']
            cells += [len(losses), f'{losses[0]:.3f}', f'{losses[-1]:.3f}']
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+')
    args = parser.parse_args()
    from shapes_data import make

    import fpq_plugin  # noqa: F401
    result = RESULTS / 'zoo_runs.json'
    rows = json.loads(result.read_text()) if result.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), 40, SIZE)
        for name, spec in runs(Path(folder)).items():
            if args.only and name not in args.only:
                continue
            rows = [row for row in rows if row['model'] != name]
            rows.append(train(name, spec, Path(folder)))
            result.write_text(json.dumps(rows, indent=1))
            (RESULTS / 'zoo_runs.md').write_text(table(rows))
    print(table(rows))


if __name__ == '__main__':
    main()
