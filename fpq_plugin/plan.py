"""Which layer gets which fake quantizers, and why; and giving them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch import nn

from .layer_table import LayerRow, LayerTable, rows
from .layers import (
    AttentionProducts,
    Backend,
    QuantizedLayer,
    branches,
    get_backend,
    is_in_head,
    predicting,
    quantizable_types,
    quantized_layers,
    quantized_type,
    read_weight,
    refuse_bypassing,
    refuse_lazy,
    refuse_reparameterizing,
    route,
    route_attention,
    unroute,
)
from .options import (
    FLOAT_BITS,
    build,
    matches,
    override,
    refuse_unmatched,
    resolve,
)
from .perturbation import NoiseClock

if TYPE_CHECKING:
    from .recipe import Recipe

PARTS = ('weight', 'activation', 'perturbation')
Plan = tuple[dict[str, Any], str]
"""A layer's configs by part, None for float or off; and the reason."""


def quantize(model: nn.Module, recipe: Recipe,
             skip: Sequence[str] = ()) -> LayerTable:
    """Swap the model's layers in place, as ``recipe`` says.

    Args:
        model (nn.Module): The model, changed in place, or not at all.
        recipe (Recipe): The options.
        skip (Sequence[str]): Patterns of further layers to leave out.

    Returns:
        LayerTable: One row for each layer with a weight of two or more axes,
        and for each other tensor of two or more axes of a checkpoint.

    Raises:
        ValueError: If a pattern matches no layer, the model is quantized
            already, has lazy layers or ``efficient_conv_bn_eval`` on, or
            nothing is left to quantize.
    """
    found = quantized_layers(model)
    if found:
        raise ValueError(
            f'the model is quantized already: its layer {next(iter(found))!r} '
            f'is a {type(next(iter(found.values()))).__name__}. Take the '
            'quantizers off by fpq_plugin.to_float first')
    refuse_lazy(model)
    refuse_bypassing(model)
    route(model)
    try:
        reasons = _quantize_layers(model, recipe, [*recipe.skip, *skip])
        products = _quantize_attention(model, recipe, [*recipe.skip, *skip])
    except Exception:
        unroute(model)
        raise
    refuse_reparameterizing(model)
    return LayerTable(
        rows(model, reasons, get_backend(recipe.backend)) + products)


def _quantize_layers(model: nn.Module, recipe: Recipe,
                     skip: Sequence[str]) -> dict[str, str]:
    """Swap the layers; the reason for each one's bits."""
    backend = get_backend(recipe.backend)
    layers, kinds = {}, {}
    for name, module in model.named_modules():
        kind = quantized_type(module, backend)
        if kind is not None:
            layers[name], kinds[name] = module, kind
    if not layers:
        found = Counter(type(m).__name__ for m in model.modules())
        raise ValueError(
            'nothing to quantize: the model has no layer of the types '
            f'{", ".join(quantizable_types(backend))}, but '
            f'{", ".join(f"{n} {t}" for t, n in found.most_common(5))}')
    refuse_unmatched(recipe.name_of('skip'), skip, list(layers))
    refuse_unmatched(recipe.name_of('overrides'), recipe.overrides or {},
                     list(layers))
    beside = branches(model, layers)
    plans = _plans(list(layers), recipe, skip, backend, beside,
                   predicting(model, layers))
    if not any(_quantizes(plan) for plan, _ in plans.values()):
        raise ValueError('nothing to quantize: skip and overrides leave out '
                         'every layer')
    # All quantizers are built before the first swap: an error changes nothing.
    built = {
        name: _build(name, layers[name], kinds[name], plan, recipe)
        for name, (plan, _) in plans.items()
    }
    _warn_of_branches({
        block: names for block, names in beside.items()
        if all(_quantizes(plans[name][0]) for name in names)
    })
    clock = NoiseClock()
    for number, (name, parts) in enumerate(built.items()):
        weight, activation, perturbation = parts
        if weight is None and activation is None:
            continue
        if perturbation is not None:
            perturbation.set_clock(clock, number)
        kinds[name].swap(layers[name], *parts)
    if any(perturbation is not None for *_, perturbation in built.values()):
        model.register_forward_pre_hook(clock.start_forward)
    return {name: why for name, (_, why) in plans.items()}


def _plans(names: Sequence[str], recipe: Recipe, skip: Sequence[str],
           backend: Backend, beside: Mapping[str, Sequence[str]],
           predicting: Sequence[str]) -> dict[str, Plan]:
    """Each layer's plan, first and last ones' bits included.

    Layers that predict are last ones, too; in their heads the last by name
    tells nothing.
    """
    plans = {name: _plan(name, recipe, skip, backend) for name in names}
    if recipe.first_last_bits is None:
        return plans
    quantized = [name for name, (plan, _) in plans.items() if _quantizes(plan)]
    last = quantized[-1:]
    if predicting and is_in_head(names[-1]):
        last = []
    predicting = [name for name in quantized if name in predicting]
    for ends, of_all, why in ((last, names[-1:], 'last'),
                              (predicting, predicting, 'predicting'),
                              (quantized[:1], names[:1], 'first')):
        for end in ends:
            plans[end] = _plan(
                end, recipe, skip, backend, recipe.first_last_bits,
                f'{why} layer' if ends == of_all else
                f'{why} of those that are left')
            for name in _others(end, beside):
                if name in quantized:
                    plans[name] = _plan(name, recipe, skip, backend,
                                        recipe.first_last_bits,
                                        f'beside the {why} layer')
    return plans


def _others(name: str, beside: Mapping[str, Sequence[str]]) -> list[str]:
    """The other branches of a layer's block."""
    return [other for names in beside.values() if name in names
            for other in names if other != name]


def _warn_of_branches(beside: Mapping[str, Sequence[str]]) -> None:
    if beside:
        block, names = next(iter(beside.items()))
        warnings.warn(
            f'{len(beside)} blocks train branches that are to be fused for '
            f'deployment ({block}: {", ".join(names)}). Each branch has its '
            'own steps now, and cannot be fused any more: call '
            'switch_to_deploy on the full-precision model, or build it with '
            'deploy=True, and quantize that', stacklevel=2)


def _plan(name: str, recipe: Recipe, skip: Sequence[str], backend: Backend,
          bits: int | None = None, why: str = 'default') -> Plan:
    nothing: dict[str, Any] = dict.fromkeys(PARTS)
    by = next((pattern for pattern in skip if matches(name, pattern)), None)
    if by is not None:
        return nothing, f'skip {by!r}'
    parts: dict[str, Any] = {part: getattr(recipe, part) for part in PARTS}
    for part in ('weight', 'activation'):
        if bits is not None and parts[part] is not None:
            parts[part] = {**parts[part], 'bits': bits}
    for pattern, changes in (recipe.overrides or {}).items():
        if matches(name, pattern):
            why = f'override {pattern!r}'
            for part, given in changes.items():
                parts[part] = override(parts[part], given)
    parts = {
        part: resolve(part, cfg, recipe.default_type(part),
                      backend.registry(part))
        for part, cfg in parts.items()
    }
    if not _quantizes(parts):
        return nothing, f'{why}: off'
    return parts, why


def _quantizes(plan: Mapping[str, Any]) -> bool:
    return bool(plan['weight'] or plan['activation'])


def _build(name: str, layer: nn.Module, kind: type[QuantizedLayer],
           plan: dict[str, Any], recipe: Recipe) -> tuple:
    """The layer's weight quantizer, input quantizer and perturbation."""
    backend = get_backend(recipe.backend)

    def part(key: str, **defaults: Any) -> nn.Module | None:
        if plan[key] is None:
            return None
        return build(f'{key} of {name}', plan[key], backend.registry(key),
                     **defaults)

    axis = kind.weight_axis
    of_weight = dict(symmetric=True, per_channel=True, ch_axis=axis,
                     num_channels=read_weight(layer).shape[axis])
    weight = part('weight', **of_weight)
    # -128 has no opposite in int8, which a batch norm of negative gain asks
    # for that is to go into the weight, and some engines do not take it.
    if recipe.target is not None and (
            getattr(weight, 'quant_min', 0) == -128
            and 'narrow_range' not in plan['weight']):
        with suppress(ValueError):  # of a class that says it itself
            weight = part('weight', narrow_range=True, **of_weight)
    activation = part('activation')
    if getattr(activation, 'is_per_channel', False):
        raise ValueError(f'activation of {name}: per_channel is for weights; '
                         'an activation has one step')
    perturbation = part('perturbation')
    if perturbation and not (weight if perturbation.of_weight else activation):
        perturbation = None
    return weight, activation, perturbation


def _quantize_attention(model: nn.Module, recipe: Recipe,
                        skip: Sequence[str]) -> list[LayerRow]:
    """Quantizers for the attention modules' products, and their rows."""
    cfg = recipe.attention
    if cfg is None:
        return []

    def products(name: str) -> AttentionProducts:
        return AttentionProducts(*(
            build(f'attention of {name}', cfg) for _ in range(4)))

    names = route_attention(
        model, lambda name: not any(matches(name, p) for p in skip), products)
    return [
        LayerRow(f'{name}.products', 'AttentionProducts', FLOAT_BITS,
                 cfg.get('bits', 8), (0, ), 'attention') for name in names
    ]
