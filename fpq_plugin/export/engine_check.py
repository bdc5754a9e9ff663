"""A finished graph held against the rules of the engine that is to take it.

By the graph alone, without what built it: a mistake there shows here.
"""

from __future__ import annotations

import onnx_ir as ir

from .engines import Engine
from .lowering import array_of, is_constant


def refuse_unfit_for(engine: Engine, model: ir.Model) -> None:
    """Refuse a file that its engine does not take.

    Args:
        engine (Engine): The engine.
        model (ir.Model): The finished model.

    Raises:
        ValueError: Naming the node and the rule.
    """
    for node in model.graph:
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            fault = _fault(engine, node)
            if fault:
                raise ValueError(
                    f'not exported: {engine.title} takes no {node.op_type} '
                    f'with {fault}')


def _fault(engine: Engine, node: ir.Node) -> str:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_point is None:  # only the INT32 of biases goes without
        return '' if engine.integer_biases else 'integers of INT32'
    if not engine.zero_points and array_of(zero_point).astype(int).any():
        return 'a zero point other than 0'
    known = zero_point.const_value
    name = '' if known is None else known.dtype.name
    types = (engine.weights if is_constant(node.inputs[0])
             else engine.features)
    return '' if name in types else f'integers of {name}'
