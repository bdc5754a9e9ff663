"""An ONNX graph that can be looked up by tensor, and edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Graph:
    """Nodes and constants of a model, without order.

    Attributes:
        nodes (list): The nodes; :meth:`settle` sorts them.
        constants (dict): From name to ``TensorProto``: initializers and what
            Constant nodes hold.
        outputs (list): Names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.outputs = [value.name for value in graph.output]
        self._inputs = [value.name for value in graph.input]
        self.constants = {t.name: t for t in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            kind = node.op_type
            if kind == 'Constant' and node.attribute[0].name == 'value':
                self.constants[node.output[0]] = node.attribute[0].t
            elif kind == 'Identity' and (
                    node.input[0] in self.constants):
                self.constants[node.output[0]] = self.constants[node.input[0]]
            else:
                self.nodes.append(node)
        self._count = 0

    def new_name(self) -> str:
        """A tensor name that is not in use (a short one: they add up)."""
        self._count += 1
        return f'_{self._count}'

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, None for inputs and constants."""
        return next((n for n in self.nodes if name in n.output), None)

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return [n for n in self.nodes if name in n.input]

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, None if there are others."""
        nodes = self.consumers(name)
        if len(nodes) != 1 or name in self.outputs:
            return None
        return nodes[0]

    def value(self, name: str) -> np.ndarray | None:
        """A constant's value, None for another tensor."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def add_constant(self, value: np.ndarray) -> str:
        """Add a constant; its name."""
        name = self.new_name()
        self.constants[name] = numpy_helper.from_array(value)
        return name

    def add(self, op_type: str, inputs: Iterable[str], output: str,
            **attributes) -> str:
        """Add a node; the name of its output."""
        self.nodes.append(
            helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def replace_input(self, old: str, new: str) -> None:
        """Let every node that reads ``old`` read ``new``."""
        for node in self.nodes:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def settle(self, model: onnx.ModelProto) -> None:
        """Write the graph back: sorted, without what nothing reads."""
        nodes = self._sorted()
        used = Counter(name for node in nodes for name in node.input)
        names = _short_names(nodes, {*self._inputs, *self.outputs})
        del model.graph.node[:], model.graph.initializer[:]
        del model.graph.value_info[:]
        for node in nodes:
            copy = model.graph.node.add()
            copy.CopyFrom(node)
            copy.ClearField('name')
            copy.ClearField('doc_string')
            for side in (copy.input, copy.output):
                side[:] = [names.get(name, name) for name in side]
        for name, tensor in self.constants.items():
            if used[name]:
                copy = model.graph.initializer.add()
                copy.CopyFrom(tensor)
                copy.name = name

    def _sorted(self) -> list[onnx.NodeProto]:
        """The nodes that the outputs need, each after what it reads."""
        makers = {name: n for n in self.nodes for name in n.output}
        order: list[onnx.NodeProto] = []
        done: set[str] = set()
        stack = [(name, False) for name in reversed(self.outputs)]
        while stack:
            name, ready = stack.pop()
            node = makers.get(name)
            if node is None or node.output[0] in done:
                continue
            if ready:
                done.add(node.output[0])
                order.append(node)
                continue
            stack.append((name, True))
            stack += [(n, False) for n in reversed(node.input)]
        return order


def _short_names(nodes: list[onnx.NodeProto],
                 keep: set[str]) -> dict[str, str]:
    """New names of what nodes make; traced ones are longer than the node."""
    made = [name for node in nodes for name in node.output]
    return {
        name: f't{i}'
        for i, name in enumerate(made) if name and name not in keep
    }
