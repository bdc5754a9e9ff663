"""Layers that only training calls, and layers that nothing calls."""

import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.models import LinearClsHead
from mmpretrain.registry import MODELS
from runs import log_of, weights

from fpq_plugin import load_model


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
