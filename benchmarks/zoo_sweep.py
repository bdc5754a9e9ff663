"""Every family of mmpretrain's model index takes FPQ steps.

Of each folder in the index the smallest config of an ImageClassifier is
trained for two iterations: in full precision, then with the unchanged W4A4
fragment of ``mm_configs`` on each backend, through Runner and hook. Weights
are random (saved, and given as ``load_from``), images are noise of the
model's own input size, the batch is 2, calibration takes 4 images. So it
shows that the families train, not how well.

Each family runs in a process of its own. A finished one leaves a file in
``--rows`` and is not run again. Run from the repository's root:

    python benchmarks/zoo_sweep.py               # runs what is missing
    python benchmarks/zoo_sweep.py --only resnet beit
    python benchmarks/zoo_sweep.py --table       # the table of what there is
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from mmengine import Config
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import Dataset
from zoo_steps import BATCH, ITERATIONS, run_row, shorten, sweep


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
        try:
            cfg = Config.fromfile(path)
        except RuntimeError:  # mmengine 0.10.7 cannot read replknet-31B's
            continue
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
    head = cfg.model.head
    cfg.train_dataloader = dict(
        batch_size=BATCH,
        num_workers=0,
        sampler=dict(type='FewSamples'),
        dataset=dict(
            type='NoiseImages',
            size=input_size(cfg),
            num_classes=head.get('num_classes', 1000),
            multi_label='MultiLabel' in head.type or 'CSRA' in head.type))
    shorten(cfg, work_dir)
    return cfg


def run_family(name: str) -> dict:
    """Train one family in full precision and on both backends."""
    import mmpretrain  # noqa: F401

    import fpq_plugin  # noqa: F401
    init_default_scope('mmpretrain')
    cfg = classifier(families()[name])
    if cfg is None:
        return dict(family=name, fp='Without an ImageClassifier that trains')
    row = dict(
        family=name,
        config=cfg.zoo_path.partition('/configs/')[2],
        input=input_size(cfg))
    return run_row(row, lambda folder: small_run(cfg, folder))


if __name__ == '__main__':
    sweep(__file__, __doc__, list(families()), 'zoo_mmpretrain', run_family)
