"""Blocks with branches to be fused: told of, and treated alike."""

import functools

import pytest
import torch
from mmpretrain.models.backbones import levit
from mmpretrain.models.backbones.mobileone import MobileOneBlock
from mmpretrain.models.backbones.replknet import ReparamLargeKernelConv
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from torch import nn

import fpq_plugin
from fpq_plugin import calibrate, to_float

BLOCKS = {
    'repvgg': (lambda: RepVGGBlock(3, 8, stride=2),
               ['branch_3x3.conv', 'branch_1x1.conv']),
    'mobileone': (lambda: MobileOneBlock(3, 8, 3, 2),
                  ['branch_scale.conv', 'branch_conv_list.0.conv',
                   'branch_conv_list.1.conv']),
    'replknet': (lambda: ReparamLargeKernelConv(3, 8, 5, 1, 1, 3),
                 ['lkb_origin.conv', 'small_conv.conv']),
}


@pytest.fixture
def convert(backend):
    return functools.partial(fpq_plugin.convert, backend=backend)


@pytest.fixture(params=BLOCKS)
def case(request):
    make, branches = BLOCKS[request.param]
    return make(), branches


def bits(table, names):
    return [next(r.weight_bits for r in table if r.name == n) for n in names]


def test_all_branches_of_the_first_block_have_its_bits(convert, case):
    block, branches = case
    model = nn.Sequential(block, nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    with pytest.warns(UserWarning, match='1 blocks train branches.*switch_to'):
        table = convert(model)
    names = [f'0.{branch}' for branch in branches]
    assert bits(table, [*names, '1', '2']) == [8] * len(names) + [4, 8]
    whys = [r.why for r in table if r.name in names]
    assert sorted(whys) == ['beside the first layer'] * (
        len(names) - 1) + ['first layer']


def test_all_branches_of_the_last_block_too(convert, case):
    block, branches = case
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3), block,
                          nn.Linear(8, 2))
    with pytest.warns(UserWarning, match='1 blocks train branches'):
        table = convert(model, skip=['3'])
    names = [f'2.{branch}' for branch in branches]
    assert bits(table, ['0', '1', *names]) == [8, 4] + [8] * len(names)
    last = next(r for r in reversed(table) if r.name in names)
    assert last.why in ('last of those that are left',
                        'beside the last layer')


def test_branches_that_stay_float_stay_silent(convert, case, recwarn):
    block, _ = case
    convert(nn.Sequential(nn.Conv2d(3, 3, 1), block, nn.Conv2d(8, 1, 1)),
            skip=['1'])
    assert not [w for w in recwarn if 'branches' in str(w.message)]


def test_a_model_whose_blocks_are_all_in_a_row_stays_silent(convert, recwarn):
    """LeViT's switch_to_deploy fuses batch norms, and no branches."""
    model = levit.LeViT('128s', img_size=64, drop_path_rate=0)
    table = convert(model)
    assert not [w for w in recwarn if 'branches' in str(w.message)]
    assert [r.why for r in table if r.weight_bits == 8] == [
        'first layer', 'last layer']
    with pytest.raises(RuntimeError, match='switch_to_deploy'):
        model.switch_to_deploy()


class Normed(nn.Module):
    """A block that fuses its batch norm; its forward fuses features."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.fuse_features(self.bn(self.conv(x)), x[..., 1:-1, 1:-1])

    def fuse_features(self, a, b):
        return a + b

    def fuse(self):
        return nn.utils.fuse_conv_bn_eval(self.conv, self.bn)


class Pyramid(nn.Module):
    """Here ``fuse`` is a step of the forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.fuse(self.a(x), self.b(x))

    def fuse(self, a, b):
        return a + b


def test_a_blocks_own_fuse_is_refused_until_it_is_float(convert):
    model = nn.Sequential(Normed(), nn.Conv2d(3, 3, 1)).eval()
    convert(model)
    with pytest.raises(RuntimeError, match=r'^fuse: .*to_float'):
        model[0].fuse()
    to_float(model)
    assert isinstance(model[0].fuse(), nn.Conv2d)


def test_fusing_features_is_no_fusing(convert):
    model, x = nn.Sequential(Pyramid(), nn.Conv2d(3, 3, 1)), torch.randn(
        2, 3, 6, 6)
    convert(model)
    calibrate(model, [x])
    assert model(x).shape == (2, 3, 4, 4)
