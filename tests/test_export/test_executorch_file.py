"""ExecuTorch runs a .pte file as it was compared, its layers on integers."""

import os

import pytest
import torch
from torch import nn

from fpq_plugin import Recipe, add_joints, calibrate
from fpq_plugin.export import ParityError, executorch_file, export_executorch
from fpq_plugin.export.executorch_file import PTE, OpenedContent
from fpq_plugin.export.formats import format_of
from fpq_plugin.export.program import HAS_EXPORT

needs_torch = pytest.mark.skipif(
    not HAS_EXPORT, reason='this torch has no torch.export that can be told')


@pytest.fixture
def engine():
    pytest.importorskip('executorch', reason='ExecuTorch is not installed')


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(24, 3, 12, 12)


class Block(nn.Module):
    """A residual sum, a depthwise layer, pools and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
            nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True), nn.Conv2d(8, 8, 1))
        self.end = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.end(x + self.branch(x))
        return self.head(self.pool(x).flatten(1))


def trained(x, bits, target='executorch'):
    model = Block()
    Recipe(bits=bits, perturbation=None, distillation=None).convert(model)
    if target:
        add_joints(model, x, target=target)
    calibrate(model, [x])
    return model.eval()


@needs_torch
@pytest.mark.parametrize('bits', ['w8a8', 'w2a2'])
def test_all_layers_are_on_integers(bits, engine, x, tmp_path, monkeypatch):
    # The compiler that it needs is found without an activated environment.
    monkeypatch.setenv('PATH', '/usr/bin')
    model, path = trained(x, bits), tmp_path / 'model.pte'
    report = export_executorch(model, path, [(x, None)], tolerance=1)
    assert executorch_file.FLATC not in os.environ
    assert report.kernels.layers == tuple(
        (name, '') for name in ('stem.0', 'branch.0', 'branch.3', 'head'))
    assert dict(report.kernels.others)['add'] == 1
    assert report.kernels.outside == ()
    assert report.kernels.line() in str(report)
    assert report.batch_size == 1
    assert 'takes batches of 1 alone' in report.warnings()
    assert [each.batch for each in report.latencies] == [1]
    run = OpenedContent(path.read_bytes())
    with torch.no_grad():
        expected = model(x)
    found = torch.cat([run(image) for image in x.split(1)])
    assert (found - expected).abs().mean() < 0.02 * expected.std()
    # It says no to others, and does not answer wrongly.
    with pytest.raises(RuntimeError):
        run(x[:2])


@needs_torch
def test_what_stays_float_is_told(engine, x, tmp_path):
    report = export_executorch(trained(x, 'w8a8', None),
                               tmp_path / 'model.pte', [(x, None)],
                               batch_size=2, tolerance=1)
    reasons = dict(report.kernels.layers)
    assert reasons['branch.0'] == ''
    assert reasons['head'] == 'the output is not quantized'
    assert report.kernels.outside == ()  # in XNNPACK's float kernels
    assert report.batch_size == 2


@needs_torch
def test_another_answer_is_not_written(engine, x, tmp_path, monkeypatch):
    monkeypatch.setattr(executorch_file, 'OpenedContent',
                        lambda content: lambda x: torch.zeros(len(x), 5))
    path = tmp_path / 'model.pte'
    with pytest.raises(ParityError):
        export_executorch(trained(x, 'w8a8'), path, [(x, None)])
    assert not path.exists()


@needs_torch
def test_the_executorch_of_another_torch_is_named(x, tmp_path, monkeypatch):
    """Before a run trains, too; its own words come from far away."""
    monkeypatch.setattr(type(PTE), 'require_packages', lambda self: None)
    monkeypatch.setattr(executorch_file, 'version', lambda name: '1.9.0')
    monkeypatch.setattr(executorch_file, 'lower', lambda program: program)
    monkeypatch.setattr(executorch_file, 'content_of', lambda lowered: b'')
    monkeypatch.setattr(torch, '__version__', '2.12.1+cpu')

    def refuse(content):
        raise RuntimeError('tensor does not have a device\nat some place')

    monkeypatch.setattr(executorch_file, 'OpenedContent', refuse)
    path = tmp_path / 'model.pte'
    path.write_bytes(b'')
    for attempt in (
            lambda: export_executorch(Block(), path, [(x, None)]),
            lambda: PTE.check(Block(), x), lambda: PTE.open(path)):
        with pytest.raises(ImportError) as error:
            attempt()
        assert str(error.value) == (
            'executorch 1.9.0 does not run beside torch 2.12.1, as each is '
            "built for one torch: pip install 'executorch==1.3.*' (tensor "
            'does not have a device)')


@pytest.mark.parametrize('target', ['onnxruntime', 'openvino'])
def test_another_engine_is_refused(target, x, tmp_path, monkeypatch):
    monkeypatch.setattr(executorch_file, 'require_operators', lambda: None)
    monkeypatch.setattr(executorch_file, 'refuse_other_torch', lambda: None)
    monkeypatch.setattr(type(PTE), 'require_packages', lambda self: None)
    with pytest.raises(ValueError, match=r'takes \.onnx, and the file is '
                       'model.pte'):
        export_executorch(Block(), tmp_path / 'model.pte', [(x, None)],
                          target=target)


def test_without_executorch_the_extra_is_named(x, tmp_path, monkeypatch):
    monkeypatch.setattr('fpq_plugin.export.formats.find_spec',
                        lambda name: None)
    with pytest.raises(ImportError, match='ExecuTorch needs executorch, '
                       r"torchao: pip install 'fpq-openmmlab\[executorch\]'"):
        export_executorch(Block(), tmp_path / 'model.pte', [(x, None)])
    assert format_of('model.pte') is PTE


class Concatenates(nn.Module):
    """Half of the channels go by the other half's layers, as in ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.end = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        one, other = self.stem(x).chunk(2, 1)
        x = self.end(torch.cat([one, self.conv(other)], 1))
        return self.head(self.pool(x).flatten(1))


@needs_torch
@pytest.mark.parametrize('bits', ['w8a8', 'w4a4'])
def test_operands_of_any_range_are_concatenated(engine, bits, x, tmp_path):
    model = Concatenates()
    Recipe(bits=bits, perturbation=None, distillation=None,
           target='executorch').convert(model)
    add_joints(model, x, target='executorch')
    calibrate(model, [x])
    report = export_executorch(model.eval(), tmp_path / 'model.pte',
                               [(x, None)])
    assert report.parity.equal() == 100
    assert report.moved_weights == 0
    assert report.kernels.on_integers() == 4


@needs_torch
@pytest.mark.parametrize('bits', ['w8a8', 'w4a4', 'w2a2'])
def test_shufflenet_loads(engine, bits, tmp_path):
    """Its slices' readers have other steps than what is sliced."""
    from mmpretrain.models import ShuffleNetV2
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    model = nn.Sequential(
        ShuffleNetV2(widen_factor=0.5, out_indices=(3, )), First(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 5)).eval()
    Recipe(bits=bits, perturbation=None, distillation=None,
           target='executorch').convert(model)
    add_joints(model, x, target='executorch')
    calibrate(model, [x])
    report = export_executorch(model, tmp_path / 'model.pte', [(x, None)],
                               tolerance=100)
    assert report.kernels.on_integers() == len(report.kernels.layers)


class First(nn.Module):

    def forward(self, x):
        return x[0]
