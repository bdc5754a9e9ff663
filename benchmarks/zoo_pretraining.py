"""Self-supervised and retrieval models of mmpretrain take FPQ steps.

As ``zoo_sweep.py`` does for classifiers, with the smallest such config of
each folder: two iterations in full precision, then with the unchanged W4A4
fragment on each backend. Pictures of noise go through the config's own
training pipeline, which makes views and masks of them. Models that average
their own weights are refused; their rows hold the message.

    python benchmarks/zoo_pretraining.py
"""

from __future__ import annotations

import numpy as np
from mmengine import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import Dataset
from zoo_steps import BATCH, ITERATIONS, run_row, shorten, sweep
from zoo_sweep import families

SIZE = 256
FAMILIES = ['arcface', 'barlowtwins', 'beit', 'beitv2', 'byol', 'cae',
            'densecl', 'eva', 'itpn', 'mae', 'maskfeat', 'mff', 'milan',
            'mixmim', 'mocov2', 'mocov3', 'simclr', 'simmim', 'simsiam',
            'spark', 'swav']


@DATASETS.register_module()
class PipedNoise(Dataset):
    """Pictures of noise behind a training pipeline.

    Args:
        pipeline (list[dict]): The pipeline; what reads files is left out.
    """

    def __init__(self, pipeline: list[dict]) -> None:
        self.pipeline = Compose([
            step for step in pipeline if step['type'] != 'LoadImageFromFile'])

    def __len__(self) -> int:
        return BATCH * ITERATIONS

    def __getitem__(self, index: int) -> dict:
        image = np.random.default_rng(index).integers(
            256, size=(SIZE, SIZE, 3), dtype=np.uint8)
        return self.pipeline(dict(
            img=image, img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE),
            gt_label=index, sample_idx=index))


def pretraining(configs: list[str]) -> Config:
    """The first config whose model pretrains or retrieves."""
    from mmpretrain.registry import MODELS
    for path in configs:
        cfg = Config.fromfile(path)
        kind = MODELS.get(str(cfg.model.get('type')))
        kinds = {base.__name__ for base in getattr(kind, '__mro__', ())}
        if (kinds & {'BaseSelfSupervisor', 'BaseRetriever'}
                and cfg.get('train_dataloader') is not None):
            cfg.zoo_path = path
            return cfg
    raise LookupError('no config that pretrains or retrieves')


def small_run(cfg: Config, work_dir: str) -> Config:
    """The config's own model, pipeline and optimizer on two batches."""
    cfg = cfg.copy()
    if cfg.model.type == 'ImageToImageRetriever':
        cfg.model.prototype = 'read only in a test'
    cfg.train_dataloader = dict(
        batch_size=BATCH, num_workers=0, sampler=dict(type='FewSamples'),
        collate_fn=cfg.train_dataloader.get('collate_fn',
                                            dict(type='default_collate')),
        dataset=dict(type='PipedNoise',
                     pipeline=cfg.train_dataloader.dataset.pipeline))
    shorten(cfg, work_dir)
    return cfg


def run_family(name: str) -> dict:
    """Train one family in full precision and on both backends."""
    import mmpretrain.models  # noqa: F401

    import fpq_plugin  # noqa: F401
    init_default_scope('mmpretrain')
    cfg = pretraining(families()[name])
    row = dict(family=name, config=cfg.zoo_path.partition('/configs/')[2],
               input=SIZE)
    return run_row(row, lambda folder: small_run(cfg, folder))


if __name__ == '__main__':
    sweep(__file__, __doc__, FAMILIES, 'zoo_pretraining', run_family)
