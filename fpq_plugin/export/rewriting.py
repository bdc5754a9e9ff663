"""How an ONNX graph is rewritten, on top of the library onnx-ir.

onnx-ir holds the graph: values know the node that makes them and those that
read them, so nothing is looked up by name. What is here is what all steps of
the export share: :func:`read_graph` makes a traced model easy to search,
:func:`add_constant` and :func:`replace_nodes` are the two edits, and
:func:`finish_graph` leaves only what the outputs need, and checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    CheckerPass,
    ClearMetadataAndDocStringPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)


def read_graph(proto: onnx.ModelProto) -> ir.Model:
    """Read a model; all its constants become initializers.

    Args:
        proto (onnx.ModelProto): The model, as torch or onnx made it.

    Returns:
        ir.Model: The same without ``Constant`` nodes, and without ``Identity``
        but for an output.
    """
    model = ir.from_proto(proto)
    LiftConstantsToInitializersPass(size_limit=0)(model)
    for node in list(model.graph):
        # Those inside a branch stay: there an output must have a node.
        source = node.inputs[0] if node.inputs else None
        if (node.domain, node.op_type) == ('', 'Identity') and (
                source and not node.outputs[0].is_graph_output()):
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
    return model


def add_constant(graph: ir.Graph,
                 value: np.ndarray,
                 dtype: ir.DataType | None = None) -> ir.Value:
    """Add a constant to a graph.

    Args:
        graph (ir.Graph): The graph, changed in place.
        value (np.ndarray): The constant.
        dtype (ir.DataType, optional): The type that it is stored in, two
            values in a byte if that has 4 bits. Defaults to None, the type
            of the array.

    Returns:
        ir.Value: The initializer.
    """
    if dtype is not None:
        value = value.astype(dtype.numpy())
    # A short name: in a small model they add up.
    name = next(name for i in count(len(graph.initializers))
                if (name := f'_{i}') not in graph.initializers)
    constant = ir.Value(name=name, const_value=ir.tensor(value, name=name))
    graph.register_initializer(constant)
    return constant


def replace_nodes(graph: ir.Graph, old: Sequence[ir.Node],
                  new: Sequence[ir.Node]) -> None:
    """Put nodes in the place of others.

    Args:
        graph (ir.Graph): The graph, changed in place.
        old (Sequence[ir.Node]): Nodes in the order of the graph. Only the
            last one's output has readers outside.
        new (Sequence[ir.Node]): What takes their place, in order. The last
            one's output gets the readers.
    """
    ir.convenience.replace_nodes_and_values(
        graph, old[-1], old, new, old[-1].outputs, new[-1].outputs)


def only_reader(value: ir.Value | None) -> ir.Node | None:
    """The one node that reads a value.

    Args:
        value (ir.Value, optional): The value.

    Returns:
        ir.Node | None: None if there are none or several, or if the value
        leaves the graph.
    """
    if value is None or value.is_graph_output():
        return None
    readers = value.consumers()
    return readers[0] if len(readers) == 1 else None


def finish_graph(model: ir.Model) -> None:
    """Keep what the outputs need, check it, and make the file small.

    Args:
        model (ir.Model): The model, changed in place.

    Raises:
        onnx.checker.ValidationError: If it is no valid ONNX.
    """
    graph = model.graph
    # Runtimes refuse an IR version that is newer than they are.
    model.ir_version = 10 if graph.opset_imports[''] > 20 else 8
    Sequential(RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass(),
               ClearMetadataAndDocStringPass())(model)
    CheckerPass(full_check=True)(model)
    taken = {value.name for value in [
        *graph.inputs, *graph.outputs, *graph.initializers.values()]}
    names = (name for i in count() if (name := f't{i}') not in taken)
    for number, node in enumerate(graph):
        # onnxruntime 1.20 names what it fuses by its nodes, and refuses two
        # of one name.
        node.name = f'n{number}'
        for value in node.outputs:
            if value.name and not value.is_graph_output():
                value.name = next(names)
    # What has a type is listed once more, beside the nodes.
    for value in [*graph.initializers.values(),
                  *(value for node in graph for value in node.outputs)]:
        if not value.is_graph_output():
            value.type = value.shape = None
