"""Batches that all models of an analysis see, and how they are drawn."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .._compat.restoring import same_randomness
from ..openmmlab.calibration import calibration_batches
from .measuring import ProgressBar

SPLITS = dict(train='train_dataloader', val='val_dataloader',
              test='test_dataloader')


class Batch(ABC):
    """Inputs and targets, of an OpenMMLab model or of a plain one.

    Attributes:
        inputs (Tensor): What the model's first layer sees, (N, ...).
    """

    inputs: Tensor

    @abstractmethod
    def loss(self, model: nn.Module) -> Tensor:
        """The task loss, a scalar: the mean over the batch."""

    @abstractmethod
    def output(self, model: nn.Module,
               inputs: Tensor | None = None) -> Tensor:
        """The model's output, (N, outputs).

        Args:
            model (nn.Module): The model.
            inputs (Tensor, optional): In place of the batch's own. Defaults
                to None.
        """

    def right_answers(self, model: nn.Module) -> Tensor | None:
        """Whether the model's first answer is right, booleans (N, ).

        None if an image has not one class. Defaults to None.
        """
        return None

    def __len__(self) -> int:
        return len(self.inputs)


class MMBatch(Batch):
    """A batch of an MMEngine model, preprocessed as in validation.

    Args:
        model (BaseModel): The model whose ``data_preprocessor`` is used.
        data (Any): What the data loader's collate function returned.

    Raises:
        TypeError: If the preprocessed inputs are not one tensor.
    """

    def __init__(self, model: nn.Module, data: Any) -> None:
        self._data = model.data_preprocessor(data, False)
        inputs = (
            self._data.get('inputs') if isinstance(self._data, dict) else None)
        if not isinstance(inputs, Tensor):
            raise TypeError('the analysis needs models whose preprocessed '
                            "data is a dict with a tensor 'inputs', got "
                            f'{type(inputs or self._data).__name__}')
        self.inputs = inputs

    def loss(self, model: nn.Module) -> Tensor:
        return model.parse_losses(model(**self._data, mode='loss'))[0]

    def output(self, model: nn.Module,
               inputs: Tensor | None = None) -> Tensor:
        inputs = self.inputs if inputs is None else inputs
        data = {**self._data, 'inputs': inputs}
        return _flat(model(**data, mode='tensor'))

    def right_answers(self, model: nn.Module) -> Tensor | None:
        # The model writes its prediction into the samples.
        samples = copy.deepcopy(self._data.get('data_samples'))
        if not samples or not all(_has_one(s, 'gt_label') for s in samples):
            return None
        data = {**self._data, 'data_samples': samples}
        answers = model(**data, mode='predict')
        if not all(_has_one(answer, 'pred_label') for answer in answers):
            return None
        return torch.cat([
            answer.pred_label.view(1) == answer.gt_label.view(1)
            for answer in answers
        ])


class PlainBatch(Batch):
    """A batch of any model with ``model(inputs)``.

    Args:
        inputs (Tensor): Inputs, (N, ...); kept as attribute, as ``target``.
        target (Tensor): What ``criterion`` takes.
        criterion (Callable): From output and target to the mean loss.
            Defaults to cross entropy.
    """

    def __init__(
        self,
        inputs: Tensor,
        target: Tensor,
        criterion: Callable[[Tensor, Tensor],
                            Tensor] = nn.functional.cross_entropy
    ) -> None:
        self.inputs = inputs
        self.target = target
        self._criterion = criterion

    def loss(self, model: nn.Module) -> Tensor:
        return self._criterion(model(self.inputs), self.target)

    def output(self, model: nn.Module,
               inputs: Tensor | None = None) -> Tensor:
        return _flat(model(self.inputs if inputs is None else inputs))

    def right_answers(self, model: nn.Module) -> Tensor | None:
        output = model(self.inputs)
        if output.dim() != 2 or self.target.shape != output.shape[:1] or (
                self.target.is_floating_point()):
            return None
        return output.argmax(1) == self.target


def image_shares(batches: Iterable[Batch]) -> list[float]:
    """Each batch's part of all images, to weigh its mean loss by."""
    sizes = [len(batch) for batch in batches]
    return [size / sum(sizes) for size in sizes]


def build_loader(config: Config, split: str) -> DataLoader:
    """Build the data loader of a config.

    Args:
        config (Config): The config.
        split (str): 'train', 'val' or 'test'.

    Raises:
        ValueError: If the config has none, or its data set cannot be built.
    """
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    key = SPLITS[split]
    cfg = config.get(key)
    if cfg is None:
        raise ValueError(f'no data: the config {config.filename!r} has no '
                         f'{key}; name another split of {", ".join(SPLITS)}')
    try:
        return Runner.build_dataloader(cfg, seed=0)
    except (OSError, AssertionError, RuntimeError) as error:
        raise ValueError(f'no data: {key} of {config.filename!r} cannot be '
                         f'built: {error}') from error


def draw_batches(loader: DataLoader, num_images: int, seed: int,
         progress: bool) -> list[Any]:
    """Draw images without repetition, through the loader's pipeline.

    Images and augmentations depend on the seed alone; the global random
    generators stay.

    Args:
        loader (DataLoader): Where data set, pipeline, batch size and collate
            function come from.
        num_images (int): How many images.
        seed (int): Seed of the draw.
        progress (bool): Whether to show a bar.

    Returns:
        list[Any]: Batches as the collate function returns them.

    Raises:
        ValueError: If the data set has fewer images, or no length.
    """
    size = len(loader.dataset) if hasattr(loader.dataset, '__len__') else None
    if size is not None and size < num_images:
        raise ValueError(f'no data: {num_images} images asked for, the data '
                         f'set has {size}')
    drawn = []
    number = math.ceil(num_images / (loader.batch_size or 32))
    with same_randomness(), ProgressBar(
            'drawing images', number, 'batches', progress) as bar:
        set_random_seed(seed)
        for batch in calibration_batches(
                loader, num_images, seed, progress=False):
            drawn.append(batch)
            bar.step()
    return drawn


def preprocessed(model: nn.Module, batches: Iterable[Any]) -> list[MMBatch]:
    """Batches of a data loader as the model's preprocessor gives them.

    Args:
        model (nn.Module): An OpenMMLab model; its device is the batches'.
        batches (Iterable[Any]): What :func:`draw_batches` returns.

    Returns:
        list[MMBatch]: One for each.

    Raises:
        TypeError: If preprocessed inputs are not one tensor.
    """
    with torch.no_grad():
        return [MMBatch(model, batch) for batch in batches]


def _has_one(sample: Any, label: str) -> bool:
    return label in sample and sample.get(label).numel() == 1


def _flat(output: Any) -> Tensor:
    """Tensors, nested in lists or tuples, as one of shape (N, outputs)."""
    if isinstance(output, Tensor):
        return output.flatten(1)
    return torch.cat([_flat(part) for part in output], dim=1)
