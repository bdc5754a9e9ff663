"""Brevitas's own quantizers, as FPQ knows a quantizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from brevitas.core.function_wrapper import RoundSte
from brevitas.core.quant import RescalingIntQuant
from brevitas.core.stats import _RuntimeStats
from brevitas.graph.calibrate import (
    extend_collect_stats_steps,
    finalize_collect_stats,
    set_collect_stats_to_average,
)
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantLinear
from brevitas.proxy import WeightQuantProxyFromInjector
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from fpq_plugin._compat.restoring import same_randomness
from fpq_plugin.options import refuse_unknown
from fpq_plugin.quantizers import (
    Grid,
    Quantizer,
    Stage,
    lasting,
    weight_to_come,
)


class StockQuantizer(Quantizer):
    """A tensor quantizer that Brevitas built from one of its injectors.

    Its learned scales and zero points are this module's own parameters, and
    running statistics its own buffers, so that a state dict has all of them
    from construction on, whoever walks the modules (mmengine does not call
    the ``state_dict`` of Brevitas's modules, which drop statistics that were
    not collected yet). Collecting is Brevitas's, as in
    ``brevitas.graph.calibrate.calibration_mode``. In distributed training
    running statistics are the mean of all processes'.

    A subclass per injector is made by :func:`register_injector`.

    Args:
        bits (int): Bits, 2 to 8. Defaults to 8.
        let (dict, optional): Attributes of the injector to override, what
            Brevitas's layers take as ``weight_*`` or ``input_*`` keywords.
            Defaults to None.

    Attributes:
        injector (type): The Brevitas quantizer.

    Raises:
        TypeError: If ``let`` is not a dict.
        ValueError: If ``bits`` is not an integer of 2 to 8, or ``let`` names
            an attribute or a value that Brevitas does not know.
    """

    injector: type[ExtendedInjector]

    def __init__(self, bits: int = 8, let: dict | None = None) -> None:
        super().__init__(bits)
        if let is not None and not isinstance(let, dict):
            raise TypeError(f'let must be a dict or None, got {let!r}')
        self.let = let or {}
        if let:
            refuse_let(self.injector, let)
        self._inner: list[RescalingIntQuant] = []
        self._observed = False
        self._finite = True
        self._any = False

    @classmethod
    def around(cls, tensor_quant: nn.Module, owner: nn.Module,
               of_weight: bool) -> StockQuantizer:
        """The quantizer of what Brevitas built, its scale as collected.

        Raises:
            ValueError: If it is no quantizer to integers of 2 to 8 bits.
        """
        if not isinstance(tensor_quant, RescalingIntQuant):
            raise ValueError('FPQ takes quantizers to integers, and this is '
                             f'{type(tensor_quant).__name__}')
        quantizer = cls(int(tensor_quant.msb_clamp_bit_width_impl()))
        quantizer.bind(tensor_quant, owner, of_weight)
        if all(getattr(module, 'counter', 1) > 0
               and getattr(module, 'init_done', True)
               for module in tensor_quant.modules()):
            tensor_quant.apply(finalize_collect_stats)
            quantizer._become(Stage.READY)
        return quantizer

    def bind(self, tensor_quant: RescalingIntQuant, layer: nn.Module,
             of_weight: bool) -> None:
        """Take what Brevitas built for ``layer`` from the injector."""
        # Lists keep them from being submodules.
        self._inner = [tensor_quant]
        self._weight_of = [layer] if of_weight else []
        self._searching = [
            getattr(proxy, 'fused_activation_quant_proxy', proxy)
            for proxy in {
                module.proxy_forward.__self__
                for module in tensor_quant.modules()
                if hasattr(module, 'proxy_forward')
            }
        ]
        outlive_inference_mode(tensor_quant)
        self._fresh = copies(collected(tensor_quant))
        for name, parameter in tensor_quant.named_parameters():
            self.register_parameter(name.replace('.', '_'), parameter)
        self._running = running_stats(tensor_quant)
        for name, stats in self._running.items():
            known = stats.running_stats
            self.register_buffer(f'{name}_running_stats', known)
            self.register_buffer(f'{name}_counter', torch.tensor(
                stats.counter, device=known.device))

    @property
    def tensor_quant(self) -> RescalingIntQuant:
        """Brevitas's own module."""
        return self._inner[0]

    @contextmanager
    def _in_its_proxy(self) -> Iterator[None]:
        """Inside, Brevitas's proxy has Brevitas's quantizer, not FPQ's.

        A search for the least error runs the proxy, and switches it.
        """
        ours = [proxy.tensor_quant for proxy in self._searching]
        for proxy in self._searching:
            proxy.tensor_quant = self.tensor_quant
        try:
            yield
        finally:
            for proxy, quantizer in zip(self._searching, ours):
                proxy.tensor_quant = quantizer

    def _run(self, x: Tensor) -> tuple[Tensor, ...]:
        with self._in_its_proxy():
            return self.tensor_quant(x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        self._set_mode(self.training)
        out = (self._run(x)[0].to(x.dtype) if x.numel() else
               self._passed_on(x))
        if self.training and self._running:
            self._keep_running(self.over_batch and get_world_size() > 1)
        return out

    @lasting
    def _keep_running(self, share: bool = False) -> None:
        """Count running statistics, and make them those of all processes."""
        for name, stats in self._running.items():
            if share:
                all_reduce(stats.running_stats)
                stats.running_stats.div_(get_world_size())
            getattr(self, f'{name}_counter').fill_(stats.counter)

    def step(self) -> Tensor:
        return self.metadata()[0].flatten()

    @torch.no_grad()
    def metadata(self) -> tuple[Tensor, Tensor, Tensor]:
        """Step, zero point and bit width as Brevitas shapes them."""
        x = (self._weight_of[0].weight if self._weight_of else
             self.initialized.new_zeros(1, dtype=torch.float32))
        self._set_mode(False)
        return self._run(x)[1:]

    def grid(self) -> Grid:
        rounding = self.tensor_quant.int_quant.float_to_int_impl
        if not isinstance(rounding, RoundSte):
            raise NotImplementedError(
                f'{type(rounding).__name__} does not round to the nearest')
        step, zero_point, bits = self.metadata()
        int_quant = self.tensor_quant.int_quant
        axes = [i for i, length in enumerate(step.shape) if length > 1]
        return Grid(step.flatten(),
                    zero_point.expand(step.shape).flatten(),
                    int(int_quant.min_int(bits)), int(int_quant.max_int(bits)),
                    axes[0] if axes else None)

    @lasting
    def observe(self, x: Tensor) -> None:
        """Let Brevitas collect its statistics of ``x``."""
        if x.numel() == 0:
            return
        if not self._observed:
            restart(self.tensor_quant, self._fresh)
        self._observed = True
        self._finite = self._finite and bool(torch.isfinite(x).all())
        self._any = self._any or bool(x.any())
        self._set_mode(True)
        self.tensor_quant.observer_only = True
        self._run(x)
        self.tensor_quant.observer_only = False

    def observe_weight(self, weight: Tensor) -> None:
        layer, = self._weight_of
        self.observe(weight_to_come(weight, layer.output_channel_dim))

    def was_observed(self) -> bool:
        return self._observed

    def reset_observer(self) -> None:
        self._observed, self._finite, self._any = False, True, False

    @lasting
    def initialize(self) -> None:
        """Make the collected statistics the scale and the zero point.

        Raises:
            ValueError: If nothing, or something non-finite, was observed.
        """
        if not self._observed:
            raise ValueError('nothing was observed')
        if not self._finite:
            raise ValueError('what was observed is not finite')
        if self._any:
            self.tensor_quant.apply(finalize_collect_stats)
            self._keep_running()
        self._become(Stage.READY if self._any else Stage.WAITING)
        self.reset_observer()

    @lasting
    def share_observed(self) -> None:
        """Make the statistics the mean of those processes' that have some."""
        ranks = torch.tensor([self._observed, self._finite, self._any],
                             device=self.initialized.device).float()
        all_reduce(ranks)
        for value in collected(self.tensor_quant).values():
            value.mul_(self._any)
            all_reduce(value)
            value.div_(ranks[2].clamp_min(1))
        self._observed, self._any = bool(ranks[0] > 0), bool(ranks[2] > 0)
        self._finite = bool(ranks[1] == get_world_size())

    def read_stage(self) -> None:
        super().read_stage()
        if self.stage is Stage.READY:
            # Loaded or sent: Brevitas must not collect again.
            for module in self.tensor_quant.modules():
                if hasattr(module, 'collect_stats_steps'):
                    module.counter = module.collect_stats_steps + 1
                if hasattr(module, 'init_done'):
                    module.init_done = True
            for name, stats in self._running.items():
                stats.counter = int(getattr(self, f'{name}_counter'))

    def extra_repr(self) -> str:
        return f'bits={self.num_bits}'

    def _set_mode(self, training: bool) -> None:
        if self.tensor_quant.training != training:
            self.tensor_quant.train(training)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._inner:
            self.tensor_quant._apply(fn, recurse)
            for name, stats in self._running.items():
                self._buffers[f'{name}_running_stats'] = stats.running_stats
        return self


# -- the option ``let``: overrides, checked -------------------------------

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


# -- what the quantizers collect of the tensors that they see -------------

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
