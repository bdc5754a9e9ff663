"""A trained model becomes an ONNX file, once onnxruntime has run it.

Several versions are built, the fastest first: with biases as integers or in
float, with all batch norms in their layers or not. The first that is as
accurate as the trained model, on real inputs and in batches of several sizes,
is written; if none is, nothing is. Importing this module needs neither
onnx nor onnxruntime, so that a run can look at what it needs before it
trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._compat.files import write_whole
from .._compat.restoring import kept_modes
from ..layers import quantized_layers
from ..options import FLOAT_BITS
from ..targets import ONNXRUNTIME, OPENVINO, Target, target_of
from ..version import __version__
from .exportable import checked_path, compared_batches, unwrapped
from .formats import FileFormat, OpenedFile, register_format
from .images import OTHER_SIZES, Batch
from .outputs import SEVERAL
from .parity import TOLERANCE, compare_batch_of, measure_parity
from .report import ExportedLayer, ExportReport, Latency
from .timing import latencies

if TYPE_CHECKING:
    import onnx_ir as ir

    from .build import Built, TracedModel


def exported_layers(model: nn.Module) -> tuple[ExportedLayer, ...]:
    """The model's quantized layers with their bits.

    Args:
        model (nn.Module): A quantized model.

    Returns:
        tuple[ExportedLayer, ...]: In the order of the model.
    """

    def bits(quantizer: nn.Module | None) -> int:
        return FLOAT_BITS if quantizer is None else quantizer.num_bits

    return tuple(
        ExportedLayer(name, bits(layer.weight_quantizer),
                      bits(layer.input_quantizer), layer.weight.numel())
        for name, layer in quantized_layers(model).items())


def add_metadata(built: ir.Model, traced: TracedModel,
                 source: dict[str, str]) -> None:
    """Write bits, the scales' source and versions into the file.

    Args:
        built (ir.Model): The exported model, changed in place.
        traced (TracedModel): The model it was made from.
        source (dict[str, str]): Where the weights come from.
    """
    model = traced.model
    kinds = {
        type(part).__name__
        for layer in quantized_layers(model).values()
        for part in (layer.weight_quantizer, layer.input_quantizer)
        if part is not None
    }
    layers = {
        layer.name: f'W{layer.weight_bits}A{layer.activation_bits}'
        for layer in exported_layers(model)
    }
    built.metadata_props.update({
        'fpq.version': __version__,
        'fpq.torch': torch.__version__,
        'fpq.onnx': version('onnx'),
        'fpq.scales': ', '.join(sorted(kinds)),
        'fpq.bits': json.dumps(layers, separators=(',', ':')),
        'fpq.batch_size': str(traced.batch_size or 'free'),
        **{f'fpq.{key}': value
           for key, value in source.items()}
    })
    if traced.structure is not None:
        built.metadata_props[SEVERAL] = json.dumps(traced.structure)
    built.producer_name = 'fpq-openmmlab'
    built.producer_version = __version__


LARGEST_TIMED = 32


def export_onnx(model: nn.Module,
                path: str | os.PathLike,
                batches: Iterable[Batch],
                tolerance: float = TOLERANCE,
                source: dict[str, str] | None = None,
                unsigned_weights: bool | None = None,
                target: str | None = None,
                batch_size: int | None = None) -> ExportReport:
    """Write a trained model as ONNX, once onnxruntime answers as it does.

    The file has QuantizeLinear and DequantizeLinear of the standard, integer
    weights, batch norms in the layers before them, and a free batch size.
    It is also compared in batches of 1 and of 7 images. SFP, CSD, teacher and
    calibration leave no trace. A file is written completely, or not at all.

    Args:
        model (nn.Module): A quantized model of any backend, on the CPU. It
            takes one tensor and returns one, or tuples, lists and dicts of
            them (:mod:`.outputs`). Its training mode is as before when this
            returns.
        path (str | os.PathLike): The file to write.
        batches (Iterable[Batch]): Real inputs (N, ...), each with labels (N,)
            or None, that the trained and the exported model are compared on.
        tolerance (float): Points of top-1 that the file may lose, in %, if
            there are labels; if not, ten times this share of the answers may
            have another class. One image, or answer, may in any case. Outputs
            may differ by 2 % of their spread on average, several outputs by
            5 %; by up to 20 % with a tolerance above 0.1. Defaults to 0.1.
        source (dict[str, str], optional): Notes for the file's metadata.
            Defaults to None.
        unsigned_weights (bool, optional): Whether 8-bit weights are uint8
            with zero point 128, which is right on every processor, instead of
            int8. Defaults to None: where this processor's kernels for int8
            saturate, if the file is for onnxruntime.
        target (str, optional): The engine that is to take the file, by the
            names of :mod:`fpq_plugin.targets`, such as 'onnxruntime'. Defaults
            to None, any runtime of the standard.
        batch_size (int, optional): Write a file for batches of this size
            alone, for models that a free size does not fit; its metadata
            says so. Defaults to None, any size.

    Returns:
        ExportReport: Sizes, latencies, parity, bits, what became of biases
        and which layers have integer kernels.

    Raises:
        ValueError: If something cannot be exported; the message names it.
        TypeError: If ``batch_size`` is not an integer.
        ParityError: If the exported model answers otherwise.
        FileNotFoundError: If there is no folder for the file.
        ImportError: If onnx, onnx-ir or onnxruntime is missing, or that
            onnxruntime multiplies integers wrongly on this processor.
    """
    ONNX.require_packages()
    from .runtime import refuse_wrong_products, saturates

    rules = target_of(target)
    path = checked_path(path, batch_size, rules)
    refuse_wrong_products(rules)
    if unsigned_weights and 'UINT8' not in rules.weights:
        raise ValueError(f'not exported: {rules.title} takes no uint8, set '
                         'unsigned_weights=False')
    if unsigned_weights is None:
        unsigned_weights = rules.measured and saturates()
    model = unwrapped(model)
    with kept_modes(model):
        return _export(model.eval(), path, batches, tolerance, source or {},
                       unsigned_weights, rules, batch_size)


def _export(model: nn.Module, path: Path, batches: Iterable[Batch],
            tolerance: float, source: dict[str, str], unsigned: bool,
            target: Target, batch_size: int | None) -> ExportReport:
    from .build import build_float_onnx, trace_model
    from .kernels import find_kernels
    from .runtime import open_session, opener_of, refuse_unfit_for

    example, batches = compared_batches(batches, batch_size)
    traced = trace_model(model, example, target, batch_size)
    built = _versions(traced, unsigned)
    for each in built:
        refuse_unfit_for(target, each.model)
        add_metadata(each.model, traced, {**source, 'target': target.name})
    contents = [content_of(each.model) for each in built]
    opened = opener_of(target)
    # Without its engine a file is computed as it says, in float.
    sessions = [
        opened(content) if opened else open_session(content, unpack=True)
        for content in contents]
    found = measure_parity(model, sessions, batches)
    best = next((number for number, parity in enumerate(found)
                 if parity.holds(tolerance)), len(found) - 1)
    reason = '' if built[best].integer_biases else '; '.join(
        found[0].faults(tolerance))
    found[best].refuse(tolerance)
    for size in () if batch_size else OTHER_SIZES:
        compare_batch_of(size, model, sessions[best], example, found[best])
    content = contents[best]
    kernels = [find_kernels(each.model, content) for each, content in
               zip(built[:best + 1], contents)] if target.measured else []
    in_float = content_of(build_float_onnx(traced))
    sizes = {batch_size} if batch_size else {
        1, min(LARGEST_TIMED, len(example))}
    times: list[Latency] = []
    if opened:
        runs = [sessions[best], opened(in_float)]
        if target.measured:
            runs.append(open_session(content, unpack=True))
        times = [Latency(size, *latencies(runs, example[:size]))
                 for size in sorted(sizes)]
    write_whole(path, lambda file: file.write(content))
    return ExportReport(
        str(path), len(content), len(in_float),
        built[best].model.opset_imports[''], found[best], tuple(times),
        exported_layers(model),
        tuple((bias.layer, bias.reason) for bias in built[best].biases),
        reason, target.title, batch_size,
        moved_weights=built[best].moved_weights,
        kernels=kernels[-1] if kernels else None,
        lost_kernels=kernels[0].on_integers() - kernels[-1].on_integers()
        if kernels and reason else 0)


def _versions(traced: TracedModel, unsigned: bool) -> list[Built]:
    """The fastest first, and last what costs no accuracy."""
    clips = 'conv' in traced.target.ends_quantized
    found: list[Built] = []
    for integers in (True, False):
        built = [traced.build(integers, unsigned, clips)]
        if built[0].moved_weights:
            built.append(traced.build(integers, unsigned))
        if not found or built[0].biases != found[0].biases:
            found += built
    return found


def content_of(model: ir.Model) -> bytes:
    """The bytes of a model's file."""
    from onnx_ir import to_proto

    return to_proto(model).SerializeToString()


def check_onnx(model: nn.Module, example: Tensor,
               target: str | None = None) -> None:
    """Build the model as ONNX in memory: what cannot be exported raises.

    Args:
        model (nn.Module): In eval mode; see :func:`export_onnx`.
        example (Tensor): An input, (N, ...).
        target (str, optional): The engine. Defaults to None, any.

    Raises:
        ValueError: If something cannot be exported; the message names it.
        ImportError: As :func:`export_onnx`.
    """
    from .build import trace_model
    from .runtime import refuse_wrong_products

    rules = target_of(target)
    refuse_wrong_products(rules)
    trace_model(model, example, rules).build()


def open_onnx(path: str | os.PathLike,
              engine: str | None = None) -> OpenedFile:
    """Open an ONNX file, see :func:`.runtime.open_file`."""
    from .runtime import open_file

    return open_file(path, engine)


ONNX = register_format(FileFormat(
    name='ONNX',
    endings=('.onnx', ),
    packages=('onnx', 'onnx_ir', 'onnxruntime'),
    extra='export',
    check=check_onnx,
    write=export_onnx,
    takes_target=True,
    runs_in=(ONNXRUNTIME.name, OPENVINO.name),
    open_in=open_onnx))
