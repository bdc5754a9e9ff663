"""The models of an analysis: trained ones, and one quantized without."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmengine import Config
from torch import nn

from .._compat.safe_loading import load_file
from ..calibrate import calibrate
from ..layers import quantized_layers
from ..openmmlab.config_checks import recipe_of
from ..openmmlab.inference import load_model
from ..openmmlab.model_families import convert_mm_model
from .batches import Batch
from .measuring import quiet


@dataclass
class Subject:
    """A model with its origin.

    Attributes:
        family (str): The config's name, or its path if others have the same
            name: models of a family are one run's.
        epoch (int, optional): Epoch of the checkpoint, if it says so.
        config (Config): The config.
        files (tuple[str, str]): Paths of config and checkpoint as given.
        model (nn.Module): The model in eval mode.
        label (str): Name in pictures and tables, unique in an analysis.
    """

    family: str
    epoch: int | None
    config: Config
    files: tuple[str, str]
    model: nn.Module
    label: str

    def is_quantized(self) -> bool:
        """Whether the model has quantized layers."""
        return bool(quantized_layers(self.model))


def load_subjects(pairs: list[tuple[str, str]],
                  device: str = 'cpu') -> list[Subject]:
    """Load the models of (config, checkpoint) pairs.

    Raises:
        ValueError: If a file is missing or a checkpoint does not fit its
            config; the message names both.
    """
    families = _families(config for config, _ in pairs)
    subjects = [_load(*pair, families[pair[0]], device) for pair in pairs]
    labels = [subject.label for subject in subjects]
    for subject in subjects:
        if labels.count(subject.label) > 1:
            stem = osp.splitext(osp.basename(subject.files[1]))[0]
            subject.label = f'{subject.family} {stem}'
    labels = [subject.label for subject in subjects]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f'{twice[0]!r} is given twice; give the config, or '
                         'the checkpoint, another file name')
    return subjects


def last_of_families(subjects: list[Subject]) -> list[Subject]:
    """The last checkpoint of each family, in the order of the families."""
    last: dict[str, Subject] = {}
    for subject in subjects:
        known = last.get(subject.family)
        if known is None or (subject.epoch or 0) >= (known.epoch or 0):
            last[subject.family] = subject
    return list(last.values())


def _families(configs: Iterable[str]) -> dict[str, str]:
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


def _load(config: str, checkpoint: str, family: str,
          device: str) -> Subject:
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
    return Subject(family, epoch, cfg, (config, checkpoint),
                   model.to(device), family)


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
    convert_mm_model(model, recipe_of(config))
    with quiet(model, 0):
        calibrate(model, batches, forward=lambda m, batch: batch.output(m))
    return model
