"""A wrapped model is not changed: its wrapper would not learn of it."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fpq_plugin import calibrate, convert
from fpq_plugin.layers import quantized_layers


@pytest.fixture
def gloo(tmp_path):
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def compiled_in_place(model):
    model.compile()
    return model


def part(model):
    model[0] = DistributedDataParallel(model[0])
    return model


WRAPPERS = dict(
    DistributedDataParallel=DistributedDataParallel,
    DataParallel=nn.DataParallel,
    OptimizedModule=torch.compile)
WRAPPERS['0 is wrapped by DistributedDataParallel'] = part
if hasattr(nn.Module, 'compile'):
    WRAPPERS['torch.compile'] = compiled_in_place


@pytest.mark.parametrize('name', WRAPPERS)
def test_convert_refuses_by_the_wrappers_name(gloo, name):
    wrapped = WRAPPERS[name](net())
    before = {k: v.clone() for k, v in wrapped.state_dict().items()}
    with pytest.raises(ValueError, match=f'convert: .*{name}'):
        convert(wrapped)
    assert not quantized_layers(wrapped)
    assert wrapped.state_dict().keys() == before.keys()


@pytest.mark.parametrize('name', WRAPPERS)
def test_calibrate_does_too(gloo, name):
    model = net()
    convert(model)
    wrapped = WRAPPERS[name](model)
    with pytest.raises(ValueError, match=f'calibrate: .*{name}'):
        calibrate(wrapped, [torch.randn(8, 4)])
    assert not any(layer.weight_quantizer.is_initialized()
                   for layer in quantized_layers(wrapped).values())
