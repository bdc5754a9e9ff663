"""From what a run left to an exported file: by command, or at its end."""

from __future__ import annotations

import copy
import os
import os.path as osp
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from mmengine import Config
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from .._compat.restoring import kept_modes
from ..export import ExportReport
from ..export.formats import format_of
from ..export.images import Batch, with_progress
from ..export.parity import TOLERANCE, measure_parity
from ..joints import joints_of
from ..recipe import Recipe
from .checkpoints import load_model
from .config_checks import recipe_of
from .joints_of_run import join_late


def ordered_images(cfg: Config) -> DataLoader:
    """The config's test data, in order and all of it in each process.

    With several processes all of them must call this: data sets meet while
    they are made. Reading from it is each one's own.

    Args:
        cfg (Config): The config of a run.

    Returns:
        DataLoader: Of ``test_dataloader``, or else ``val_dataloader``.

    Raises:
        ValueError: If the config has neither.
    """
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader is None:
        raise ValueError('the config has neither test_dataloader nor '
                         'val_dataloader to compare the exported model on')
    dataset = DATASETS.build(loader['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    # The config's sampler would deal the images out to the processes.
    own = dict(dataset=dataset, sampler=SequentialSampler(dataset),
               batch_sampler=None, persistent_workers=False)
    return Runner.build_dataloader({**loader, **own})


def image_batches(model: nn.Module, loader: DataLoader,
                  images: int) -> Iterator[Batch]:
    """The first ``images`` of ``loader``, as ``model`` takes them.

    Args:
        model (nn.Module): A model of mmengine's, with a data preprocessor.
        loader (DataLoader): What :func:`ordered_images` gave.
        images (int): How many, at least 1.

    Yields:
        Batch: Preprocessed images (N, C, H, W) and labels (N,), None if the
        data set has none.

    Raises:
        ValueError: If ``images`` is below 1.
    """
    if images < 1:
        raise ValueError(f'images must be at least 1, got {images}')
    left = images
    for data in loader:
        with torch.no_grad():
            batch = model.data_preprocessor(data, False)
        inputs, labels = batch['inputs'][:left], _labels(batch)
        yield inputs, None if labels is None else labels[:left]
        left -= len(inputs)
        if left <= 0:
            return


def _labels(batch: dict[str, Any]) -> torch.Tensor | None:
    labels: list[Any] = [
        getattr(sample, 'gt_label', None)
        for sample in batch.get('data_samples') or []
    ]
    if not labels or any(x is None or x.numel() != 1 for x in labels):
        return None
    return torch.cat([x.flatten() for x in labels])


IMAGES = 1000


def export_checkpoint(config: str | Config,
                      checkpoint: str,
                      path: str | os.PathLike,
                      images: int = IMAGES,
                      tolerance: float = TOLERANCE,
                      loader: DataLoader | None = None,
                      **options: Any) -> ExportReport:
    """Export a trained checkpoint, compared on its test images.

    Args:
        config (str | Config): The config that the model was trained with.
        checkpoint (str): Path or URL of the checkpoint.
        path (str | os.PathLike): The file to write. Its ending says what it
            is: see :mod:`fpq_plugin.export.formats`.
        images (int): Images of ``test_dataloader`` (or ``val_dataloader``)
            to compare on, from the first. Defaults to 1000.
        tolerance (float): As for :func:`export_onnx`, in %. Defaults to 0.1.
        loader (DataLoader, optional): What :func:`ordered_images` gave for the
            config, if that was called. Defaults to None.
        **options: What the format takes besides, as :func:`export_onnx`
            takes ``unsigned_weights``, ``target`` (by default the config's)
            and ``batch_size``. A model that was trained without a target gets
            the joints of one here, calibrated on training images.

    Returns:
        ExportReport: Sizes, latencies, parity and bits.

    Raises:
        ValueError: If the file's ending is unknown, the config has no FPQHook
            or no test images, the checkpoint is not of its quantization, or
            something cannot be exported.
        ImportError: If a package that the format needs is missing.
        ParityError: If the exported model answers otherwise.
        FileNotFoundError: If the checkpoint or the file's folder is missing.
    """
    file_format = format_of(path)
    file_format.require_packages()
    model = load_model(config, checkpoint)
    recipe = recipe_of(model._config)
    if file_format.takes_target and recipe is not None:
        options.setdefault('target', file_format.target_for(recipe.target))
    source = dict(checkpoint=os.path.basename(checkpoint))
    if model._config.filename is not None:
        source['config'] = os.path.basename(model._config.filename)
    loader = loader or ordered_images(model._config)

    def batches() -> Any:
        found = with_progress(image_batches(model, loader, images),
                              min(images, len(loader.dataset)))
        # What an error leaves unread would leave the bar on the screen.
        return closing(found)

    target, late, joined = options.get('target'), 0, None
    if target is not None and recipe is not None and not any(
            joint.module for joint in joints_of(model)):
        trained = copy.deepcopy(model)
        late = join_late(model, recipe, target)
        if late:
            with batches() as found:
                joined, = measure_parity(trained, [model], found)
    with batches() as found:
        report = file_format.write(model, path, found, tolerance, source,
                                   **options)
    return replace(report, late_joints=late, joined=joined)


class ExportAtEnd:
    """Exports the last checkpoint that a run wrote.

    The checkpoint, not the model in memory: it is what ``mim test`` sees,
    with the weights of an EMA if there is one.

    Args:
        recipe (Recipe): The options; ``export`` is the file to write, in the
            work directory unless absolute; None: no export.

    Raises:
        TypeError: If ``export`` is not a path.
        ValueError: If no format has its ending, or nothing is quantized.
        ImportError: If a package that the format needs is missing.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.file = file = recipe.export
        if file is None:
            return
        if not isinstance(file, str):
            raise TypeError('fpq.export: must be the path of the file to '
                            f'write, got {file!r}')
        try:
            self._format = format_of(file)
            self._format.require_packages()
        except (ValueError, ImportError) as error:
            raise type(error)(f'fpq.export: {error}') from error
        if recipe.is_float():
            raise ValueError('fpq.export: nothing to export, weight and '
                             'activation are float. Set export=None.')
        self._options = (
            {'target': self._format.target_for(recipe.target)}
            if self._format.takes_target else {})

    def check(self, runner: Runner, model: nn.Module) -> None:
        """Refuse what could not be exported, before the training.

        The format checks the model with two test images. All processes do
        that, since data sets meet while they are made.

        Raises:
            ValueError: If the model cannot be exported, there are no images
                to compare on, or no folder for the file.
        """
        if self.file is None:
            return
        folder = osp.dirname(osp.join(runner.work_dir, self.file))
        if not osp.isdir(folder):
            raise ValueError(f'fpq.export: no folder {folder!r}')
        try:
            self._images = ordered_images(runner.cfg)
            example = next(image_batches(model, self._images, 2))[0]
            with kept_modes(model):
                self._format.check(model.eval(), example, **self._options)
        except ValueError as error:
            raise ValueError(f'fpq.export: {error}') from error

    def run(self, runner: Runner) -> None:
        """Export, and log the summary.

        Raises:
            ParityError: If the exported model answers otherwise. The
                checkpoints stay.
        """
        if self.file is None or not is_main_process():
            return
        try:
            checkpoint = runner.message_hub.get_info('last_ckpt')
        except KeyError:
            runner.logger.warning('FPQ: not exported: the run has saved no '
                                  'checkpoint')
            return
        report = export_checkpoint(
            runner.cfg, checkpoint, osp.join(runner.work_dir, self.file),
            loader=self._images)
        runner.logger.info(f'FPQ exported {checkpoint}:\n{report}')
