"""Export from what a run left: its config and a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from mmengine import Config
from mmengine.runner import Runner
from torch import nn

from ..inference import load_model
from .onnx_file import TOLERANCE, export_onnx
from .parity import Batch
from .report import ExportReport

IMAGES = 1000


def export_checkpoint(config: str | Config,
                      checkpoint: str,
                      path: str | os.PathLike,
                      images: int = IMAGES,
                      tolerance: float = TOLERANCE) -> ExportReport:
    """Write a trained checkpoint as ONNX, compared on its test images.

    Args:
        config (str | Config): The config that the model was trained with.
        checkpoint (str): Path or URL of the checkpoint.
        path (str | os.PathLike): The file to write.
        images (int): Images of ``test_dataloader`` (or ``val_dataloader``)
            to compare on, from the first. Defaults to 1000.
        tolerance (float): As for :func:`export_onnx`. Defaults to 0.1.

    Returns:
        ExportReport: Sizes, latencies, parity and bits.

    Raises:
        ValueError: If the config has no FPQHook or no test images, the
            checkpoint is not of its quantization, or something cannot be
            exported.
        ParityError: If the exported model answers otherwise.
        FileNotFoundError: If the checkpoint or the file's folder is missing.
    """
    model = load_model(config, checkpoint)
    source = dict(checkpoint=os.path.basename(checkpoint))
    if model._config.filename is not None:
        source['config'] = os.path.basename(model._config.filename)
    return export_onnx(model, path, image_batches(model, images), tolerance,
                       source)


def image_batches(model: nn.Module, images: int) -> Iterator[Batch]:
    """The first ``images`` test images of a model's config.

    Args:
        model (nn.Module): What :func:`~fpq_plugin.load_model` gave.
        images (int): How many.

    Yields:
        Batch: Preprocessed images (N, C, H, W) and labels (N,), None if the
        data set has none.

    Raises:
        ValueError: If the config has neither test nor validation images.
    """
    cfg = model._config
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader is None:
        raise ValueError('the config has neither test_dataloader nor '
                         'val_dataloader to compare on')
    left = images
    for data in Runner.build_dataloader(loader):
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
