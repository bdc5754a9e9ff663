"""What a graph computes of shapes is stored, and a batch stays free."""

import onnx
import onnx_ir as ir
import pytest
import torch
from exported_models import answers, assert_same, quantized
from onnx.reference import ReferenceEvaluator
from torch import nn

from fpq_plugin.export import export_onnx
from fpq_plugin.export.rewriting import finish_graph, read_graph
from fpq_plugin.export.shapes import fix_shapes

SIZES = (1, 2, 5)


class Shuffle(nn.Module):
    """ShuffleNet's: channels of two groups in turn, sizes of its input."""

    def forward(self, x):
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous()
        return x.view(n, -1, h, w)


class Chunks(nn.Module):
    """Halves of the channels, swapped."""

    def forward(self, x):
        first, second = x.chunk(2, dim=1)
        return torch.cat([second, first * 2], 1)


class Heads(nn.Module):
    """Channels in heads, which become part of the batch and come back."""

    def forward(self, x):
        n, c = x.shape[:2]
        heads = x.reshape(n * 2, c // 2, -1)
        return (heads / heads.shape[-1]**0.5).reshape(x.shape)


class Crop(nn.Module):
    """Rows and columns that are cut off, and mirrored ones instead."""

    def forward(self, x):
        h, w = x.shape[2:]
        cropped = x[:, :, :h - 1, :w - 1]
        return nn.functional.pad(cropped, (0, h - cropped.shape[2], 1, 0),
                                 mode='reflect')


@pytest.mark.parametrize('target', [None, 'onnxruntime', 'openvino'])
@pytest.mark.parametrize('layer', [Shuffle, Chunks, Heads, Crop])
def test_nothing_is_computed_of_shapes(layer, target, tmp_path):
    torch.manual_seed(2)
    x = torch.randn(5, 3, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), layer(),
        nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 3))
    quantized(model, x, weight=dict(bits=8), activation=dict(bits=8))
    path = tmp_path / 'model.onnx'
    export_onnx(model, path, [(x, None)], target=target)
    graph = onnx.load(path).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {'Shape', 'Gather', 'Concat' * (layer is not Chunks),
                        'Unsqueeze', 'Cast', 'Mul' * (layer is not Chunks)}
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    with torch.no_grad():
        for size in SIZES:
            assert_same(answers(path, x[:size]), model(x[:size]))


def fixed(text, batch_size=None):
    """A graph of x (N, 6) after the pass, finished."""
    model = read_graph(onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        graph (float[{batch_size or 'N'}, 6] input) => (float[?, ?] output)
        <int64 zero = {{0}}, int64[1] first = {{0}}, int64[1] two = {{2}},
         int64[1] rest = {{-1}}, int64[1] one = {{1}}, int64[1] last = {{9}}>
        {{
            shape = Shape(input)
            batch = Gather(shape, first)
            width = Gather(shape, one)
            half = Div(batch, two)
            {text}
        }}"""))
    fix_shapes(model, torch.rand(3, 6), batch_size)
    finish_graph(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def kinds_and_answers(proto, *sizes):
    run = ReferenceEvaluator(proto)
    return [node.op_type for node in proto.graph.node], [
        torch.from_numpy(run.run(None, {'input': images(size).numpy()})[0])
        for size in sizes]


def images(size):
    return torch.arange(6. * size).view(size, 6)


@pytest.mark.parametrize(('wanted', 'stored'), [
    ('batch, rest', [-1, 6]), ('rest, batch', [6, -1]),
    ('first, width', [0, 6]), ('width, batch', [6, -1])])
def test_a_reshape_finds_the_one_axis_that_differs(wanted, stored):
    proto = fixed(f"""
        sizes = Concat<axis = 0>({wanted})
        output = Reshape(input, sizes)""")
    (shape, ) = (onnx.numpy_helper.to_array(each)
                 for each in proto.graph.initializer)
    assert shape.tolist() == stored
    kinds, found = kinds_and_answers(proto, 1, 4, 6)
    assert kinds == ['Reshape']
    for each, size in zip(found, (1, 4, 6)):
        shape = [axis if axis == 6 else size for axis in stored]
        assert torch.equal(each, images(size).reshape(shape))


def test_what_depends_on_the_batch_stays_computed():
    """A square of its size, and half of it."""
    proto = fixed("""
        turned = Transpose(input)
        square = MatMul(input, turned)
        sizes = Concat<axis = 0>(batch, batch)
        again = Reshape(square, sizes)
        output = Slice(again, first, half, one)""")
    kinds, found = kinds_and_answers(proto, 2, 7)
    assert kinds.count('Shape') == 1
    assert 'Reshape' in kinds
    for each, size in zip(found, (2, 7)):
        square = images(size) @ images(size).T
        assert torch.equal(each, square[:, :size // 2])


def test_numbers_in_the_tensors_are_none_of_shapes():
    """Though they are the same in all batches."""
    proto = fixed("""
        zeros = Mul(input, input)
        none = CastLike(zeros, first)
        least = ReduceMin<keepdims = 0>(none)
        only = Unsqueeze(least, first)
        start = Mul(only, width)
        output = Slice(input, start, last, one)""")
    kinds, (found, ) = kinds_and_answers(proto, 3)
    assert 'ReduceMin' in kinds
    assert torch.equal(found, images(3))


def test_a_file_of_one_batch_size_computes_nothing():
    proto = fixed("""
        sizes = Concat<axis = 0>(half, half, rest)
        cube = Reshape(input, sizes)
        flat = Concat<axis = 0>(batch, rest)
        output = Reshape(cube, flat)""", batch_size=4)
    kinds, (found, ) = kinds_and_answers(proto, 4)
    assert kinds == ['Reshape', 'Reshape']
    assert torch.equal(found, images(4))
