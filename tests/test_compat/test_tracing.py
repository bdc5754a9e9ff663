"""torch's own tracers see quantized models as they are."""

import io

import pytest
import torch
from exported_models import net
from mmcv.cnn import ConvAWS2d
from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.models.backbones.vision_transformer import (
    TransformerEncoderLayer,
)
from mmpretrain.models.utils import InvertedResidual
from torch import nn

from fpq_plugin import calibrate, convert, register_weight_reader

HAS_EXPORT = hasattr(torch.compiler, 'is_exporting')


class SelfAttention(nn.Module):
    """Of one tensor of tokens (N, L, C)."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@register_weight_reader
class ReadsWeight(nn.Module):
    """A layer whose weight is read, not called."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(8, 4)

    def forward(self, x):
        return nn.functional.linear(x, self.encode.weight)


MODELS = {
    'net': (net, (3, 8, 8)),
    'conv1d': (lambda: nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1, padding_mode='circular')), (3, 9)),
    'transposed': (lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 8, 3, stride=2)), (3, 5, 5)),
    'standardized': (lambda: nn.Sequential(ConvAWS2d(3, 8, 3)), (3, 8, 8)),
    'attention': (SelfAttention, (5, 8)),
    'read': (lambda: nn.Sequential(ReadsWeight(), nn.Linear(4, 3)), (8, )),
}
TORCH_AO = dict(type='TorchAOFakeQuantize')
QUANTIZERS = {
    'torch_ao': [
        {}, dict(weight=dict(type='LSQPlusFakeQuantize'),
                 activation=dict(type='LSQPlusFakeQuantize')),
        dict(weight=dict(type='DoReFaFakeQuantize'),
             activation=dict(type='PACTFakeQuantize')),
        dict(weight=TORCH_AO, activation=TORCH_AO), dict(activation=None)],
    'brevitas': [
        {}, dict(weight=dict(type='Int8WeightPerTensorFloat'),
                 activation=dict(type='Int8ActPerTensorFloat'))],
}
CASES = [(backend, name, options) for backend, known in QUANTIZERS.items()
         for name in MODELS for options in known
         if not options or name in ('net', 'conv1d')]

# Brevitas's own quantizers are no graph of torch.export, and the compiler
# behind strict=True finds no layer by its weight.
EXPORTED = [
    (*case, strict) for case in CASES for strict in (True, False)
    if 'Int8' not in str(case[2])
    and not (strict and (case[1] == 'read' or case[2]))
]


def quantized(name, backend='torch_ao', **options):
    build, shape = MODELS[name]
    model, x = build(), torch.randn(6, *shape)
    convert(model, backend=backend, perturbation=dict(p=1.0), **options)
    calibrate(model, [x])
    return model.eval(), x


def saved(tool, made):
    """What a file of ``made`` holds."""
    file = io.BytesIO()
    tool.save(made, file)
    file.seek(0)
    return tool.load(file)


def answers(call, x):
    with torch.no_grad():
        return call(x)


@pytest.mark.parametrize(('backend', 'name', 'options'), CASES)
def test_a_trace_answers_as_the_model(backend, name, options):
    """Saved and loaded, at another batch size; frozen as well."""
    model, x = quantized(name, backend, **options)
    traced = torch.jit.trace(model, x[:2])
    for call in (saved(torch.jit, traced), torch.jit.freeze(traced)):
        torch.testing.assert_close(answers(call, x), answers(model, x))


@pytest.mark.parametrize(('backend', 'name', 'options'), CASES)
def test_a_symbolic_trace_holds_whole_layers(backend, name, options):
    """As torch.fx does it with torch's own layers; training stays right."""
    model, x = quantized(name, backend, **options)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(answers(graph, x), answers(model, x))
    torch.fx.symbolic_trace(model.train())


@pytest.mark.skipif(not HAS_EXPORT, reason='torch.export cannot be told')
@pytest.mark.parametrize(('backend', 'name', 'options', 'strict'), EXPORTED)
def test_torch_export_keeps_the_batch_free(backend, name, options, strict):
    model, x = quantized(name, backend, **options)
    exported = torch.export.export(
        model, (x[:2], ), strict=strict,
        dynamic_shapes=({0: torch.export.Dim('batch')}, ))
    call = saved(torch.export, exported).module()
    torch.testing.assert_close(answers(call, x), answers(model, x))


def squeezing():
    """Squeeze-and-excitation and hard swish, as in MobileNetV3."""
    return InvertedResidual(
        8, 8, 16, act_cfg=dict(type='HSwish'), se_cfg=dict(
            channels=16, ratio=4, act_cfg=(
                dict(type='ReLU'), dict(type='HSigmoid'))))


def transformer():
    return nn.Sequential(nn.Linear(8, 12), TransformerEncoderLayer(12, 2, 24))


ZOO = {
    'residual': (lambda: BasicBlock(8, 8), (8, 6, 6)),
    'squeezing': (squeezing, (8, 6, 6)),
    'transformer': (transformer, (5, 8)),
}


@pytest.mark.parametrize('backend', QUANTIZERS)
@pytest.mark.parametrize('name', ZOO)
def test_blocks_of_the_zoo_are_traced_and_exported(name, backend):
    """In four bits, at a free batch size."""
    build, shape = ZOO[name]
    model, x = build(), torch.randn(6, *shape)
    convert(model, backend=backend, weight=dict(bits=4),
            activation=dict(bits=4))
    calibrate(model, [x])
    model.eval()
    calls = [torch.jit.trace(model, x[:2])]
    if HAS_EXPORT:
        calls.append(torch.export.export(
            model, (x[:2], ), dynamic_shapes=(
                {0: torch.export.Dim('batch')}, )).module())
    for call in calls:
        torch.testing.assert_close(answers(call, x), answers(model, x))


class HalfIsZero(nn.Module):
    """The second layer's input is always zero."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.first(x) + self.second(0 * x)


@pytest.mark.skipif(not HAS_EXPORT, reason='torch.export cannot be told')
@pytest.mark.parametrize('backend', QUANTIZERS)
def test_a_quantizer_that_waits_is_exported_in_float(backend):
    model, x = HalfIsZero(), torch.randn(6, 4)
    convert(model, backend=backend)
    calibrate(model, [x])
    assert model.eval().second.input_quantizer.is_waiting()
    exported = torch.export.export(model, (x, )).module()
    torch.testing.assert_close(answers(exported, x), answers(model, x))


@pytest.mark.parametrize('backend', QUANTIZERS)
def test_what_no_graph_can_hold_is_refused(backend):
    """Training, which decides anew in each step; torch.jit.script."""
    model, x = quantized('net', backend)
    with pytest.raises(RuntimeError, match='script cannot compile LogLSQFake'):
        torch.jit.script(model)
    model.train()
    with pytest.raises(RuntimeError, match='LSQFakeQuantize cannot be traced '
                       r'while it trains(.|\n)*model.eval\(\) before'):
        torch.jit.trace(model, x[:2])
    if HAS_EXPORT:
        with pytest.raises(RuntimeError, match='cannot be traced while it'):
            torch.export.export(model, (x[:2], ))
    model(x).sum().backward()
