"""Edits of a graph, and what is left of it in the end."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from fpq_plugin.export.rewriting import (
    add_constant,
    finish_graph,
    only_reader,
    read_graph,
    replace_nodes,
)

TEXT = """
<ir_version: 8, opset_import: ["": 17, "fpq": 1]>
graph (float[N, 2] input) => (float[N, 2] output)
<float[2] t0 = {1, 2}, float[2] unread = {3, 4}> {
    long_name_of_a_trace = Identity(t0)
    also_constant = Constant<value = float[2] {5, 6}>()
    sum = Add(input, long_name_of_a_trace)
    nothing_reads_this = Mul(sum, unread)
    output = Add(sum, also_constant)
}
"""


@pytest.fixture
def model():
    return read_graph(onnx.parser.parse_model(TEXT))


def run(model, x):
    return ReferenceEvaluator(ir.to_proto(model)).run(None, {'input': x})[0]


def test_constants_are_initializers(model):
    assert [node.op_type for node in model.graph] == ['Add', 'Mul', 'Add']
    assert set(model.graph.initializers) == {'t0', 'unread', 'also_constant'}


def test_only_what_is_needed_stays(model):
    finish_graph(model)
    proto = ir.to_proto(model)
    assert [node.op_type for node in proto.graph.node] == ['Add', 'Add']
    assert len(proto.graph.initializer) == 2
    assert not proto.graph.value_info
    assert {each.domain for each in proto.opset_import} == {''}
    # A short name, but not that of a constant which has it.
    assert [node.output[0] for node in proto.graph.node] == ['t1', 'output']
    onnx.checker.check_model(proto, full_check=True)
    x = np.zeros((1, 2), np.float32)
    np.testing.assert_array_equal(run(model, x), [[6, 8]])


def test_an_invalid_graph_is_refused(model):
    last = model.graph[-1]
    replace_nodes(model.graph, [last], [
        ir.node('NoSuchNode', [last.inputs[0]])])
    with pytest.raises(onnx.checker.ValidationError, match='NoSuchNode'):
        finish_graph(model)


def test_nodes_are_replaced_where_the_output_leaves(model):
    graph, last = model.graph, model.graph[-1]
    twice = ir.node('Add', [last.inputs[0]] * 2)
    negative = ir.node('Neg', [twice.outputs[0]])
    replace_nodes(graph, [last], [twice, negative])
    finish_graph(model)
    names = [node.name for node in model.graph]
    assert all(names)
    assert len(set(names)) == len(names)
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(run(model, x), [[-4, -6]])


@pytest.mark.parametrize('dtype', ['INT4', 'UINT4', 'INT8'])
def test_constants_are_stored_in_their_type(model, dtype):
    values = np.array([[0, 7, 3], [1, 2, 5], [6, 4, 7]])
    if not dtype.startswith('U'):
        values = values - 8 * (values > 3)
    constant = add_constant(model.graph, values, ir.DataType[dtype])
    tensor = ir.to_proto(constant.const_value)
    assert tensor.data_type == getattr(onnx.TensorProto, dtype)
    assert len(tensor.raw_data) == (5 if dtype.endswith('4') else 9)
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(tensor).astype(int), values)


def test_no_constant_takes_another_ones_name(model):
    made = [add_constant(model.graph, np.zeros(1)) for _ in range(3)]
    model.graph.initializers.pop(made[0].name)
    made.append(add_constant(model.graph, np.zeros(1)))
    assert len(model.graph.initializers) == 3 + 3


def test_the_only_reader_is_one_and_inside(model):
    graph = model.graph
    first, last = graph[0], graph[-1]
    assert only_reader(graph.initializers['t0']) is first
    assert only_reader(first.outputs[0]) is None
    assert only_reader(last.outputs[0]) is None
    assert only_reader(None) is None
