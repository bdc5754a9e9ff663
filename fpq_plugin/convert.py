"""Quantizing a model by swapping its layers in place, and undoing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from .layer_table import LayerRow, LayerTable
from .layers import (
    AttentionProducts,
    Backend,
    QuantizedLayer,
    get_backend,
    quantizable_types,
    quantized_layers,
    quantized_type,
    route,
    route_attention,
    unroute,
)
from .options import (
    OFF_BITS,
    build,
    matches,
    refuse_no_patterns,
    refuse_unknown,
    refuse_unmatched,
    resolve,
)
from .perturbation import NoiseClock, StochasticFeaturePerturbation
from .quantizers import Quantizer

DEFAULT_WEIGHT: dict[str, Any] = dict(type='LSQFakeQuantize', bits=4)
DEFAULT_ACTIVATION: dict[str, Any] = dict(type='LSQFakeQuantize', bits=4)
DEFAULT_PERTURBATION: dict[str, Any] = dict(
    type='StochasticFeaturePerturbation', p=0.1)
_KINDS: dict[str, type[nn.Module]] = dict(
    weight=Quantizer,
    activation=Quantizer,
    perturbation=StochasticFeaturePerturbation)


def check_settings(weight: dict | None,
                   activation: dict | None,
                   perturbation: dict | None,
                   first_last_bits: int | None = 8,
                   skip: Sequence[str] = (),
                   overrides: Mapping[str, dict] | None = None,
                   backend: str = 'torch_ao',
                   attention: dict | None = None) -> None:
    """Refuse wrong options of :func:`convert`, without a model.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option or a value is wrong; the message names it.
        ImportError: If what the backend needs is not installed.
    """
    target = get_backend(backend)
    base = dict(
        weight=weight, activation=activation, perturbation=perturbation)
    _check_parts('', base, target)
    resolved = resolve('attention', attention, DEFAULT_ACTIVATION['type'],
                       kind=Quantizer)
    if resolved is not None:
        build('attention', resolved)
    if first_last_bits not in (None, OFF_BITS):
        _check_parts('first_last_bits: ', dict(
            weight=dict(bits=first_last_bits)), target)
    refuse_no_patterns('skip', skip)
    if not isinstance(overrides or {}, Mapping):
        raise TypeError('overrides: must be a dict from patterns to options, '
                        f'got {overrides!r}')
    for pattern, override in (overrides or {}).items():
        key = f'overrides[{pattern!r}]'
        if not isinstance(override, dict):
            raise TypeError(f'{key}: must be a dict, got {override!r}')
        refuse_unknown(key, override, list(_KINDS))
        _check_parts(f'{key}.', {
            part: _merge(base[part], given)
            for part, given in override.items()
        }, target)


def is_float(weight: dict | None, activation: dict | None,
             overrides: Mapping[str, dict] | None) -> bool:
    """Whether the settings quantize nothing: weight and activation off."""
    return _is_off(weight) and _is_off(activation) and not overrides


def convert(model: nn.Module,
            weight: dict | None = DEFAULT_WEIGHT,
            activation: dict | None = DEFAULT_ACTIVATION,
            perturbation: dict | None = None,
            first_last_bits: int | None = 8,
            skip: Sequence[str] = (),
            overrides: Mapping[str, dict] | None = None,
            backend: str = 'torch_ao',
            attention: dict | None = None) -> LayerTable:
    """Quantize the model's layers in place.

    Layers of the registered types get a weight quantizer (per output
    channel, symmetric) and an input quantizer (per tensor, asymmetric), spec
    2. Parameters keep their names and identity. Nothing is traced: first and
    last are so in the order of ``model.named_modules()``.

    Args:
        model (nn.Module): The model, changed in place.
        weight (dict, optional): Config of the weights' fake quantizer; None
            or ``bits=32`` leaves them float. Defaults to LSQ, 4 bits.
        activation (dict, optional): The same for the layers' inputs.
            Defaults to LSQ, 4 bits.
        perturbation (dict, optional): Config of SFP. Defaults to None, off.
        first_last_bits (int, optional): Bits of the first and the last
            quantized layer; None treats them as the others. Defaults to 8.
        skip (Sequence[str]): Patterns of layers to leave out: names of
            layers or of modules that hold them, ``*`` allowed.
        overrides (Mapping[str, dict], optional): From pattern to a dict of
            ``weight``, ``activation`` and ``perturbation``, merged over the
            settings above and over ``first_last_bits``; later patterns win.
        backend (str): Whose quantizers and layers: 'torch_ao' or 'brevitas'.
            Defaults to 'torch_ao'.
        attention (dict, optional): Config of the fake quantizers of the
            operands of attention's products of activations, q k^T and
            attn v; ``skip`` holds for them too. Defaults to None, float.

    Returns:
        LayerTable: One row for each layer with a weight of two or more axes.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option, a value or a pattern is wrong, if the model
            is converted already, or if nothing is left to quantize.
        ImportError: If what the backend needs is not installed.

    Examples:
        >>> from torch import nn
        >>> from fpq_plugin import convert
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(),
        ...                       nn.Conv2d(8, 8, 3), nn.ReLU(),
        ...                       nn.Conv2d(8, 2, 3))
        >>> [(row.name, row.weight_bits) for row in convert(model)]
        [('0', 8), ('2', 4), ('4', 8)]
    """
    check_settings(weight, activation, perturbation, first_last_bits, skip,
                   overrides, backend, attention)
    overrides = overrides or {}
    target = get_backend(backend)
    if quantized_layers(model):
        raise ValueError('the model is quantized already')
    route(model)
    try:
        whys = _convert(model, dict(weight=weight, activation=activation,
                                    perturbation=perturbation),
                        first_last_bits, skip, overrides, target)
        products = _quantize_attention(model, attention, skip)
    except Exception:
        unroute(model)
        raise
    refuse_reparameterizing(model)
    return LayerTable(_table(model, whys) + products)


def _convert(model: nn.Module, base: dict[str, Any],
             first_last_bits: int | None, skip: Sequence[str],
             overrides: Mapping[str, dict], target: Backend) -> dict[str, str]:
    """Swap the layers; the reason for each one's bits."""
    layers, kinds = {}, {}
    for name, module in model.named_modules():
        kind = quantized_type(module, target)
        if kind is not None:
            layers[name], kinds[name] = module, kind
    if not layers:
        found = Counter(type(m).__name__ for m in model.modules())
        raise ValueError(
            'nothing to quantize: the model has no layer of the types '
            f'{", ".join(quantizable_types(target))}, but '
            f'{", ".join(f"{n} {t}" for t, n in found.most_common(5))}')
    refuse_unmatched('skip', skip, list(layers))
    refuse_unmatched('overrides', overrides, list(layers))

    plans = _plan(layers, base, first_last_bits, skip, overrides, target)
    if not any(plan['weight'] or plan['activation']
               for plan, _ in plans.values()):
        raise ValueError('nothing to quantize: skip and overrides leave out '
                         'every layer')
    # All quantizers are built before the first swap: an error changes nothing.
    built = {name: _build(name, layers[name], kinds[name], plan, target)
             for name, (plan, _) in plans.items()}
    clock = NoiseClock()
    for number, (name, parts) in enumerate(built.items()):
        if not any(parts[:2]):
            continue
        if parts[2] is not None:
            parts[2].place(clock, number)
        kinds[name].swap(layers[name], *parts)
    if any(parts[2] is not None for parts in built.values()):
        model.register_forward_pre_hook(clock.tick)
    return {name: why for name, (_, why) in plans.items()}


def _quantize_attention(model: nn.Module, attention: dict | None,
                        skip: Sequence[str]) -> list[LayerRow]:
    """Quantizers for the attention modules' products, and their rows."""
    cfg = resolve('attention', attention, DEFAULT_ACTIVATION['type'])
    if cfg is None:
        return []

    def products(name: str) -> AttentionProducts:
        return AttentionProducts(*(
            build(f'attention of {name}', cfg) for _ in range(4)))

    names = route_attention(
        model, lambda name: not any(matches(name, p) for p in skip), products)
    return [
        LayerRow(f'{name}.products', 'AttentionProducts', OFF_BITS,
                 cfg.get('bits', 8), (0, ), 'attention') for name in names
    ]


def to_float(model: nn.Module) -> nn.Module:
    """Undo :func:`convert` in place.

    The weights are then the latent ones that training moved, not what they
    were quantized to: the model answers otherwise than the quantized one.

    Args:
        model (nn.Module): A model with quantized layers.

    Returns:
        nn.Module: The same model.
    """
    clock = noise_clock(model)
    if clock is not None:
        for handle, hook in list(model._forward_pre_hooks.items()):
            if getattr(hook, '__self__', None) is clock:
                del model._forward_pre_hooks[handle]
    for layer in quantized_layers(model).values():
        layer.unswap()
    unroute(model)
    allow_reparameterizing(model)
    return model


def noise_clock(model: nn.Module) -> NoiseClock | None:
    """The clock of the model's perturbed layers, None if there are none."""
    for module in model.modules():
        if isinstance(module, StochasticFeaturePerturbation):
            return module.clock
    return None


def _check_parts(prefix: str, parts: Mapping[str, dict | None],
                 backend: Backend) -> None:
    for part, cfg in parts.items():
        registry = backend.registry(part)
        cfg = resolve(prefix + part, cfg, _default_type(part), registry,
                      _KINDS[part])
        if cfg is None:
            continue
        built = build(prefix + part, cfg, registry)
        if part == 'activation' and built.for_weights_only:
            raise ValueError(f'{prefix}{part}.type: {cfg["type"]} is for '
                             'weights; take another one for activations')


def _merge(base: dict | None, given: dict | None) -> dict | None:
    if given is None or not isinstance(given, dict):
        return given
    if base is None or given.get('type', base.get('type')) != base.get('type'):
        return dict(given)
    return {**base, **given}


def _plan(layers: Mapping[str, nn.Module], base: dict[str, Any],
          first_last_bits: int | None, skip: Sequence[str],
          overrides: Mapping[str, dict],
          backend: Backend) -> dict[str, tuple[dict, str]]:
    """For each layer its parts' configs and the reason."""
    nothing: dict[str, Any] = dict.fromkeys(_KINDS)

    def plan(name: str, bits: int | None, why: str) -> tuple[dict, str]:
        by = next((p for p in skip if matches(name, p)), None)
        if by is not None:
            return nothing, f'skip {by!r}'
        parts = dict(base)
        for part in ('weight', 'activation'):
            if bits is not None and not _is_off(parts[part]):
                parts[part] = {**parts[part], 'bits': bits}
        for pattern, override in overrides.items():
            if matches(name, pattern):
                why = f'override {pattern!r}'
                for part, given in override.items():
                    parts[part] = _merge(parts[part], given)
        parts = {
            part: resolve(part, cfg, _default_type(part),
                          backend.registry(part))
            for part, cfg in parts.items()
        }
        if not parts['weight'] and not parts['activation']:
            return nothing, f'{why}: off'
        return parts, why

    plans = {name: plan(name, None, 'default') for name in layers}
    quantized = [
        name for name, (parts, _) in plans.items()
        if parts['weight'] or parts['activation']
    ]
    if first_last_bits is not None:
        for name, why in zip(quantized[-1:] + quantized[:1],
                             ('last layer', 'first layer')):
            plans[name] = plan(name, first_last_bits, why)
    return plans


def _is_off(cfg: dict | None) -> bool:
    return cfg is None or cfg.get('bits') == OFF_BITS


def _default_type(part: str) -> str:
    return (DEFAULT_PERTURBATION
            if part == 'perturbation' else DEFAULT_WEIGHT)['type']


def _build(name: str, layer: nn.Module, kind: type[QuantizedLayer],
           plan: dict[str, Any], backend: Backend) -> tuple:
    def part(key: str, **defaults: Any) -> nn.Module | None:
        if plan[key] is None:
            return None
        return build(f'{key} of {name}', plan[key], backend.registry(key),
                     **defaults)

    axis = kind.weight_axis
    weight = part('weight', symmetric=True, per_channel=True, ch_axis=axis,
                  num_channels=layer.weight.shape[axis])
    activation = part('activation')
    if getattr(activation, 'is_per_channel', False):
        raise ValueError(f'activation of {name}: per_channel is for weights; '
                         'an activation has one step')
    perturbation = part('perturbation')
    if perturbation and not (weight if perturbation.of_weight else activation):
        perturbation = None
    return weight, activation, perturbation


def _table(model: nn.Module, whys: Mapping[str, str]) -> LayerTable:
    def bits(layer: nn.Module, quantizer: str) -> int:
        return getattr(
            getattr(layer, quantizer, None), 'num_bits', OFF_BITS)

    rows = LayerTable()
    for name, layer in model.named_modules():
        weight = getattr(layer, 'weight', None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        float_type = (layer.float_type
                      if isinstance(layer, QuantizedLayer) else type(layer))
        why = whys.get(name, f'type {float_type.__module__}.'
                       f'{float_type.__qualname__} not registered')
        rows.append(
            LayerRow(name, float_type.__name__,
                     bits(layer, 'weight_quantizer'),
                     bits(layer, 'input_quantizer'), tuple(weight.shape),
                     why))
    return rows


_METHOD = 'switch_to_deploy'


def refuse_reparameterizing(model: nn.Module) -> None:
    """Make fusing the branches of quantized blocks an error.

    The blocks' own method reads the branches' latent weights and makes a
    plain convolution of them, without a word of the quantizers.

    Args:
        model (nn.Module): A converted model.
    """
    for module in model.modules():
        if hasattr(type(module), _METHOD) and quantized_layers(module):
            vars(module).setdefault(_METHOD, _refuse)


def allow_reparameterizing(model: nn.Module) -> None:
    """Undo :func:`refuse_reparameterizing`."""
    for module in model.modules():
        if vars(module).get(_METHOD) is _refuse:
            del vars(module)[_METHOD]


def _refuse(*args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError(
        f'{_METHOD}: the branches are quantized, each with its own steps, and '
        'fusing them would drop that. Fuse the full-precision model and train '
        'that with FPQ, or take the quantizers off by fpq_plugin.to_float')
