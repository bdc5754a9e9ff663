"""All measurements of a set of models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .batches import MMBatch, preprocessed
from .curvature import hessian_trace, spectral_density, top_eigenvalues
from .features import channel_ranges, feature_histograms, layer_sqnr
from .landscape import loss_slice, mean_loss
from .measuring import weighted_layers
from .stability import noise_gradient_norm, output_variance
from .trained_models import TrainedModel, last_checkpoints, naive_quantization

STEPS_1D = tuple(i / 20 for i in range(-10, 11))
STEPS_2D = tuple(i / 10 for i in range(-5, 6))
NAIVE = 'naive quantization'


@dataclass(frozen=True)
class StudySettings:
    """How much is measured.

    Attributes:
        probes (int): Probes of a trace estimate.
        layer (str, optional): Layer of Figs. 3 and 4; None: the middle one.
        seed (int): Seed of everything drawn.
    """

    probes: int = 16
    layer: str | None = None
    seed: int = 0


def study_layer(subjects: Sequence[TrainedModel], layer: str | None) -> str:
    """The layer of Figs. 3 and 4, in all models.

    Raises:
        ValueError: If a model has no such layer; the message has the nearest
            names.
    """
    for subject in subjects:
        names = list(
            weighted_layers(subject.model, layer and [layer], '--layer'))
        if layer is None:
            layer = names[len(names) // 2]
    return names[0]


def run_study(subjects: Sequence[TrainedModel],
              raw_batches: Sequence[Any],
              settings: StudySettings,
              say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure the models.

    Trace, noise gradient and loss are taken of every one; the rest of the
    last checkpoint of each family.

    Args:
        subjects (Sequence[TrainedModel]): The models.
        raw_batches (Sequence[Any]): Batches as data loaders return them.
        settings (StudySettings): How much.
        say (Callable): Told what is going on. Defaults to ``print``.

    Returns:
        dict: Plain numbers, lists and strings, as they go into JSON.
    """
    layer = study_layer(subjects, settings.layer)
    last = last_checkpoints(list(subjects))
    models = {}
    for number, subject in enumerate(subjects, 1):
        say(f'\n[{number}/{len(subjects)}] {subject.label}')
        models[subject.label] = _measure(
            subject, preprocessed(subject.model, raw_batches), settings,
            whole=subject in last)
    say(f'\nfeatures of {layer}')
    return _plain(dict(
        layer=layer,
        images=sum(
            len(b) for b in preprocessed(subjects[0].model, raw_batches)),
        probes=settings.probes,
        seed=settings.seed,
        models=models,
        features=_features(last, raw_batches, layer)))


def _measure(subject: TrainedModel, batches: list[MMBatch],
             settings: StudySettings, whole: bool) -> dict[str, Any]:
    model, seed = subject.model, settings.seed
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable, *args: Any, **more: Any) -> Any:
        start = time.perf_counter()
        value = function(model, batches, *args, seed=seed, progress=True,
                         **more)
        seconds[name] = round(time.perf_counter() - start, 2)
        return value

    trace = timed('trace', hessian_trace, settings.probes)
    result: dict[str, Any] = dict(
        run=subject.run,
        epoch=subject.epoch,
        files=subject.files,
        quantized=subject.is_quantized(),
        loss=mean_loss(model, batches),
        trace=dict(asdict(trace.total), data_error=trace.data_error),
        noise_gradient=asdict(timed('noise gradient', noise_gradient_norm)),
        seconds=seconds)
    if not whole:
        return result
    top = timed('eigenvalues', top_eigenvalues)
    lowest = timed('lowest eigenvalue', top_eigenvalues, k=1, smallest=True)
    density = timed('density', spectral_density,
                    (lowest[0].value, top[0].value))
    result.update(
        eigenvalues=[asdict(value) for value in top],
        lowest_eigenvalue=asdict(lowest[0]),
        density=asdict(density),
        output_variance=asdict(timed('output variance', output_variance)),
        slice_1d=dict(
            steps=STEPS_1D,
            loss=timed('1-D slice', loss_slice, STEPS_1D)),
        slice_2d=dict(
            steps=STEPS_2D,
            loss=timed('2-D slice', loss_slice, STEPS_2D, axes=2)),
        layers=_layer_rows(subject, batches, trace.layers))
    return result


def _layer_rows(subject: TrainedModel, batches: list[MMBatch],
                traces: dict[str, Any]) -> list[dict[str, Any]]:
    errors = layer_sqnr(subject.model, batches)
    rows = []
    for name, layer in weighted_layers(subject.model).items():
        row: dict[str, Any] = dict(name=name, trace=asdict(traces[name]))
        for part in ('weight', 'input'):
            quantizer = getattr(layer, f'{part}_quantizer', None)
            row[f'{part}_bits'] = getattr(quantizer, 'num_bits', 32)
        row['sqnr'] = asdict(errors[name]) if name in errors else None
        rows.append(row)
    return rows


def _features(last: list[TrainedModel], raw_batches: Sequence[Any],
              layer: str) -> dict[str, Any]:
    """Figs. 3 and 4: each family's last model, and a naive one."""
    models = {subject.run: subject.model for subject in last}
    full = next((s for s in last if not s.is_quantized()), None)
    quantized = next((s for s in last if s.is_quantized()), None)
    if full is not None and quantized is not None:
        models[NAIVE] = naive_quantization(
            full.model, quantized.config,
            preprocessed(full.model, raw_batches))
    batches = {
        label: preprocessed(model, raw_batches)
        for label, model in models.items()
    }
    histograms = feature_histograms(models, batches, layer)
    return dict(
        channels={
            label: asdict(channel_ranges(model, batches[label], layer))
            for label, model in models.items()
        },
        histograms=asdict(histograms))


def _plain(value: Any) -> Any:
    """Lists of numbers of six digits, all the way down."""
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f'{value:.6g}')
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
