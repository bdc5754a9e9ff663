"""Export from what a run left: its config and a checkpoint."""

from __future__ import annotations

import os

from mmengine import Config
from torch.utils.data import DataLoader

from ..inference import load_model
from .images import image_batches, ordered_images
from .onnx_file import TOLERANCE, export_onnx
from .report import ExportReport

IMAGES = 1000


def export_checkpoint(config: str | Config,
                      checkpoint: str,
                      path: str | os.PathLike,
                      images: int = IMAGES,
                      tolerance: float = TOLERANCE,
                      loader: DataLoader | None = None,
                      unsigned_weights: bool | None = None) -> ExportReport:
    """Write a trained checkpoint as ONNX, compared on its test images.

    Args:
        config (str | Config): The config that the model was trained with.
        checkpoint (str): Path or URL of the checkpoint.
        path (str | os.PathLike): The file to write.
        images (int): Images of ``test_dataloader`` (or ``val_dataloader``)
            to compare on, from the first. Defaults to 1000.
        tolerance (float): As for :func:`export_onnx`. Defaults to 0.1.
        loader (DataLoader, optional): What :func:`ordered_images` gave for the
            config, if that was called. Defaults to None.
        unsigned_weights (bool, optional): As for :func:`export_onnx`.
            Defaults to None.

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
    batches = image_batches(model, loader or ordered_images(model._config),
                            images)
    return export_onnx(model, path, batches, tolerance, source,
                       unsigned_weights)
