"""A trained model to be analysed."""

from __future__ import annotations

import os.path as osp
from dataclasses import dataclass

from mmengine import Config
from torch import nn

from ..inference import load_model
from ..layers import quantized_layers
from ..safe_loading import load_file


@dataclass
class Subject:
    """A model with its origin.

    Attributes:
        family (str): The config's name: models of a family are one run's.
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
    subjects = [_load(*pair, device) for pair in pairs]
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


def _load(config: str, checkpoint: str, device: str) -> Subject:
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
    family = osp.splitext(osp.basename(config))[0]
    epoch = load_file(checkpoint).get('meta', {}).get('epoch')
    return Subject(family, epoch, cfg, (config, checkpoint),
                   model.to(device), family)
