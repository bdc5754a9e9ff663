"""The option ``let``: overrides of a Brevitas quantizer, checked."""

from __future__ import annotations

import inspect
from typing import Any

from brevitas.core.quant import RescalingIntQuant
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantLinear
from brevitas.proxy import WeightQuantProxyFromInjector

from fpq_plugin._compat.restoring import same_randomness
from fpq_plugin.options import refuse_unknown


def refuse_let(injector: type[ExtendedInjector], let: dict[str, Any]) -> None:
    """Refuse overrides that Brevitas would ignore or stumble over.

    Args:
        injector (type): The Brevitas quantizer.
        let (dict): The overrides.

    Raises:
        ValueError: Naming the override.
    """
    if 'bit_width' in let:
        raise ValueError("let: the bit width is the option 'bits'")
    of_weight = injector.proxy_class is WeightQuantProxyFromInjector
    part = 'weight_quant' if of_weight else 'input_quant'
    try:
        with same_randomness():
            layer = QuantLinear(1, 1, **{
                'weight_quant': None, part: injector.let(**let)})
    except Exception as error:  # Brevitas has no error of its own for these
        raise ValueError(f'let={let!r}: Brevitas refuses it: {error}'
                         ) from error
    proxy = getattr(layer, part)
    built = (proxy.tensor_quant if of_weight else
             proxy.fused_activation_quant_proxy.tensor_quant)
    if not isinstance(built, RescalingIntQuant):
        raise ValueError(f'let={let!r}: FPQ takes quantizers to integers, and '
                         f'this makes {type(built).__name__}')
    known = {
        name
        for module in built.modules()
        for name in inspect.signature(type(module).__init__).parameters
    }
    known.update(name for name in let if name in injector)
    refuse_unknown('let', let, sorted(known - {'self', 'args', 'kwargs'}))
