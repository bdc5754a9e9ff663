"""Encodings are written with their ONNX file, if they are right."""

import onnx
import pytest
import torch
from exported_models import net, quantized

from fpq_plugin.export import ParityError, encodings, export_encodings
from fpq_plugin.export.formats import format_of


@pytest.fixture
def x():
    return torch.randn(9, 3, 8, 8)


def test_wrong_encodings_are_not_written(x, tmp_path, monkeypatch):
    right = encodings._encodings_of
    monkeypatch.setattr(encodings, '_encodings_of', lambda grid: [
        {**each, 'offset': each['offset'] + 5} for each in right(grid)])
    with pytest.raises(ParityError):
        export_encodings(quantized(net(), x), tmp_path / 'model.encodings',
                         [(x, None)])
    assert not list(tmp_path.iterdir())


def test_fewer_than_four_bits_are_refused(x):
    model = quantized(net(), x, weight=dict(bits=2))
    with pytest.raises(ValueError, match='3.weight_quantizer has 2 bits'):
        format_of('model.encodings').check(model, x[:2])
    format_of('model.encodings').check(quantized(net(), x), x[:2])


def test_a_batch_size_can_be_fixed(x, tmp_path):
    path = tmp_path / 'model.encodings'
    report = export_encodings(quantized(net(), x), path, [(x, None)],
                              batch_size=3)
    assert report.batch_size == 3
    shape = onnx.load(f'{path}.onnx').graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 3
    with pytest.raises(FileNotFoundError, match='no folder'):
        export_encodings(quantized(net(), x), tmp_path / 'no/m.encodings',
                         [(x, None)])
