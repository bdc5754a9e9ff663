"""A calibrated layer keeps its weight, whoever rewrites the model."""

import copy
import functools

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
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
