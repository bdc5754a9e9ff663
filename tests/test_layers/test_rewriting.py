"""A calibrated layer keeps its weight, and a block its branches."""

import copy
import functools

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmpretrain.models.backbones import levit
from mmpretrain.models.backbones.mobileone import MobileOneBlock
from mmpretrain.models.backbones.replknet import ReparamLargeKernelConv
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import (
    parameters_to_vector,
    parametrizations,
    prune,
    vector_to_parameters,
)
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import fpq_plugin
from fpq_plugin import calibrate, to_float
from fpq_plugin.openmmlab.teacher import copy_float


@pytest.fixture
def convert(backend):
    return functools.partial(fpq_plugin.convert, backend=backend)


def net():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 5), nn.BatchNorm1d(5))
    for norm in (model[1], model[4], model[8]):
        nn.init.uniform_(norm.weight, 0.3, 3)
        norm.running_var.uniform_(0.05, 4)
    return model.eval()


@pytest.fixture
def x():
    return torch.randn(6, 3, 8, 8)


@pytest.fixture
def model(convert, x):
    model = net()
    convert(model)
    calibrate(model, [x])
    return model


def snapshot(model):
    return ([(name, type(module)) for name, module in model.named_modules()],
            {key: value.tolist() for key, value in
             model.state_dict().items()})


def tie(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


REWRITE = {
    'mmcv': fuse_conv_bn,
    'mmcv_of_a_copy': lambda model: fuse_conv_bn(copy.deepcopy(model)),
    'torch_conv': lambda model: fuse_conv_bn_eval(model[0], model[1]),
    'torch_transpose': lambda model: fuse_conv_bn_eval(
        model[3], model[4], transpose=True),
    'torch_linear': lambda model: fuse_linear_bn_eval(model[7], model[8]),
    'another_parameter': tie,
    'spectral_norm': lambda model: nn.utils.spectral_norm(model[0]),
    'parametrization': lambda model: parametrizations.spectral_norm(model[7]),
}


@pytest.mark.parametrize('rewrite', REWRITE.values(), ids=REWRITE)
def test_another_weight_is_refused_and_nothing_changes(model, rewrite):
    before = snapshot(model)
    with pytest.raises(RuntimeError, match='fusing a batch norm.*to_float'):
        rewrite(model)
    assert snapshot(model) == before


@pytest.mark.parametrize('calibrated', [False, True])
def test_fusing_works_without_steps(convert, x, calibrated):
    model = net()
    expected = model(x)
    convert(model, weight=dict(bits=8), activation=dict(bits=8))
    if calibrated:
        calibrate(model, [x])
        to_float(model)
    fuse_conv_bn(model)
    if not calibrated:
        calibrate(model, [x])
    assert isinstance(model[1], nn.Identity)
    assert (model(x) - expected).abs().max() < 0.1 * expected.abs().max()


def test_fusing_works_where_the_weight_is_float(convert, x):
    model = net()
    convert(model, weight=None)
    calibrate(model, [x])
    expected = model(x)
    torch.testing.assert_close(fuse_conv_bn(model)(x), expected)


def test_brevitas_fusing_is_refused(x):
    model = net()
    fpq_plugin.convert(model, backend='brevitas')
    model[0].merge_bn_in(copy.deepcopy(model[1]))
    calibrate(model, [x])
    with pytest.raises(RuntimeError, match='fusing a batch norm'):
        model[0].merge_bn_in(model[1])


def test_what_changes_a_weight_in_place_is_taken(model, x):
    doubled = {k: 2 * v if k == '0.weight' else v
               for k, v in model.state_dict().items()}
    model.load_state_dict(doubled, assign=True)
    assert torch.equal(model[0].weight, doubled['0.weight'])
    model.load_state_dict(copy.deepcopy(model).state_dict())
    model[0].weight = model[0].weight
    vector_to_parameters(
        2 * parameters_to_vector(model.parameters()), model.parameters())
    assert torch.equal(model[0].weight, 2 * doubled['0.weight'])
    model.double().float().to('cpu').share_memory()
    torch.optim.swa_utils.AveragedModel(model).update_parameters(model)
    weight = model[0].weight.detach()
    torch.func.functional_call(model, {'0.weight': 0 * weight}, (x, ))
    assert torch.equal(model[0].weight, weight)


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


SHARD = {
    'fsdp': lambda model: FullyShardedDataParallel(
        model, device_id=torch.device('cpu')),
    'fsdp_original_parameters': lambda model: FullyShardedDataParallel(
        model, device_id=torch.device('cpu'), use_orig_params=True),
    'ddp': nn.parallel.DistributedDataParallel,
}


@pytest.mark.parametrize('shard', SHARD.values(), ids=SHARD)
def test_data_parallel_wrappers_take_a_calibrated_model(model, x, alone,
                                                        shard):
    try:
        shard(nn.Linear(2, 2))(torch.ones(1, 2))
    except TypeError as error:  # a float layer: torch 2.1
        pytest.skip(f'FSDP of this torch needs an accelerator: {error}')
    expected = model(x)
    out = shard(model)(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()


def test_a_mask_of_a_calibrated_layer_masks_it(model, x):
    prune.l1_unstructured(model[0], 'weight', 0.5)
    layer = model[0]
    quantized = layer.quantized_weight(layer.weight)
    assert (quantized == 0).float().mean() >= 0.5
    expected = model(x)
    prune.remove(layer, 'weight')
    assert torch.equal(model(x), expected)


def test_weight_norm_of_a_calibrated_layer_changes_no_answer(model, x):
    # In float32 the last digit of the norm can move a weight by a step.
    model, x = model.double(), x.double()
    expected = model(x)
    nn.utils.weight_norm(model[7])
    torch.testing.assert_close(model(x), expected)
    to_float(model)
    assert model[7].weight.shape == (5, 256)


def block():
    return nn.Sequential(
        ConvModule(3, 4, 3, norm_cfg=dict(type='BN'),
                   efficient_conv_bn_eval=True),
        nn.Conv2d(4, 4, 3)).eval()


def test_mmcvs_fused_evaluation_is_refused_by_name(convert, x):
    model = block()
    before = snapshot(model)
    with pytest.raises(ValueError, match='^0: efficient_conv_bn_eval'):
        convert(model)
    assert snapshot(model) == before
    model[0].turn_on_efficient_conv_bn_eval(False)
    convert(model)
    calibrate(model, [x])
    expected = model(x)
    model[0].turn_on_efficient_conv_bn_eval()
    with pytest.raises(ValueError, match='efficient_conv_bn_eval'):
        model(x)
    model[0].turn_on_efficient_conv_bn_eval(False)
    assert torch.equal(model(x), expected)


BLOCKS = {
    'repvgg': (lambda: RepVGGBlock(3, 8, stride=2),
               ['branch_3x3.conv', 'branch_1x1.conv']),
    'mobileone': (lambda: MobileOneBlock(3, 8, 3, 2),
                  ['branch_scale.conv', 'branch_conv_list.0.conv',
                   'branch_conv_list.1.conv']),
    'replknet': (lambda: ReparamLargeKernelConv(3, 8, 5, 1, 1, 3),
                 ['lkb_origin.conv', 'small_conv.conv']),
}


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


@pytest.fixture
def repvgg():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), RepVGGBlock(8, 8),
                          nn.Conv2d(8, 8, 3))
    fpq_plugin.convert(model)
    return model.eval()


@pytest.mark.parametrize('copied', [False, True])
def test_branches_with_quantizers_are_not_fused(repvgg, copied):
    model = copy.deepcopy(repvgg) if copied else repvgg
    with pytest.raises(RuntimeError, match='the branches are quantized'):
        model[1].switch_to_deploy()


@pytest.mark.parametrize('undo', [fpq_plugin.to_float, copy_float])
def test_branches_without_them_are(repvgg, undo):
    plain = undo(repvgg)
    x = torch.randn(2, 1, 12, 12)
    before = plain(x)
    plain[1].switch_to_deploy()
    assert hasattr(plain[1], 'branch_reparam')
    torch.testing.assert_close(plain(x), before)


def test_a_block_that_stays_float_is(repvgg):
    model = fpq_plugin.to_float(repvgg)
    fpq_plugin.convert(model, skip=['1'])
    model[1].switch_to_deploy()


def test_a_fused_model_is_quantized_as_any_other(repvgg):
    plain = fpq_plugin.to_float(repvgg)
    plain[1].switch_to_deploy()
    table = fpq_plugin.convert(plain)
    assert [row.name for row in table.quantized()] == [
        '0', '1.branch_reparam', '2']
