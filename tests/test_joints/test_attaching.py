"""Joints put into a model, found again, taken out."""

import copy
import io
from functools import partial

import pytest
import torch
from mmpretrain.models import ResNet
from pooled import Pooled

from fpq_plugin import (
    add_joints,
    calibrate,
    convert,
    param_groups,
    to_float,
)
from fpq_plugin.joints import joints_of
from fpq_plugin.quantizers import named_quantizers


def small(backend='torch_ao', bits=8, joined=True):
    torch.manual_seed(0)
    model = Pooled(ResNet(18, base_channels=8, stem_channels=8), 64)
    images = torch.rand(4, 3, 32, 32)
    convert(model, weight=dict(bits=bits), activation=dict(bits=bits),
            backend=backend)
    table = add_joints(model, images) if joined else []
    calibrate(model, [images])
    model.eval()
    return model, images, table


@pytest.fixture(params=['torch_ao', 'brevitas'])
def backend(request):
    return request.param


@pytest.mark.parametrize('bits', [8, 4])
def test_each_tensor_is_on_its_grid(backend, bits):
    """A tensor that is read by several is quantized once, for all."""
    model, images, table = small(backend, bits)
    seen = {}

    def keep(name, module, args, output):
        seen[name] = output.clone()  # what follows may change it in place

    for name, module in model.named_modules():
        if 'output_quantizer' in module._modules:
            module.register_forward_hook(partial(keep, name))
    with torch.no_grad():
        model(images)
    assert len(seen) == len(table)
    for name, out in seen.items():
        quantizer = model.get_submodule(name).output_quantizer
        grid = quantizer.grid()
        codes = (out / quantizer.step()).round() + quantizer.zero_point
        assert quantizer.num_bits == 8
        assert codes.min() >= grid.quant_min
        assert codes.max() <= grid.quant_max
        again = (codes - quantizer.zero_point) * quantizer.step()
        torch.testing.assert_close(out, again, rtol=1e-5, atol=1e-6)


def test_readers_share_a_quantizer(backend):
    model, _, _ = small(backend)
    block, following = model.backbone.layer2
    assert block.output_quantizer is following.conv1.input_quantizer
    assert block.conv1.input_quantizer is block.downsample[0].input_quantizer


def test_a_shared_step_has_one_gradient(backend):
    model, images, _ = small(backend)
    model.train()
    model(images).sum().backward()
    scales = [p for q in named_quantizers(model).values()
              for p in q.parameters()]
    assert all(p.grad is not None for p in scales)
    groups = param_groups(model, lr=0.1)
    ids = [id(p) for group in groups for p in group['params']]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_state_copy_and_pickle(backend):
    model, images, _ = small(backend)
    fresh = small(backend)[0]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for value in fresh.state_dict().values():
        if value.is_floating_point():
            value.mul_(1.5)
    fresh.load_state_dict(state)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    with torch.no_grad():
        wanted = model(images)
        for other in (fresh, copy.deepcopy(model),
                      torch.load(stream, weights_only=False)):
            assert torch.equal(other(images), wanted)
            assert joints_of(other) == joints_of(model)
            block, following = other.backbone.layer2
            assert block.output_quantizer is following.conv1.input_quantizer


def test_to_float_takes_them_out(backend):
    model, images, _ = small(backend)
    other = to_float(copy.deepcopy(model))
    assert not named_quantizers(other)
    assert not any(
        module._forward_hooks for module in other.modules())
    torch.manual_seed(0)
    plain = Pooled(ResNet(18, base_channels=8, stem_channels=8), 64)
    assert other.state_dict().keys() == plain.state_dict().keys()


def test_twice_is_refused():
    model, images, _ = small()
    with pytest.raises(ValueError, match='has joints already'):
        add_joints(model, images)


def test_after_a_training_its_steps_stay(backend):
    """Layers keep their steps; only what is new is calibrated."""
    model, images, _ = small(backend, joined=False)
    before = {name: q.step().clone()
              for name, q in named_quantizers(model).items()}
    add_joints(model, images)
    calibrate(model, [images])
    after = named_quantizers(model, remove_duplicate=False)
    assert all(torch.equal(step, after[name].step())
               for name, step in before.items())
    with torch.no_grad():
        assert torch.isfinite(model.eval()(images)).all()


def test_trained_and_new_gradients_reach_each_joint():
    model, images, _ = small(bits=4)
    model.train()
    optimizer = torch.optim.SGD(param_groups(model, lr=0.05))
    before = {name: q.step().clone()
              for name, q in named_quantizers(model).items()}
    model(images).square().sum().backward()
    optimizer.step()
    moved = [name for name, q in named_quantizers(model).items()
             if name.endswith('output_quantizer')
             and not torch.equal(before[name], q.step())]
    assert len(moved) == len([j for j in joints_of(model)
                              if j.side in ('output', 'entry')
                              and j.module])


@pytest.mark.parametrize('bits', [8, 4])
def test_what_is_on_the_grid_is_quantized_once(bits, monkeypatch):
    """A reader that shares the quantizer gets the tensor as it is.

    Not so with Brevitas, whose proxies pass on another tensor.
    """
    model, images, _ = small(bits=bits)
    calls = []
    kind = type(model.fc.input_quantizer)
    whole = kind.fake_quantize
    monkeypatch.setattr(kind, 'fake_quantize', lambda self, x: (
        calls.append(id(self)), whole(self, x))[1])
    with torch.no_grad():
        once = model(images)
        number = len(calls)
        monkeypatch.setattr(
            'fpq_plugin.quantizers.quantizer._made_by', lambda *_: False)
        again = model(images)
    torch.testing.assert_close(once, again)
    shared = [j for j in joints_of(model)
              if j.module and j.layers and j.side == 'output']
    readers = sum(len(joint.layers) for joint in shared)
    assert len(calls) - number == number + readers
    assert bool(readers) == (bits == 8)


def test_a_change_in_place_is_quantized_again():
    model, images, _ = small()
    quantizer = model.backbone.layer2[0].output_quantizer
    x = quantizer.quantize_once(torch.rand(3, 4))
    assert quantizer(x) is x
    x += quantizer.step() / 3
    again = quantizer(x)
    assert again is not x
    codes = again / quantizer.step()
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
