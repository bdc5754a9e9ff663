"""Layers that only training calls, and layers that nothing calls."""

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import Runner
from mmpretrain.models import LinearClsHead
from mmpretrain.registry import MODELS
from runs import log_of, weights
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
)
from toy_runs import Numbers, ToyNet, register, toy_config

from fpq_plugin import load_model
from fpq_plugin.openmmlab.calibration import calibration_batches, images_in


@MODELS.register_module(force=True)
class HeadWithSpares(LinearClsHead):
    """``aux`` is called in training alone, ``spare`` never."""

    def __init__(self, in_channels, num_classes, **kwargs):
        super().__init__(num_classes, in_channels, **kwargs)
        self.aux = torch.nn.Linear(in_channels, num_classes)
        self.spare = torch.nn.Linear(3, 3)

    def loss(self, feats, data_samples, **kwargs):
        losses = super().loss(feats, data_samples, **kwargs)
        scores = self.aux(self.pre_logits(feats))
        losses['loss_aux'] = self._get_loss(scores, data_samples)['loss']
        return losses


@pytest.fixture
def spares_config(fpq_config, fp, tmp_path):
    state = weights(fp)
    head = HeadWithSpares(32, 10)
    state.update((f'head.{k}', v) for k, v in head.state_dict().items()
                 if not k.startswith('fc'))
    torch.save(state, tmp_path / 'spares.pth')

    def make(**more):
        return fpq_config(load_from=str(tmp_path / 'spares.pth'), **{
            'model.head.type': 'HeadWithSpares', **more})

    return make


def test_one_run(spares_config, tmp_path):
    cfg = spares_config()
    runner = Runner.from_cfg(cfg)
    runner.train()
    head = runner.model.head
    assert head.aux.input_quantizer.has_step()
    assert head.spare.input_quantizer.is_idle()
    assert head.spare.weight_quantizer.is_idle()
    log = log_of(tmp_path / 'run')
    assert log.count('leaves float the layers that no forward calls') == 1
    assert 'no forward calls: head.spare.' in log
    assert 'distillation leaves out head.aux: the teacher did not' in log
    assert 'FPQ distills by CSD alone: that ' in log
    assert 'FPQ quantized 18 of 19 layers' in log
    x = torch.randn(4, 3)
    assert torch.equal(head.spare(x), torch.nn.functional.linear(
        x, head.spare.weight, head.spare.bias))

    path = tmp_path / 'run/epoch_1.pth'
    model = load_model(cfg, str(path))
    assert model.head.spare.input_quantizer.is_idle()
    assert torch.equal(model.head.spare(x), head.spare(x))

    # A resumed run neither calibrates again nor refuses the checkpoint.
    cfg = spares_config(resume=True, **{'train_cfg.max_epochs': 2})
    cfg.load_from = str(path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.model.head.spare.input_quantizer.is_idle()
    log = log_of(tmp_path / 'run')
    assert log.count('FPQ calibrates') == 1
    assert log.count('leaves float the layers that no forward calls') == 2


class Stream(IterableDataset):
    """Numbers one after the other, without a length."""

    read = 0

    def __iter__(self):
        for index in range(40):
            type(self).read += 1
            yield Numbers()[index]


class Batches(Dataset):
    """Whole batches of six, each a sample."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        rows = [Numbers()[6 * index + i] for i in range(6)]
        return torch.stack([x for x, _ in rows]), torch.tensor(
            [y for _, y in rows])


class Pairs(BatchSampler):
    """Batches of two, which no attribute tells of."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, 2, False)
        del self.batch_size

    def __iter__(self):
        row = []
        for index in self.sampler:
            row.append(index)
            if len(row) == 2:
                yield row
                row = []

    def __len__(self):
        return len(self.sampler) // 2


def sizes(loader, num_images=20):
    return [images_in(batch) for batch in calibration_batches(
        loader, num_images, seed=0, progress=False)]


def of_sampler(kind, size):
    return dict(batch_sampler=kind(RandomSampler(Numbers()), size))


LOADERS = {
    'batch_size': (Numbers, dict(batch_size=8), [8, 8, 4]),
    'one': (Numbers, dict(batch_size=1), [1] * 20),
    'large': (Numbers, dict(batch_size=32), [20]),
    'list': (Numbers, dict(batch_size=8, collate_fn=list), [8, 8, 4]),
    'pseudo': (Numbers, dict(batch_size=8, collate_fn=pseudo_collate),
               [8, 8, 4]),
    'workers': (Numbers, dict(batch_size=8, num_workers=1,
                              persistent_workers=True), [8, 8, 4]),
    'concat': (lambda: ConcatDataset([Numbers(), Numbers()]),
               dict(batch_size=8), [8, 8, 4]),
    'stream': (Stream, dict(batch_size=8), [8, 8, 8]),
    'whole batches': (Batches, dict(batch_size=None), [6] * 4),
}


@pytest.mark.parametrize('name', LOADERS)
def test_batches_are_no_larger_than_the_loaders(name):
    dataset, options, expected = LOADERS[name]
    made = dataset()
    batches = calibration_batches(
        DataLoader(made, **options), 20, seed=0, progress=False)
    assert [len(batch) if name == 'list' else len(batch[0])
            for batch in batches] == expected
    if isinstance(made, Numbers):
        assert len(made.read) == len(set(made.read)) == 20


def test_batch_samplers():
    for kind, size, expected in ((BatchSampler, 3, [3] * 6 + [2]),
                                 (Pairs, 2, [1] * 20)):
        sampler = (kind(RandomSampler(Numbers()), size, False)
                   if kind is BatchSampler else
                   kind(RandomSampler(Numbers()), size))
        assert sizes(DataLoader(Numbers(), batch_sampler=sampler)) == expected


def test_a_sampler_of_batches():
    class Rows(Numbers):

        def __getitem__(self, index):
            rows = [super(Rows, self).__getitem__(i) for i in index]
            return torch.stack([x for x, _ in rows])

    sampler = BatchSampler(RandomSampler(Numbers()), 5, False)
    loader = DataLoader(Rows(), sampler=sampler, batch_size=None)
    assert sizes(loader) == [5] * 4


def test_any_iterable_of_batches():
    read = []

    class Loader:

        def __iter__(self):
            for number in range(9):
                read.append(number)
                yield dict(inputs=torch.randn(8, 4))

    assert sizes(Loader()) == [8] * 3
    assert len(read) == 3


@pytest.mark.parametrize('dataset', [Numbers, Stream])
def test_too_few_images(dataset):
    loader = DataLoader(dataset(), batch_size=8)
    with pytest.raises(ValueError, match='the training set has 40. Lower'):
        sizes(loader, 41)


@pytest.mark.parametrize(('batch', 'number'), [
    (torch.zeros(5, 3, 4, 4), 5),
    ((torch.zeros(5, 3, 4, 4), torch.zeros(5)), 5),
    (dict(inputs=[torch.zeros(3, 4, 4)] * 5, data_samples=[0] * 5), 5),
    (dict(inputs=torch.zeros(5, 3, 4, 4)), 5),
    (dict(inputs=[torch.zeros(5, 3, 4, 4)] * 2), 5),
    (dict(inputs=dict(img=[torch.zeros(3, 4, 4)] * 5)), 5),
    ([dict(inputs=torch.zeros(3, 4, 4))] * 5, 5),
    (dict(img=torch.zeros(5, 3, 4, 4), mask=torch.zeros(5)), 5),
], ids=range(8))
def test_how_many_images_a_batch_has(batch, number):
    assert images_in(batch) == number


class Sized(ToyNet):

    sizes = []

    def logits(self, x):
        self.sizes.append(len(x))
        return super().logits(x)


@pytest.mark.parametrize(('loader', 'most'), [
    (dict(batch_size=2, batch_sampler=dict(type='Pairs')), 2),
    (dict(batch_size=3, sampler=dict(type='InfiniteSampler')), 3),
    (dict(batch_size=4, dataset=dict(type='Stream'), sampler=None), 4),
])
def test_a_run_of_each_loader(tmp_path, loader, most):
    register(DATA_SAMPLERS, Pairs)
    register(DATASETS, Stream)
    cfg = toy_config(tmp_path, Sized)
    cfg.train_dataloader.update(loader)
    cfg.train_cfg = dict(by_epoch=False, max_iters=4)
    cfg.default_hooks.logger = None  # MMEngine's asks for a length
    Sized.sizes.clear()
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert max(Sized.sizes) == most
    assert runner.iter == 4
