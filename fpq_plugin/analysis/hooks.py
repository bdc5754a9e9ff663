"""Hooks that measure the model during training.

Quantities of arXiv 2503.11159: the trace of equation (7), and those of
Figs. 1 and 2.
"""

from __future__ import annotations

import json
import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..openmmlab.model_families import unwrap
from .batches import Batch, draw_batches, preprocessed
from .curvature import hessian_trace
from .features import layer_sqnr
from .measuring import Estimate, require_extras, weighted_layers
from .stability import noise_gradient_norm, output_variance


class MeasureHook(Hook):
    """Measures the model on fixed training images, every few epochs.

    Epoch 0 is the model as training starts. Values go to the log and the
    visualizer (TensorBoard and the like, with a ``_error`` beside each), and
    as JSON and a picture to the work directory. The training does not change
    by it: the model is in eval mode meanwhile, and modes, gradients and
    random generators are given back. The main process measures, the others
    wait for it. With EMA it is the trained model that is measured.

    A subclass gives the attributes and :meth:`measure`.

    Args:
        interval (int): Epochs between measurements. Defaults to 1.
        num_images (int): Training images, drawn once. Defaults to 256.
        layers (Sequence[str], optional): Name patterns of the layers that
            count. Defaults to None, all that can be quantized.
        seed (int): Seed of all draws. Defaults to 0.

    Attributes:
        title (str): Name of the files, and prefix of the values.
        quantity (str): What the values are, with the unit, in the picture.
        labels (dict[str, str]): The picture's word for each value, by the
            name that :meth:`measure` gives it.
        modules (tuple[str, ...]): Optional packages that it needs.

    Raises:
        ValueError: If a number is not a positive integer.
        ImportError: If an optional package is missing.
    """

    # After FPQHook has prepared the model, before checkpoints are written.
    priority = 'LOW'
    title: str
    quantity: str
    labels: dict[str, str]
    modules: tuple[str, ...] = ('matplotlib', )

    def __init__(self,
                 interval: int = 1,
                 num_images: int = 256,
                 layers: Sequence[str] | None = None,
                 seed: int = 0) -> None:
        self._check(interval=interval, num_images=num_images)
        require_extras(*self.modules)
        self.interval = interval
        self.num_images = num_images
        self.layers = layers
        self.seed = seed
        self._batches: Sequence[Batch] = []
        self._rows: list[dict] = []

    @abstractmethod
    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        """Values by name; the empty name stands for the title alone."""

    def before_train(self, runner: Runner) -> None:
        """Draw the images; measure, or take up a resumed run's record.

        Raises:
            ValueError: If a pattern matches no layer, or there are too few
                images.
        """
        if not is_main_process():
            return
        model = unwrap(runner.model)
        weighted_layers(model, self.layers, f'{type(self).__name__}.layers')
        self._batches = preprocessed(
            model,
            draw_batches(runner.train_dataloader, self.num_images, self.seed,
                         progress=False))
        record = self._path(runner, 'json')
        if runner.epoch == 0:
            self._measure(runner, 0)
        elif record.exists():
            self._rows = [
                row for row in json.loads(record.read_text())
                if row['epoch'] <= runner.epoch
            ]

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure, if it is time to."""
        if is_main_process() and self.every_n_epochs(runner, self.interval):
            self._measure(runner, runner.epoch + 1)

    def _measure(self, runner: Runner, epoch: int) -> None:
        from .pictures import draw_over_epochs

        runner.logger.info(f'{self.title}: measuring')
        start = time.time()
        model = unwrap(runner.model)
        found = {
            self._key(name): estimate
            for name, estimate in self.measure(model, self._batches).items()
        }
        self._rows.append(
            dict(epoch=epoch, **{k: asdict(e) for k, e in found.items()}))
        self._path(runner, 'json').write_text(json.dumps(self._rows) + '\n')
        draw_over_epochs(
            self._rows, self._path(runner, 'png'), self.quantity,
            {self._key(name): word for name, word in self.labels.items()})
        scalars = {k: e.value for k, e in found.items()}
        scalars.update((f'{k}_error', e.error) for k, e in found.items())
        runner.visualizer.add_scalars(scalars, step=epoch)
        runner.logger.info(
            f'{self.title}, epoch {epoch}, {time.time() - start:.1f} s: ' +
            ', '.join(f'{k}: {e}' for k, e in found.items()))

    def _key(self, name: str) -> str:
        return f'{self.title}_{name}' if name else self.title

    def _path(self, runner: Runner, ending: str) -> Path:
        return Path(runner.work_dir) / f'{self.title}.{ending}'

    @classmethod
    def _check(cls, **numbers: int) -> None:
        for name, number in numbers.items():
            if (isinstance(number, bool) or not isinstance(number, int)
                    or number < 1):
                raise ValueError(f'{cls.__name__}.{name}: must be a positive '
                                 f'integer, got {number!r}')


@HOOKS.register_module()
class HessianTraceHook(MeasureHook):
    """Logs ``hessian_trace``, the trace that FPQ keeps low (equation (7)).

    It is that of the task loss alone, in the latent weights.

    Args:
        probes (int): Probes of an estimate. Defaults to 16.
        **common: Those of :class:`MeasureHook`.
    """

    title = 'hessian_trace'
    quantity = "trace of the task loss's Hessian"
    labels = {'': 'all layers'}
    modules = ('curvlinops', 'matplotlib')

    def __init__(self, probes: int = 16, **common: Any) -> None:
        super().__init__(**common)
        self._check(probes=probes)
        self.probes = probes

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        found = hessian_trace(
            model, batches, self.probes, layers=self.layers, seed=self.seed)
        return {'': found.total}


@HOOKS.register_module()
class NoiseGradientHook(MeasureHook):
    """Logs ``noise_gradient_clean``, ``_feature`` and ``_weight``.

    Norms of the task loss's gradient in the latent weights, without noise
    and with noise of one step in every layer's input, or weight.

    Args:
        draws (int): Draws of the noise. Defaults to 4.
        **common: Those of :class:`MeasureHook`.
    """

    title = 'noise_gradient'
    quantity = "norm of the loss's gradient"
    labels = dict(clean='no noise', feature='noise in the features',
                  weight='noise in the weights')

    def __init__(self, draws: int = 4, **common: Any) -> None:
        super().__init__(**common)
        self._check(draws=draws)
        self.draws = draws

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        found = noise_gradient_norm(
            model, batches, self.draws, layers=self.layers, seed=self.seed)
        return dict(
            clean=Estimate(found.clean, 0.0),
            feature=found.feature,
            weight=found.weight)


@HOOKS.register_module()
class OutputVarianceHook(MeasureHook):
    """Logs ``output_variance`` under Gaussian input noise.

    Args:
        sigma (float): Standard deviation of the noise, in units of the
            preprocessed input. Defaults to 0.1.
        draws (int): Draws for each image, at least 2. Defaults to 4.
        interval (int): Epochs between measurements. Defaults to 1.
        num_images (int): Training images, drawn once. Defaults to 256.
        seed (int): Seed of all draws. Defaults to 0.
    """

    title = 'output_variance'
    quantity = 'variance of the output'
    labels = {'': 'under noise on the input'}

    def __init__(self,
                 sigma: float = 0.1,
                 draws: int = 4,
                 interval: int = 1,
                 num_images: int = 256,
                 seed: int = 0) -> None:
        super().__init__(interval, num_images, seed=seed)
        self._check(draws=draws)
        if draws < 2:
            raise ValueError('OutputVarianceHook.draws: a variance needs 2 or '
                             f'more, got {draws}')
        if isinstance(sigma, bool) or not (
                isinstance(sigma, (int, float)) and 0 < sigma < math.inf):
            raise ValueError('OutputVarianceHook.sigma: must be a positive '
                             f'number, got {sigma!r}')
        self.sigma = sigma
        self.draws = draws

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        found = output_variance(
            model, batches, [self.sigma], self.draws, seed=self.seed)
        return {'': found.variances[0]}


@HOOKS.register_module()
class SQNRHook(MeasureHook):
    """Logs ``sqnr_weight``, ``_input`` and ``_output``, in dB.

    Means over the quantized layers, but parts that are float or without any
    error; the error is over layers. Takes the arguments of
    :class:`MeasureHook`.
    """

    title = 'sqnr'
    quantity = 'signal to quantization noise, dB'
    labels = dict(weight='weights', input='inputs', output='outputs')

    def measure(self, model: nn.Module,
                batches: Sequence[Batch]) -> dict[str, Estimate]:
        chosen = weighted_layers(model, self.layers)
        found = [
            value for name, value in layer_sqnr(model, batches).items()
            if name in chosen
        ]
        if not found:
            raise ValueError('SQNRHook: no layer is quantized; it needs an '
                             'FPQHook in default_hooks')
        means = {}
        for part in ('weight', 'input', 'output'):
            values = [getattr(value, part) for value in found]
            values = [v for v in values if v is not None and math.isfinite(v)]
            if values:
                means[part] = Estimate.from_samples(torch.tensor(values))
        return means
