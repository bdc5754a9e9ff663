"""Where quantizers go beside the layers'."""

import pytest
import torch
from mmpretrain.models import (
    MobileNetV2,
    MobileNetV3,
    ResNet,
    ShuffleNetV2,
    VisionTransformer,
)
from pooled import Pooled
from torch import nn

from fpq_plugin import Recipe
from fpq_plugin.joints import place_joints, watch_forward
from fpq_plugin.targets import STANDARD, target_of


def placed(model, target='onnxruntime', size=32, bits='w8a8', channels=3):
    recipe = Recipe(bits=bits, perturbation=None, distillation=None)
    recipe.convert(model)
    images = torch.rand(2, channels, size, size)
    seen = watch_forward(model, lambda: model(images))
    rules = target_of(target) if isinstance(target, str) else target
    return place_joints(model, seen, rules, 8)


def places(placing):
    return {joint.module: joint for joint in placing.joints
            if joint.module and joint.side != 'bias'}


def test_a_residual_net():
    placing = placed(Pooled(ResNet(18), 512))
    found = places(placing)
    # Both operands of each sum; the pool's operand; nothing twice.
    assert {name.removeprefix('backbone.') for name in found} == {
        'maxpool', *(f'layer{i}.{j}.bn2' for i in range(1, 5)
                     for j in range(2)),
        *(f'layer{i}.0.downsample.1' for i in (2, 3, 4)),
        *(f'layer{i}.0' for i in range(1, 5)), 'layer4.1'}
    assert not placing.left
    # At 8 bits the next block's layer shares it.
    assert found['backbone.layer2.0'].layers == ('backbone.layer2.1.conv1', )
    # What layers alone read needs no place: they share a quantizer.
    assert ('backbone.layer2.0.conv1', 'backbone.layer2.0.downsample.0') in [
        joint.layers for joint in placing.joints if not joint.module]
    assert found['backbone.layer4.1'].why == 'avg_pool'


def test_layers_of_fewer_bits_share_one_of_their_own():
    placing = placed(Pooled(ResNet(18), 512), bits='w4a4')
    assert places(placing)['backbone.layer2.0'].layers == ()
    shared = [joint.layers for joint in placing.joints if not joint.module]
    assert ('backbone.layer2.0.conv1',
            'backbone.layer2.0.downsample.0') in shared


def test_a_block_without_a_shortcut_needs_none():
    found = places(placed(Pooled(MobileNetV2(), 1280)))
    assert 'backbone.layer1.0' not in found  # its only reader is a layer
    assert found['backbone.layer2.1.conv.2.bn'].why == 'add'


def test_squeeze_and_excitation_and_hard_swish():
    found = places(placed(Pooled(MobileNetV3('small'), 576)))
    why = {joint.why for joint in found.values()}
    # Convolutions end in integers before an operation that has no kernel.
    assert {'end of conv', 'avg_pool, mul'} <= why


def test_what_a_model_returns_ends_in_a_quantizer_for_executorch():
    model = Pooled(ResNet(18), 512)
    found = places(placed(model, 'executorch'))
    last = next(name for name, module in reversed(list(
        model.named_modules())) if isinstance(module, nn.Linear))
    assert found[last].why == 'end of linear'
    assert found[last].side == 'output'
    # All else is where onnxruntime has it.
    assert found.keys() - places(placed(
        Pooled(ResNet(18), 512))).keys() == {last}


def test_channel_shuffle_is_seen_through():
    placing = placed(Pooled(ShuffleNetV2(), 1024))
    assert 'backbone.layers.0.1' in places(placing)
    assert not any('cat' in text for text in placing.left)


class Pyramid(nn.Module):
    """Two levels, and two branches that both of them go through."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.levels = nn.ModuleList([nn.Conv2d(8, 8, 1),
                                     nn.Conv2d(8, 8, 1, 2)])
        self.further = nn.Conv2d(8, 8, 3, 2, 1)
        self.branches = nn.ModuleList([nn.Conv2d(8, 4, 1),
                                       nn.Conv2d(8, 5, 1)])

    def forward(self, x):
        x = self.stem(x)
        first, second = (level(x) for level in self.levels)
        both = [[branch(level) for level in (first, second)]
                for branch in self.branches]
        return (*both, self.further(second))


def test_branches_that_levels_share_read_by_one_quantizer():
    placing = placed(Pyramid())
    joints = {joint.layers: joint for joint in placing.joints
              if joint.side != 'bias'}
    assert joints['branches.0', 'branches.1'].why == 'the same tensors'
    assert joints['branches.0', 'branches.1'].module is None
    # The second level is read by another quantizer as well: it has its own.
    assert places(placing)['levels.1'].why == 'end of conv'
    assert places(placing)['levels.1'].layers == ('further', )
    assert 'levels.0' not in places(placing)
    assert len(joints) == 3  # the two levels' layers read one tensor


def test_sums_between_norms_stay_float():
    model = Pooled(VisionTransformer('deit-tiny', 32, 8, out_type='cls_token'),
                192)
    placing = placed(model)
    assert list(places(placing)) == ['backbone.patch_embed.projection']


def test_openvino_gets_sums_and_pools_alone():
    found = places(placed(Pooled(ResNet(18), 512), 'openvino'))
    # Both operands of each sum, and what the pool reads, as elsewhere.
    assert set(found) == set(places(placed(Pooled(ResNet(18), 512))))
    found = places(placed(Pooled(MobileNetV3('small'), 576), 'openvino'))
    kinds = {kind for joint in found.values()
             for kind in joint.why.split(', ')}
    assert kinds == {'add', 'avg_pool'}


def test_no_rules_no_joints():
    found = placed(Pooled(MobileNetV2(), 1280), STANDARD)
    assert not places(found)


class Sum(nn.Module):

    def __init__(self, inner):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.inner = inner

    def forward(self, x):
        return self.c(self.inner(self.a(x), self.b(x)))


class Inside(nn.Module):
    """Its sums' operand is made and read inside this forward."""

    def forward(self, a, b):
        return (a + b) + b


def test_what_no_module_returns_or_gets_is_named():
    placing = placed(Sum(Inside()), channels=2)
    assert placing.left == (
        'add in inner: an operand is made and read inside a forward',
        'conv in a: its result is read inside a forward') or (
        'add in inner: an operand is made and read inside a forward'
        in placing.left)


class Twice(nn.Module):
    """A module that is called twice returns two tensors."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.b(self.relu(self.a(x)) + self.relu(self.a(2 * x)))


def test_a_module_called_twice_is_no_place():
    placing = placed(Twice(), channels=2)
    assert not places(placing)
    assert any(text.startswith('add in') for text in placing.left)


@pytest.mark.parametrize(('frozen', 'shared'), [(False, True), (True, False)])
def test_frozen_and_trained_layers_do_not_share(frozen, shared):
    model = Sum(nn.Module())
    model.inner.forward = torch.add
    if frozen:
        model.b.requires_grad_(False)
    placing = placed(model, channels=2)
    assert (('a', 'b') in [j.layers for j in placing.joints]) == shared


def test_no_end_of_a_transposed_convolution():
    """onnxruntime has no kernel of integers for it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                          nn.ConvTranspose2d(8, 8, 2, 2))
    assert list(places(placed(model))) == []
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                          nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 4, 3))
    found = places(placed(model))
    assert list(found) == []  # the next layer's own quantizer is there
