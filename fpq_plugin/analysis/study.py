"""All measurements of a set of models, as they go into ``analysis.json``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .batches import Batch, MMBatch, preprocessed
from .curvature import hessian_trace, spectral_density, top_eigenvalues
from .features import channel_ranges, feature_histograms, layer_sqnr
from .landscape import loss_slice, mean_loss
from .measuring import Estimate, weighted_layers
from .stability import noise_gradient_norm, output_variance
from .tradeoff import bits_of, latencies, top1_accuracy, weight_kilobytes
from .trained_models import (
    TrainedModel,
    last_checkpoints,
    naive_quantization,
)

STEPS_1D = tuple(i / 20 for i in range(-10, 11))
STEPS_2D = tuple(i / 10 for i in range(-5, 6))


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


def study_layer(models: Sequence[TrainedModel], layer: str | None) -> str:
    """The layer of Figs. 3 and 4, in all models.

    Args:
        models (Sequence[TrainedModel]): The models.
        layer (str, optional): A name pattern; None: the middle layer of the
            first model.

    Returns:
        str: The layer's name.

    Raises:
        ValueError: If a model has no such layer; the message has the nearest
            names.
    """
    names: list[str] = []
    for trained in models:
        names = list(
            weighted_layers(trained.model, layer and [layer], '--layer'))
        if layer is None:
            names = [names[len(names) // 2]]
        layer = names[0]
    return names[0]


def run_study(models: Sequence[TrainedModel],
              raw_batches: Sequence[Any],
              settings: StudySettings,
              accuracy_batches: Sequence[Any] = (),
              say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure the models.

    Accuracy, size, latency, trace, noise gradient and loss are taken of every
    one; the rest of the last checkpoint of each run. Beside a float and a
    quantized model there is a third, the former quantized as the latter and
    not trained.

    Args:
        models (Sequence[TrainedModel]): The models.
        raw_batches (Sequence[Any]): Batches as data loaders return them.
        settings (StudySettings): How much.
        accuracy_batches (Sequence[Any]): The same, to count right answers
            in. Defaults to none, the accuracy being None.
        say (Callable): Told what is going on. Defaults to ``print``.

    Returns:
        dict: Plain numbers, lists and strings, as they go into JSON.

    Raises:
        ValueError: If a model has no layer ``settings.layer``.
    """
    layer = study_layer(models, settings.layer)
    last = last_checkpoints(models)
    results = {}
    for number, trained in enumerate(models, 1):
        say(f'[{number}/{len(models)}] {trained.label}')
        batches = preprocessed(trained.model, raw_batches)
        result, traces = _measure(trained, batches, settings)
        if trained in last:
            result.update(_measure_fully(trained.model, batches, settings,
                                         result['seconds']))
            result['layers'] = layer_rows(trained.model, batches, traces)
        results[trained.label] = result
    untrained = _quantize_untrained(last, raw_batches)
    say(f'features of {layer}')
    features = _features(
        {trained.run: trained.model for trained in last} | untrained,
        raw_batches, layer)
    say('accuracy, size, latency')
    everyone = {trained.label: trained.model for trained in models}
    tradeoff = _tradeoff(everyone | untrained, raw_batches, accuracy_batches)
    for label, result in results.items():
        result.update(tradeoff.pop(label))
    return _plain(dict(
        layer=layer,
        images=sum(len(b) for b in preprocessed(models[0].model,
                                                raw_batches)),
        probes=settings.probes,
        seed=settings.seed,
        models=results,
        untrained=tradeoff,
        features=features))


def layer_rows(model: nn.Module, batches: Sequence[Batch],
               traces: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    """A dict for each layer: its name, size, bits, trace and SQNR.

    Args:
        model (nn.Module): The model, converted or not; its state stays.
        batches (Sequence[Batch]): The data.
        traces (Mapping[str, Estimate]): Those of :func:`hessian_trace`.

    Returns:
        list[dict[str, Any]]: In the model's order; ``sqnr`` is None for a
        float layer, and for one that the model does not call.
    """
    errors = layer_sqnr(model, batches)
    return [
        dict(
            name=name,
            weights=layer.weight.numel(),
            trace=asdict(traces[name]),
            weight_bits=bits_of(layer, 'weight'),
            input_bits=bits_of(layer, 'input'),
            sqnr=asdict(errors[name]) if name in errors else None)
        for name, layer in weighted_layers(model).items()
    ]


def bits_label(model: nn.Module) -> str:
    """What most of the model's layers have, such as 'W4A4'."""
    bits = Counter(
        (bits_of(layer, 'weight'), bits_of(layer, 'input'))
        for layer in weighted_layers(model).values())
    weight, activation = bits.most_common(1)[0][0]
    return f'W{weight}A{activation}'


def _timed(seconds: dict[str, float], name: str, function: Callable,
           *args: Any, **more: Any) -> Any:
    start = time.perf_counter()
    value = function(*args, progress=True, **more)
    seconds[name] = round(time.perf_counter() - start, 2)
    return value


def _measure(trained: TrainedModel, batches: list[MMBatch],
             settings: StudySettings) -> tuple[dict[str, Any], Mapping]:
    """What is measured of every model; the traces of its layers."""
    model, seed = trained.model, settings.seed
    seconds: dict[str, float] = {}
    trace = _timed(seconds, 'trace', hessian_trace, model, batches,
                   settings.probes, seed=seed)
    gradient = _timed(seconds, 'noise gradient', noise_gradient_norm, model,
                      batches, seed=seed)
    return dict(
        run=trained.run,
        epoch=trained.epoch,
        files=trained.files,
        quantized=trained.is_quantized(),
        loss=mean_loss(model, batches),
        trace=dict(asdict(trace.total), data_error=trace.data_error),
        noise_gradient=asdict(gradient),
        seconds=seconds), trace.layers


def _measure_fully(model: nn.Module, batches: list[MMBatch],
                   settings: StudySettings,
                   seconds: dict[str, float]) -> dict[str, Any]:

    def measure(name: str, function: Callable, *args: Any,
                **more: Any) -> Any:
        return _timed(seconds, name, function, model, batches, *args,
                      seed=settings.seed, **more)

    top = measure('eigenvalues', top_eigenvalues)
    [lowest] = measure('lowest eigenvalue', top_eigenvalues, k=1,
                       smallest=True)
    density = measure('density', spectral_density,
                      (lowest.value, top[0].value))
    variance = measure('output variance', output_variance)
    line = measure('1-D slice', loss_slice, STEPS_1D)
    plane = measure('2-D slice', loss_slice, STEPS_2D, axes=2)
    return dict(
        eigenvalues=[asdict(value) for value in top],
        lowest_eigenvalue=asdict(lowest),
        density=asdict(density),
        output_variance=asdict(variance),
        slice_1d=dict(steps=STEPS_1D, loss=line),
        slice_2d=dict(steps=STEPS_2D, loss=plane))


def _quantize_untrained(last: Sequence[TrainedModel],
                        raw_batches: Sequence[Any]) -> dict[str, nn.Module]:
    """The first float model, quantized as the first quantized one."""
    full = next((t for t in last if not t.is_quantized()), None)
    quantized = next((t for t in last if t.is_quantized()), None)
    if full is None or quantized is None:
        return {}
    model = naive_quantization(full.model, quantized.config,
                               preprocessed(full.model, raw_batches))
    return {f'{bits_label(model)} without training (of {full.run})': model}


def _features(models: dict[str, nn.Module], raw_batches: Sequence[Any],
              layer: str) -> dict[str, Any]:
    """Figs. 3 and 4."""
    batches = {
        label: preprocessed(model, raw_batches)
        for label, model in models.items()
    }
    ranges = {
        label: asdict(channel_ranges(model, batches[label], layer))
        for label, model in models.items()
    }
    histograms = feature_histograms(models, batches, layer)
    return dict(channels=ranges, histograms=asdict(histograms))


def _tradeoff(models: dict[str, nn.Module], raw_batches: Sequence[Any],
              accuracy_batches: Sequence[Any]) -> dict[str, dict]:
    milliseconds = latencies(models, {
        label: MMBatch(model, raw_batches[0])
        for label, model in models.items()
    })
    found = {}
    for label, model in models.items():
        # One at a time: they are many.
        batches = (MMBatch(model, raw) for raw in accuracy_batches)
        accuracy = top1_accuracy(
            model, batches, len(accuracy_batches),
            progress=bool(accuracy_batches))
        found[label] = dict(
            accuracy=accuracy and asdict(accuracy),
            kilobytes=weight_kilobytes(model),
            latency_ms=milliseconds[label])
    return found


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
