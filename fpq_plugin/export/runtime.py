"""A finished graph in its engine: held against the rules, run and timed.

It is held against an engine's rules by the graph alone, without what built
it: a mistake there shows here. onnxruntime runs and times it, or OpenVINO if
it is for that, and there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from ..targets import ONNXRUNTIME, OPENVINO, Target, known_targets, target_of
from .formats import OpenedFile
from .lowering import LAYER, array_of
from .outputs import INPUT, SEVERAL, arranged, tensors_of
from .timing import Run


def open_session(model: bytes, unpack: bool = False) -> Run:
    """Open a model in onnxruntime on the CPU, with torch's thread count.

    Args:
        model (bytes): The content of an ONNX file.
        unpack (bool): Whether weights become float as the file is opened,
            instead of integer kernels where there are some and at every call
            elsewhere. Defaults to False, as onnxruntime does it.

    Returns:
        Callable: From an input to the model's output, or the tuple of them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Initializers of weights that fused away are no news.
    options.log_severity_level = 3
    # Idle threads that wait actively take the cores from whoever runs next.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    if unpack:
        options.add_session_config_entry('session.disable_quant_qdq', '1')
    session = onnxruntime.InferenceSession(
        model, options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Any:
        return _one_or_all(session.run(None, {name: x.numpy()}))

    return run


def _one_or_all(arrays: Sequence[Any]) -> Any:
    tensors = tuple(map(torch.from_numpy, arrays))
    return tensors[0] if len(tensors) == 1 else tensors


def open_in_openvino(model: bytes) -> Run:
    """Open a model in OpenVINO on the CPU, with torch's thread count.

    Args:
        model (bytes): The content of an ONNX file.

    Returns:
        Callable: From an input to the model's output, or the tuple of them.
    """
    import openvino

    core = openvino.Core()
    # Some processors would get what is not quantized in bfloat16.
    compiled = core.compile_model(core.read_model(model), 'CPU', {
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'INFERENCE_PRECISION_HINT': 'f32'})
    request = compiled.create_infer_request()

    def run(x: Tensor) -> Any:
        found = request.infer({0: x.numpy()})
        return _one_or_all([found[number].copy()
                            for number in range(len(compiled.outputs))])

    return run


def opener_of(target: Target) -> Callable[[bytes], Run] | None:
    """What opens a file in the engine that it is for.

    Args:
        target (Target): The engine's rules.

    Returns:
        Callable | None: From a file's content to what runs it; None if the
        engine is not here.
    """
    if target.measured:
        return open_session
    if target.name == OPENVINO.name and find_spec('openvino'):
        return open_in_openvino
    return None


def open_file(path: str | os.PathLike,
              engine: str | None = None) -> OpenedFile:
    """Open an ONNX file of one input, by any tool.

    Several outputs come as the exported model returned them; in a tuple,
    where the file does not say how.

    Args:
        path (str | os.PathLike): The file.
        engine (str, optional): 'onnxruntime' or 'openvino'. Defaults to
            None: the one that an export wrote the file for; onnxruntime if it
            is for another, which then computes what the file says in float.

    Returns:
        OpenedFile: What runs it.

    Raises:
        ValueError: If the file has more inputs.
        ImportError: If the engine is missing or multiplies wrongly.
    """
    content = Path(path).read_bytes()
    model = onnx.load_from_string(content)
    notes = {note.key: note.value for note in model.metadata_props}
    target = target_of(notes.get('fpq.target') if notes.get(
        'fpq.target') in known_targets() else None)
    name = engine or (target.name if target.name == OPENVINO.name
                      else ONNXRUNTIME.name)
    made = {init.name for init in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in made]
    if len(inputs) != 1:
        raise ValueError(f'{os.fspath(path)!r} has {len(inputs)} inputs: one '
                         'is taken')
    size = inputs[0].type.tensor_type.shape.dim[0].dim_value or None
    held = partial(_held, notes.get(SEVERAL))
    if name == OPENVINO.name:
        if find_spec('openvino') is None:
            raise ImportError("engine 'openvino' needs openvino: pip install "
                              "'fpq-openmmlab[openvino]'")
        return OpenedFile(held(open_in_openvino(content)), 'OpenVINO', size)
    in_float = not engine and not target.measured
    if not in_float:
        refuse_wrong_products(ONNXRUNTIME)
    return OpenedFile(
        held(open_session(content, unpack=in_float)), 'onnxruntime' + (
            f', in float: the file is for {target.title}' if in_float else ''),
        size)


def _held(structure: str | None, run: Run) -> Run:
    """``run`` with its outputs held as a file's metadata say."""
    if structure is None:
        return run
    known = json.loads(structure)

    def held(x: Tensor) -> Any:
        return arranged(tensors_of(run(x)), known)

    return held


@lru_cache
def saturates() -> bool:
    """Whether uint8 times int8 goes wrong in onnxruntime on this processor.

    Without VNNI instructions its kernels add products in pairs, in 16 bits
    that saturate. uint8 times uint8 has other kernels, which do not.
    """
    model = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": 17]>
        saturates (uint8[1, 4] {INPUT}) => (int32[1, 1] sum)
        <int8[4, 1] weight = {{127, 127, 127, 127}}>
        {{ sum = MatMulInteger({INPUT}, weight) }}""")
    run = open_session(ir.to_proto(model).SerializeToString())
    return run(torch.full((1, 4), 255, dtype=torch.uint8)).item() != (
        4 * 255 * 127)


@lru_cache
def multiplies_wrongly() -> bool:
    """Whether onnxruntime's integer products are wrong on this processor.

    Those of 1.21 to 1.24 are on one with AMX, for 32 rows and more, if 17 to
    31 columns are left over (microsoft/onnxruntime, pull request 27671).
    """
    weight = (torch.arange(64 * 24) * 7 % 255 - 127).view(64, 24)
    x = (torch.arange(32 * 64) * 11 % 251).view(32, 64)
    numbers = ', '.join(map(str, weight.flatten().tolist()))
    model = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": 17]>
        multiplies (uint8[32, 64] {INPUT}) => (int32[32, 24] product)
        <int8[64, 24] weight = {{{numbers}}}>
        {{ product = MatMulInteger({INPUT}, weight) }}""")
    run = open_session(ir.to_proto(model).SerializeToString())
    return not torch.equal(run(x.to(torch.uint8)).long(), x @ weight)


def refuse_wrong_products(target: Target) -> None:
    """Refuse an onnxruntime that would compute the file wrongly here.

    Args:
        target (Target): The engine that the file is for.

    Raises:
        ImportError: Naming the version, and those to take.
    """
    if target.measured and multiplies_wrongly():
        import onnxruntime

        raise ImportError(
            f'not exported: onnxruntime {onnxruntime.__version__} multiplies '
            'integers wrongly on this processor, which has AMX: pip install '
            "'onnxruntime>=1.25' (Python 3.10: 'onnxruntime<1.21')")


# -- an engine's rules ----------------------------------------------------

def refuse_unfit_for(target: Target, model: ir.Model) -> None:
    """Refuse a file that its engine does not take.

    Args:
        target (Target): Its rules.
        model (ir.Model): The finished model.

    Raises:
        ValueError: Naming the node and the rule.
    """
    for node in model.graph:
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            fault = _fault(target, node)
            if fault:
                raise ValueError(
                    f'not exported: {target.title} takes no {node.op_type} '
                    f'with {fault}')


def _fault(target: Target, node: ir.Node) -> str:
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_point is None:  # only the INT32 of biases goes without
        return '' if target.integer_biases else 'integers of INT32'
    if not target.zero_points and array_of(zero_point).astype(int).any():
        return 'a zero point other than 0'
    known = zero_point.const_value
    name = '' if known is None else known.dtype.name
    read = node.inputs[0]
    is_weight = read is not None and LAYER in read.meta
    types = target.weights if is_weight else target.features
    return '' if name in types else f'integers of {name}'
