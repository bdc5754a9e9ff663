"""Joints in a model: put in, found again, taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..layer_table import LayerRow
from ..layers import quantized_layers
from ..options import FLOAT_BITS
from ..quantizers import FixedFakeQuantize, Quantizer
from .biases import round_bias_of, rounded_layer, unround_bias
from .gates import GATE, GatedModule, gated_type
from .placing import Joint, Placing
from .watching import in_float, tensors_in

SIDES = dict(output='output_quantizer', entry='entry_quantizer', gate=GATE)


def _quantize_output(module: nn.Module, args: tuple, output: Tensor) -> Any:
    return module.output_quantizer.quantize_once(output)


def _quantize_entry(module: nn.Module, args: tuple) -> tuple:
    return module.entry_quantizer.quantize_once(args[0]), *args[1:]


def attach_joints(model: nn.Module, joints: Iterable[Joint],
                  build: Callable[[str], Quantizer]) -> list[LayerRow]:
    """Give a model the quantizers of its joints.

    A layer that shares one has it as ``input_quantizer``, so that its state,
    its bits and its noise are found where they always are.

    Args:
        model (nn.Module): A converted model, changed in place.
        joints (Iterable[Joint]): The places.
        build (Callable): Makes a new quantizer, for a name; not that of a
            gate, whose step is fixed.

    Returns:
        list[LayerRow]: A row of the table for each place.

    Raises:
        ValueError: If it has joints.
    """
    if any(joint.module is not None for joint in joints_of(model)):
        raise ValueError('the model has joints already: take the quantizers '
                         'off by fpq_plugin.to_float, and convert it anew')
    layers, rows = quantized_layers(model), []
    for joint in joints:
        if joint.side == 'bias':
            round_bias_of(model.get_submodule(joint.module or ''),
                          layers[joint.layers[0]])
            continue
        quantizer: Any = None
        if joint.layers:
            quantizer = layers[joint.layers[0]].input_quantizer
        if joint.module is not None:
            module = model.get_submodule(joint.module)
            gated = gated_type(type(module)) if joint.side == 'gate' else None
            if quantizer is None:
                quantizer = _settled(
                    model, joint.module, build(joint.module) if gated is None
                    else FixedFakeQuantize(gated.gate.levels))
            module.add_module(SIDES[joint.side], quantizer)
            if gated is not None:
                gated.enter(module)
            elif joint.side == 'output':
                module.register_forward_hook(_quantize_output)
            else:
                module.register_forward_pre_hook(_quantize_entry)
            rows.append(LayerRow(
                f'{joint.module}.{joint.side}', 'joint', FLOAT_BITS,
                quantizer.num_bits, (0, ), joint.why))
        for name in joint.layers[1:]:
            layers[name].input_quantizer = quantizer
    return rows


def attach_safely(model: nn.Module, placing: Placing,
                  build: Callable[[str], Quantizer],
                  run: Callable[[], Any], answer: Any
                  ) -> tuple[list[LayerRow], Placing]:
    """The same, without joints that would change what a model computes.

    A hook hands on another tensor than the one it got. Where a model changes
    a tensor in place and reads it under another name, that is another model,
    in full precision, too. Joints that alone make the answer another one are
    left out.

    Args:
        model (nn.Module): A converted model, changed in place.
        placing (Placing): The places.
        build (Callable): As for :func:`attach_joints`.
        run (Callable): Runs the model's forward; its answer.
        answer (Any): What it was without joints, in full precision.

    Returns:
        tuple: A row for each joint that stays, and the placing without the
        others, which are in ``left``.
    """
    joints = placing.joints
    rows = attach_joints(model, joints, build)
    if _answers(model, run, answer):
        return rows, placing
    bad = []
    for joint in joints:
        if joint.module is not None and joint.side != 'bias':
            detach_joints(model)
            attach_joints(model, [joint], build)
            if not _answers(model, run, answer):
                bad.append(joint)
    detach_joints(model)
    kept = tuple(joint for joint in joints if joint not in bad)
    rows = attach_joints(model, kept, build)
    if not bad or not _answers(model, run, answer):
        detach_joints(model)
        raise ValueError(
            f'{type(model).__name__} changes tensors in place and reads them '
            'under other names, or answers otherwise each time: no quantizer '
            'can stand beside its layers. Leave out the target, or write the '
            'model without inplace=True')
    return rows, Placing(kept, (*placing.left, *(
        f'{joint.module}: its tensor is changed in place under another name'
        for joint in bad)))


def _answers(model: nn.Module, run: Callable[[], Any], answer: Any) -> bool:
    """Whether a model whose joints hand on copies answers as before."""
    quantizers = [
        module._modules[key] for module in model.modules()
        for key in SIDES.values() if key in module._modules]
    for quantizer in quantizers:
        quantizer.forward = torch.clone
    try:
        with in_float(model):
            return _alike(list(tensors_in(run())), list(tensors_in(answer)))
    finally:
        for quantizer in quantizers:
            vars(quantizer).pop('forward', None)


def _alike(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Up to the rounding of float32, which layers amplify."""
    return [x.shape for x in found] == [x.shape for x in wanted] and all(
        torch.allclose(x, y, 0, 1e-3 * float(y.abs().max()), equal_nan=True)
        for x, y in zip(found, wanted) if y.numel())


def refuse_lost_hooks(model: nn.Module) -> None:
    """Refuse a model that lost the hooks of its joints.

    Raises:
        ValueError: Naming a module that was replaced by another one.
    """
    for name, module in model.named_modules():
        for hooks, hook, key in _hooks_of(module):
            if key in module._modules and hook not in hooks.values():
                raise ValueError(
                    f'{name} has the {key} of a joint and not its hook: it '
                    'was replaced after add_joints, as by '
                    'convert_sync_batchnorm. Do that before')


def _hooks_of(module: nn.Module) -> list[tuple[dict, Callable, str]]:
    return [(module._forward_hooks, _quantize_output, SIDES['output']),
            (module._forward_pre_hooks, _quantize_entry, SIDES['entry'])]


def _settled(model: nn.Module, name: str, quantizer: Quantizer) -> Quantizer:
    """A new quantizer, on the device of its place, and frozen with it."""
    quantizer.over_batch = True
    while True:
        near = next(model.get_submodule(name).parameters(), None)
        if near is not None or not name:
            break
        name = name.rpartition('.')[0]
    if near is not None:
        quantizer.to(near.device).requires_grad_(any(
            parameter.requires_grad
            for parameter in model.get_submodule(name).parameters()))
    return quantizer.train(model.training)


def joints_of(model: nn.Module) -> list[Joint]:
    """The joints that a model has; their reasons are not kept.

    Args:
        model (nn.Module): The model, without a wrapper.

    Returns:
        list[Joint]: What :func:`attach_joints` takes.
    """
    names = {id(module): name for name, module in model.named_modules()}
    # First: they are rounded before they are quantized.
    joints = [
        Joint(name, 'bias', (names[id(layer)], ))
        for name, module in model.named_modules()
        if (layer := rounded_layer(module)) is not None]
    found: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Quantizer):
            owner, _, key = name.rpartition('.')
            found.setdefault(id(module), []).append((owner, key))
    for places in found.values():
        layers = tuple(dict.fromkeys(
            owner for owner, key in places if key == 'input_quantizer'))
        own = [(owner, side) for owner, key in places
               for side, known in SIDES.items() if key == known]
        if own:
            joints += [Joint(*place, layers if i == 0 else ())
                       for i, place in enumerate(own)]
        elif len(layers) > 1:
            joints.append(Joint(None, 'entry', layers))
    return joints


def detach_joints(model: nn.Module) -> None:
    """Take the joints out; layers that shared a quantizer go on sharing."""
    for module in list(model.modules()):
        if isinstance(module, GatedModule):
            module.leave()
        unround_bias(module)
        for hooks, hook, key in _hooks_of(module):
            for number, known in list(hooks.items()):
                if known is hook:
                    del hooks[number]
                    delattr(module, key)
