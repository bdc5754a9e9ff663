"""Blocks that fuse their branches: not while the branches are quantized."""

import copy

import pytest
import torch
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from torch import nn

import fpq_plugin
from fpq_plugin.openmmlab.teacher import copy_float


@pytest.fixture
def model():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), RepVGGBlock(8, 8),
                          nn.Conv2d(8, 8, 3))
    fpq_plugin.convert(model)
    return model.eval()


@pytest.mark.parametrize('copied', [False, True])
def test_branches_with_quantizers_are_not_fused(model, copied):
    model = copy.deepcopy(model) if copied else model
    with pytest.raises(RuntimeError, match='the branches are quantized'):
        model[1].switch_to_deploy()


@pytest.mark.parametrize('undo', [fpq_plugin.to_float, copy_float])
def test_branches_without_them_are(model, undo):
    plain = undo(model)
    x = torch.randn(2, 1, 12, 12)
    before = plain(x)
    plain[1].switch_to_deploy()
    assert hasattr(plain[1], 'branch_reparam')
    torch.testing.assert_close(plain(x), before)


def test_a_block_that_stays_float_is(model):
    model = fpq_plugin.to_float(model)
    fpq_plugin.convert(model, skip=['1'])
    model[1].switch_to_deploy()


def test_a_fused_model_is_quantized_as_any_other(model):
    plain = fpq_plugin.to_float(model)
    plain[1].switch_to_deploy()
    table = fpq_plugin.convert(plain)
    assert [row.name for row in table.quantized()] == [
        '0', '1.branch_reparam', '2']
