"""Which layers onnxruntime computes on integers is read from its graph."""

from collections import Counter

import onnx
import pytest
import torch
from exported_models import JointNet, net, quantized
from torch import nn

from fpq_plugin.export import export_onnx
from fpq_plugin.export.kernels import INTEGER_LAYERS, optimized_graph

EIGHT = dict(weight=dict(bits=8), activation=dict(bits=8),
             first_last_bits=None)


@pytest.fixture
def x():
    return torch.randn(40, 3, 8, 8)


def kernels_of(path):
    found = Counter(node.op_type
                    for node in optimized_graph(path.read_bytes()).node)
    return sum(found[kind] for kind in INTEGER_LAYERS), found


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('target', [None, 'onnxruntime'])
def test_as_many_layers_as_there_are_kernels(target, symmetric, bits, x,
                                             tmp_path):
    model = quantized(net(), x, weight=dict(bits=bits),
                      activation=dict(bits=bits, symmetric=symmetric))
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target=target)
    number, _ = kernels_of(path)
    assert report.kernels.on_integers() == number
    assert [name for name, _ in report.kernels.layers] == ['0', '3', '5', '7']
    if target:
        assert number == 4
    assert report.kernels.line() in str(report)
    assert report.as_dict()['integer_kernels'] == report.kernels.as_dict()


@pytest.mark.parametrize('bits', [4, 8])
def test_sums_have_kernels_of_their_own(bits, x, tmp_path):
    model = JointNet()
    quantized(model, x, weight=dict(bits=bits), activation=dict(bits=bits))
    model.quantize_joints()
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target='onnxruntime')
    number, found = kernels_of(path)
    assert number == report.kernels.on_integers() == 4
    assert report.kernels.others == (('QLinearAdd', 1), )
    assert report.kernels.line() == (
        'integer kernels: 4 of 4 layers, 1 QLinearAdd')
    assert not found['Conv'] + found['FusedConv'] + found['Add']


def test_reasons_are_those_of_the_file(x, tmp_path):
    path = tmp_path / 'model.onnx'

    def reasons(model, target='onnxruntime', **options):
        quantized(model, x, **options or EIGHT)
        report = export_onnx(model, path, [(x, None)], target=target)
        return [reason for _, reason in report.kernels.layers]

    def conv(kind=nn.Conv2d, **options):
        return kind(3, 3, 3, padding=1, **options)

    assert reasons(nn.Sequential(conv())) == ['the output is not quantized']
    assert reasons(nn.Sequential(conv(nn.ConvTranspose2d))) == [
        'there is no kernel for ConvTranspose']
    assert reasons(nn.Sequential(conv()), weight=dict(bits=4),
                   activation=None, first_last_bits=None) == [
        'the input is not quantized']
    assert reasons(net(), None)[-1] == 'the bias is float'
    four = dict(weight=dict(bits=4), activation=dict(bits=8),
                first_last_bits=None)
    assert set(reasons(net(), None, **four)) == {'the weight is INT4'}

    class Twice(nn.Module):
        """Two layers that quantize one tensor in two ways."""

        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = (conv() for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            return self.left(x) + self.right(x)

    assert reasons(Twice())[0] == (
        'the output is not read by one quantizer alone')


def test_no_target_that_is_not_run_has_kernels(x, tmp_path):
    model = quantized(net(), x, activation=dict(bits=8, symmetric=True))
    report = export_onnx(model, tmp_path / 'model.onnx', [(x, None)],
                         target='tensorrt')
    assert report.kernels is None
    assert 'integer kernels' not in str(report)
    onnx.checker.check_model(onnx.load(tmp_path / 'model.onnx'))


@pytest.mark.parametrize(('layer', 'shape', 'columns'), [
    (lambda: nn.Conv2d(4, 24, 3), (4, 8, 8), 24),
    (lambda: nn.Conv2d(4, 49, 1), (4, 8, 8), 49),
    (lambda: nn.Conv2d(4, 32, 3), (4, 8, 8), 32),
    (lambda: nn.Conv2d(4, 16, 3), (4, 8, 8), 16),
    (lambda: nn.Conv2d(4, 48, 3, groups=2), (4, 8, 8), 24),
    (lambda: nn.Conv2d(24, 24, 3, groups=24), (24, 8, 8), 1),
    (lambda: nn.Linear(8, 31), (5, 8), 31),
    (lambda: nn.Linear(8, 31), (8, ), 31),
    (lambda: nn.Linear(24, 8), (24, ), 8),
    (lambda: nn.Linear(24, 8, bias=False), (5, 24), 8),
])
def test_widths_that_older_onnxruntimes_get_wrong_are_told(
        layer, shape, columns, tmp_path):
    """Those whose last 32 columns are 17 to 31, on processors with AMX."""
    x, first = torch.randn(40, *shape), layer()
    last = (nn.Linear(first.out_features, 3) if hasattr(first, 'out_features')
            else nn.Conv2d(first.out_channels, 3, 1))
    model = quantized(nn.Sequential(first, nn.ReLU(), last), x, **EIGHT)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target='onnxruntime')
    assert report.kernels.layers[0] == ('0', '')
    wrong = columns % 32 in range(17, 32)
    assert report.kernels.risky == wrong
    told = [line for line in report.warnings() if 'AMX' in line]
    assert len(told) == wrong
    if wrong:
        assert '1 of its layers' in told[0]
        assert told[0] in str(report)
