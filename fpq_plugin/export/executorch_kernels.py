"""Which layers XNNPACK computes on integers, by the lowered program.

What ExecuTorch gives to XNNPACK leaves the program for one of its own. A
layer whose integers are read there is one of integers. What it does not get
runs in ExecuTorch's portable kernels, slowly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import Node

from ..layers import quantized_layers
from .kernel_report import Kernels
from .program_layout import FLOATS

_LAYERS = ('convolution', 'linear', 'addmm', 'mm')
# They compute nothing.
_FREE = ('getitem', 'executorch_call_delegate')


def find_kernels(model: nn.Module, lowered: Any) -> Kernels:
    """Look at what XNNPACK took of a program.

    Args:
        model (nn.Module): The model it was made of.
        lowered (executorch.exir.EdgeProgramManager): The lowered program.

    Returns:
        Kernels: What is computed on integers.
    """
    whole = lowered.exported_program()
    inside = [module.original_module for module in _delegates(whole)]
    taken = {name for program in inside
             for name, buffer, _ in _layers_of(program) if buffer != FLOATS}
    reasons = {name: _reason(node) for program in (whole, *inside)
               for name, _, node in _layers_of(program)}
    layers = []
    for name, layer in quantized_layers(model).items():
        if layer.weight_quantizer is None:
            continue
        stored = next(key for key, module in model.named_modules(
            remove_duplicate=False) if module is layer.weight_quantizer)
        layers.append((name, '' if stored in taken else reasons.get(
            stored, 'it is lowered to other operations')))
    others = Counter(_kind(node) for program in inside
                     for node in _calls(program) if _on_integers(node))
    outside = Counter(_kind(node) for node in _calls(whole)
                      if _kind(node) not in _FREE)
    return Kernels(tuple(layers), tuple(sorted(others.items())),
                   tuple(sorted(outside.items())))


def _delegates(program: Any) -> Iterator[Any]:
    for node in program.graph.nodes:
        module = (getattr(program.graph_module, node.target)
                  if node.op == 'get_attr' else None)
        if hasattr(module, 'original_module'):
            yield module


def _calls(program: Any) -> Iterator[Node]:
    return (node for node in program.graph.nodes if node.op == 'call_function')


def _kind(node: Any) -> str:
    """As in aten.max_pool2d.default."""
    name = getattr(node.target, '__name__', str(node.target))
    parts = name.split('.')
    return parts[1] if len(parts) > 2 else parts[0]


def _layers_of(program: Any) -> Iterator[tuple[str, str, Node]]:
    """Names of weights' quantizers, of the buffers read, and the layers."""
    stored = program.graph_signature.inputs_to_buffers
    for node in _calls(program):
        for made in node.all_input_nodes if _kind(node) in _LAYERS else ():
            if _kind(made).startswith('dequantize'):
                made = made.all_input_nodes[0]
            name, _, buffer = stored.get(made.name, '').rpartition('.')
            if buffer in ('integers', FLOATS):
                yield name, buffer, node


def _quantized_inputs(node: Node) -> bool:
    return all(_kind(x).startswith('dequantize_per_tensor')
               for x in node.all_input_nodes)


def _end_of(node: Node) -> Node | None:
    """What reads an operation, and the activation that is done in it."""
    users = list(node.users)
    while len(users) == 1 and _kind(users[0]) in ('relu', 'hardtanh'):
        users = list(users[0].users)
    return users[0] if len(users) == 1 else None


def _on_integers(node: Node) -> bool:
    end = _end_of(node)
    return (_kind(node) not in (*_LAYERS, 'quantize_per_tensor')
            and bool(node.all_input_nodes) and _quantized_inputs(node)
            and end is not None and _kind(end) == 'quantize_per_tensor')


def _reason(node: Node) -> str:
    """Why a layer is likely to be computed in float."""
    read, end = node.args[_kind(node) == 'addmm'], _end_of(node)
    if _kind(read) != 'dequantize_per_tensor':
        return 'the input is not quantized'
    if end is None or _kind(end) != 'quantize_per_tensor':
        return 'the output is not quantized'
    return 'XNNPACK has none for it'
