"""Zeros that a model pads by itself become the padding of its convolution.

TensorFlow pads by what an image's size needs, and models that are to have its
weights do so in a step of their own. A convolution pads with the same zeros,
and without a copy of the tensor. Zero is on every grid, so it does not matter
whether a fake quantizer lies between.
"""

from __future__ import annotations

import onnx_ir as ir

from .lowering import MARK, array_of
from .rewriting import only_reader


def fold_padding(graph: ir.Graph) -> None:
    """Let a convolution pad, where a Pad of zeros is there for it alone.

    Args:
        graph (ir.Graph): The traced graph, with or without marks. Changed in
            place.
    """
    for pad in [node for node in graph if node.op_type == 'Pad']:
        zeros, padded = _zeros_around(pad), pad.outputs[0]
        reader = only_reader(padded)
        mark = reader if reader is not None and (
            reader.op_type == MARK) else None
        conv = only_reader(mark.outputs[0]) if mark is not None else reader
        if zeros is None or conv is None or not _pads_by_numbers(conv):
            continue
        source = pad.inputs[0]
        assert source is not None
        # The weight is another input, and its shape the kernel's.
        if conv.inputs[0] is not (mark.outputs[0] if mark else padded):
            continue
        own = conv.attributes.get_ints('pads', [0] * len(zeros))
        conv.attributes['pads'] = ir.AttrInt64s(
            'pads', [one + other for one, other in zip(own, zeros)])
        if mark is not None:
            mark.outputs[0].shape = source.shape
        padded.replace_all_uses_with(source)
        graph.remove(pad, safe=True)


def _pads_by_numbers(node: ir.Node) -> bool:
    return node.op_type == 'Conv' and node.attributes.get_string(
        'auto_pad', 'NOTSET') == 'NOTSET'


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """How many zeros a Pad puts in front and behind, as a Conv has it.

    None if something else is padded than zeros around the axes of space.
    """
    pads = array_of(pad.inputs[1])
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if pads is None or len(pad.inputs) > 3 or (
            pad.attributes.get_string('mode', 'constant') != 'constant'):
        return None
    if value is not None:
        known = array_of(value)
        if known is None or known.any():
            return None
    axes = len(pads) // 2
    outer, inner = (pads.reshape(2, axes)[:, each] for each in (
        slice(2), slice(2, None)))
    if outer.any() or (inner < 0).any():
        return None
    return [int(number) for number in inner.flat]
