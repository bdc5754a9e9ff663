"""Models that return several tensors, from the trace to the opened file."""

from collections import OrderedDict, namedtuple

import onnx
import pytest
import torch
from exported_models import quantized
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin.export import export_onnx
from fpq_plugin.export.formats import format_of
from fpq_plugin.export.outputs import (
    arranged,
    named_tensors,
    structure_of,
    tensors_of,
)

Maps = namedtuple('Maps', ['scores', 'boxes'])
leaves = st.builds(lambda: torch.rand(2)) | st.none()
held = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.lists(
        inner, max_size=3).map(tuple) | st.dictionaries(
            st.text(max_size=3), inner, max_size=3), max_leaves=8)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(
            map(same, a, b))
    return a is b is None


@given(value=held)
def test_what_is_taken_apart_can_be_put_together(value):
    if not any(isinstance(leaf, torch.Tensor) for leaf in _leaves(value)):
        with pytest.raises(ValueError, match='returns no tensor'):
            named_tensors(value)
        return
    names = named_tensors(value)
    assert len(names) == len(tensors_of(value))
    assert 'input' not in names
    assert same(arranged(tensors_of(value), structure_of(value)), value)


def _leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def test_names():
    a, b, c = torch.rand(3)
    assert list(named_tensors(a)) == ['output']
    assert list(named_tensors(([a, b], c))) == [
        'output_0_0', 'output_0_1', 'output_1']
    assert list(named_tensors(OrderedDict(boxes=[a, b], input=c))) == [
        'boxes_0', 'boxes_1', 'input_']
    assert list(named_tensors(Maps([a], b))) == ['scores_0', 'boxes']
    with pytest.raises(ValueError, match='this one returns a str'):
        named_tensors([a, 'text'])


class TwoHeads(nn.Module):
    """A layer that two others read; what they give in a form."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1),
                                  nn.BatchNorm2d(8), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.form(self.scores(x), self.boxes(x))


FORMS = {
    'pair': lambda a, b: (a, b),
    'lists': lambda a, b: ([a, b], [b]),  # one tensor at two places
    'dict': lambda a, b: dict(scores=a, none=None, boxes=(b, )),
    'single': lambda a, b: [a + b.sum(1, keepdim=True)],
}


@pytest.mark.parametrize('target', [None, 'onnxruntime'])
@pytest.mark.parametrize('form', FORMS)
def test_a_file_answers_in_the_models_own_form(form, target, tmp_path):
    x = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = quantized(TwoHeads(FORMS[form]), x, target=target)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, path, [(x, None)], target=target)
    graph = onnx.load(path).graph
    with torch.no_grad():
        wanted = model(x[:4])
    names = named_tensors(wanted)
    assert [value.name for value in graph.output] == list(names)
    assert all(value.type.tensor_type.shape.dim[0].dim_param == 'batch'
               for value in graph.output)
    found = format_of(path).open(path).run(x[:4])
    assert structure_of(found) == structure_of(wanted)
    for own, other in zip(tensors_of(found), names.values()):
        torch.testing.assert_close(own, other, rtol=0.05, atol=0.02)
    several = len(names) > 1
    assert len(report.parity.outputs) == (len(names) if several else 0)
    assert ('outputs the one that does most' in str(report)) == several
    assert 'in batches of 1, 7, 9 (a model that' in str(report)
    assert not model.training
