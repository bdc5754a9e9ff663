"""The models of an analysis: trained ones, and one quantized without."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmengine import Config
from torch import nn

from .._compat.files import load_file
from ..calibrate import calibrate
from ..layers import quantized_layers
from ..openmmlab.checkpoints import load_model
from ..openmmlab.config_checks import recipe_of
from ..openmmlab.model_families import convert_mm_model
from .batches import Batch
from .measuring import left_unchanged


@dataclass(eq=False)
class TrainedModel:
    """A model with its origin.

    Attributes:
        run (str): The config's name, or its path if others have the same
            name; the checkpoints of one config are one run's.
        epoch (int, optional): Epoch of the checkpoint, if it says so.
        config (Config): The config.
        files (tuple[str, str]): Paths of config and checkpoint as given.
        model (nn.Module): The model in eval mode.
        label (str): Name in pictures and tables, unique in an analysis.
    """

    run: str
    epoch: int | None
    config: Config
    files: tuple[str, str]
    model: nn.Module
    label: str

    def is_quantized(self) -> bool:
        """Whether the model has quantized layers."""
        return bool(quantized_layers(self.model))


def load_trained_models(pairs: Sequence[tuple[str, str]],
                        device: str = 'cpu') -> list[TrainedModel]:
    """Load the models of (config, checkpoint) pairs.

    Args:
        pairs (Sequence[tuple[str, str]]): Paths; a checkpoint may be a URL.
        device (str): Where the models go. Defaults to 'cpu'.

    Returns:
        list[TrainedModel]: In the order of the pairs.

    Raises:
        ValueError: If a file is missing, a pair is given twice, or a
            checkpoint does not fit its config; the message names both.
    """
    runs = _run_names(config for config, _ in pairs)
    models = [_load(*pair, runs[pair[0]], device) for pair in pairs]
    labels = [model.label for model in models]
    for model in models:
        if labels.count(model.label) > 1:
            stem = osp.splitext(osp.basename(model.files[1]))[0]
            model.label = f'{model.run} {stem}'
    labels = [model.label for model in models]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f'{twice[0]!r} is given twice; give the config, or '
                         'the checkpoint, another file name')
    return models


def last_checkpoints(models: Iterable[TrainedModel]) -> list[TrainedModel]:
    """The last checkpoint of each run, in the order of the runs."""
    last: dict[str, TrainedModel] = {}
    for model in models:
        known = last.get(model.run)
        if known is None or (model.epoch or 0) >= (known.epoch or 0):
            last[model.run] = model
    return list(last.values())


def naive_quantization(full: nn.Module, config: Config,
                       batches: Sequence[Batch]) -> nn.Module:
    """Quantize a copy of ``full`` as a config says, calibrated only.

    Args:
        full (nn.Module): A float model; it stays as it is.
        config (Config): A config with an FPQHook.
        batches (Sequence[Batch]): The calibration data.

    Returns:
        nn.Module: A new model in eval mode.
    """
    model = copy.deepcopy(full)
    recipe = recipe_of(config)
    if recipe is None:
        raise ValueError(f'the config {config.filename!r} has no FPQHook')
    convert_mm_model(model, recipe)
    with left_unchanged(model, 0):
        calibrate(model, batches, forward=lambda m, batch: batch.output(m))
    return model


def _run_names(configs: Iterable[str]) -> dict[str, str]:
    """A name for each config file, by its path as given."""
    stems = {config: osp.splitext(config)[0] for config in configs}
    files = {osp.realpath(config): config for config in stems}
    names = [osp.basename(stems[config]) for config in files.values()]
    return {
        config: name if names.count(name) == 1 else
        osp.splitext(files[osp.realpath(config)])[0]
        for config, name in (
            (c, osp.basename(stem)) for c, stem in stems.items())
    }


def _load(config: str, checkpoint: str, run: str,
          device: str) -> TrainedModel:
    if not osp.isfile(config):
        raise ValueError(f'no config {config!r}')
    if '://' not in checkpoint and not osp.isfile(checkpoint):
        raise ValueError(f'no checkpoint {checkpoint!r}')
    cfg = Config.fromfile(config)
    try:
        model = load_model(cfg, checkpoint)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f'{checkpoint!r} does not fit {config!r}: {error}'
                         ) from error
    epoch = load_file(checkpoint).get('meta', {}).get('epoch')
    return TrainedModel(run, epoch, cfg, (config, checkpoint),
                        model.to(device), run)
