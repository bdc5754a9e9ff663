"""What Brevitas's quantizers collect of the tensors that they see."""

from __future__ import annotations

from brevitas.core.stats import _RuntimeStats
from brevitas.graph.calibrate import (
    extend_collect_stats_steps,
    set_collect_stats_to_average,
)
from torch import Tensor, nn

from fpq_plugin.quantizers import lasting


def collected(tensor_quant: nn.Module) -> dict[str, Tensor]:
    """Tensors that collecting changes, by name."""
    return {
        f'{name}.{key}': getattr(module, key)
        for name, module in tensor_quant.named_modules()
        if _collects(module) or isinstance(module, _RuntimeStats)
        for key in ('value', 'buffer', 'running_stats')
        if hasattr(module, key)
    }


def running_stats(tensor_quant: nn.Module) -> dict[str, nn.Module]:
    """Modules with statistics that training goes on to collect, by name."""
    return {
        name.replace('.', '_'): module
        for name, module in tensor_quant.named_modules()
        if isinstance(module, _RuntimeStats)
    }


def restart(tensor_quant: nn.Module, fresh: dict[str, Tensor]) -> None:
    """Statistics as Brevitas built them, a true average over all tensors.

    Args:
        tensor_quant (nn.Module): Brevitas's module.
        fresh (dict[str, Tensor]): What :func:`collected` was at first.
    """
    for name, value in collected(tensor_quant).items():
        value.copy_(fresh[name])
    for module in tensor_quant.modules():
        if hasattr(module, 'collect_stats_steps') or isinstance(
                module, _RuntimeStats):
            module.counter = 0
        if hasattr(module, 'init_done'):
            module.init_done = False
        if hasattr(module, 'internal_candidate'):
            module.internal_candidate = None
    tensor_quant.apply(extend_collect_stats_steps)
    tensor_quant.apply(set_collect_stats_to_average)


def _collects(module: nn.Module) -> bool:
    return hasattr(module, 'collect_stats_steps') or hasattr(
        module, 'init_done')


@lasting
def outlive_inference_mode(module: nn.Module) -> None:
    """Make normal tensors of those that Brevitas made in inference mode."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_inference():
                part._parameters[name] = nn.Parameter(value.clone())
        for name, value in part._buffers.items():
            if value is not None and value.is_inference():
                part._buffers[name] = value.clone()


@lasting
def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, detached, by name."""
    return {name: value.detach().clone() for name, value in tensors.items()}
