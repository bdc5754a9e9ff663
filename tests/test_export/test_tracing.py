"""The batch size is free where the file says so, and nothing else stays."""

import onnx
import onnxruntime
import pytest
import torch
from exported_models import answers, quantized
from mmengine.registry import DefaultScope
from torch import nn

from fpq_plugin.export import ParityError, export_onnx
from fpq_plugin.export.onnx_file import check_onnx

SIZES = (1, 2, 4, 8)


def swin():
    """A small one of mmpretrain's; its windows are counted by ``int()``."""
    import mmpretrain.models  # noqa: F401
    from mmpretrain.registry import MODELS
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(
            type='ImageClassifier',
            backbone=dict(
                type='SwinTransformer', img_size=32, patch_size=2,
                window_size=4, out_indices=(1, ), arch=dict(
                    embed_dims=8, depths=[2, 2], num_heads=[1, 2])),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=16)))


class Windows(nn.Module):
    """Numbers of the batch size in Python, as window attention has them."""

    def forward(self, x):
        windows = x.unflatten(2, (2, 4)).flatten(0, 1)
        batch = int(windows.shape[0] / x.shape[1])
        return windows.view(batch, -1) + torch.zeros(batch + 1, 1)[:-1]


class Norm(nn.Module):
    """Divides by a number of its images."""

    def forward(self, x):
        return x / float(x.abs().max())


class Mean(nn.Module):
    """Divides by the batch size, which is on no line."""

    def forward(self, x):
        return x.sum(0, keepdim=True).expand(len(x), -1) * (1 / len(x))


class Branch(nn.Module):
    """Computes otherwise in batches of three and more."""

    def forward(self, x):
        return x.relu() + x if len(x) > 2 else x


class FromFour(nn.Module):
    """Other numbers for the sizes that nothing was traced with."""

    def forward(self, x):
        return x * int(len(x) < 6)


class Never(nn.Module):
    """Takes no batch of one."""

    def forward(self, x):
        if int(len(x)) == 1:
            raise RuntimeError('more than one image, please')
        return x


def model_of(*layers):
    x = torch.randn(8, 3, 8)
    model = nn.Sequential(nn.Conv1d(3, 3, 1), *layers)
    return quantized(model, x, weight=dict(bits=8), activation=dict(bits=8),
                     first_last_bits=None), x


def assert_equal_for_all_sizes(path, model, x):
    with torch.no_grad():
        for size in SIZES:
            torch.testing.assert_close(answers(path, x[:size]),
                                       model(x[:size]), atol=1e-4, rtol=1e-4)


def test_swin_is_exported_for_any_batch(tmp_path):
    model, x = swin(), torch.randn(8, 3, 32, 32)
    lsq = dict(type='LSQFakeQuantize', bits=8)
    quantized(model, x, weight=lsq, activation=lsq)
    path = tmp_path / 'swin.onnx'
    export_onnx(model, path, [(x[:2], None)])
    assert_equal_for_all_sizes(path, model, x)


def test_numbers_of_the_batch_size_are_computed(tmp_path):
    model, x = model_of(Windows())
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x[:1], None)])
    assert_equal_for_all_sizes(path, model, x)
    assert report.batch_size is None
    notes = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert notes['fpq.batch_size'] == 'free'


@pytest.mark.parametrize(('layer', 'why'), [
    (Norm, 'Sequential computes what a Div reads in Python, from the size'),
    (Mean, 'what a Mul reads in Python, from the size of the batch or from'),
    (Branch, 'runs other operations with another batch of images'),
    (FromFour, 'with a batch of 7 outputs differ by'),
    (Never, 'itself takes no batch of 1: more than one image'),
])
def test_what_no_graph_can_hold_is_refused(layer, why, tmp_path):
    model, x = model_of(nn.Flatten(), layer())
    path = tmp_path / 'model.onnx'
    with pytest.raises((ValueError, ParityError), match=why) as refused:
        export_onnx(model, path, [(x[:5], None)])
    assert 'batch_size=N' in str(refused.value)
    assert not any(tmp_path.iterdir())
    if layer in (Norm, Mean, Branch):  # before a run trains
        with pytest.raises(ValueError, match=why):
            check_onnx(model, x[:2])


@pytest.mark.parametrize('layer', [Mean, Branch, FromFour, Never])
def test_a_file_of_one_batch_size_says_so(layer, tmp_path):
    model, x = model_of(nn.Flatten(), layer())
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x[:3], None), (x[3:], None)],
                         batch_size=4)
    assert report.parity.images == 8
    assert [each.batch for each in report.latencies] == [4]
    assert 'warning: takes batches of 4 alone' in str(report)
    proto = onnx.load(path)
    notes = {p.key: p.value for p in proto.metadata_props}
    assert notes['fpq.batch_size'] == '4'
    shape = proto.graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 4
    with torch.no_grad():
        torch.testing.assert_close(answers(path, x[:4]), model(x[:4]))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.
                       InvalidArgument, match='Got: 2 Expected: 4'):
        answers(path, x[:2])


def test_a_number_of_the_images_fits_no_batch(tmp_path):
    model, x = model_of(nn.Flatten(), Norm())
    with pytest.raises(ValueError, match='a number of its images in Python'):
        export_onnx(model, tmp_path / 'model.onnx', [(x, None)], batch_size=4)


def test_options_and_inputs_that_cannot_work_are_named(tmp_path):
    model, x = model_of()

    def refused(match, error, batches=((x, None), ), model=model, **options):
        with pytest.raises(error, match=match):
            export_onnx(model, tmp_path / 'model.onnx', batches, **options)
        assert not any(tmp_path.iterdir())

    refused('batch_size must be an integer or None, got True', TypeError,
            batch_size=True)
    refused('batch_size must be at least 1, got 0', ValueError, batch_size=0)
    refused(r'here are \(3, 8\), torch.float32, and \(3, 9\)', ValueError,
            [(x, None), (torch.randn(2, 3, 9), None)])
    refused('inputs must be float32, got torch.float64', ValueError,
            [(x.double(), None)])
    refused('no input to compare on', ValueError, [(x[:0], None)])
    refused('0.weight is torch.float16 on cpu', ValueError,
            model=model.half())
