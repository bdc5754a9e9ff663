"""An exported file in its engine, by the config's own data and metric.

The file answers where the model's head would: ``extract_feat`` hands the
images on, and the head's forward is the engine. What comes after it (scores,
decoding) stays the framework's, as do the pipeline and the metric.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import EVALUATOR
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..export.formats import OpenedFile, format_of
from ..export.outputs import arranged, structure_of, tensors_of
from .checkpoints import build_model, load_model
from .export_run import ordered_images

HEADS = ('head', 'decode_head', 'bbox_head')
"""Where the models of OpenMMLab have what makes their answers."""


@dataclass(frozen=True)
class Evaluation:
    """A file's metrics, and the trained model's; ``str()`` draws both.

    Attributes:
        path (str): The file.
        engine (str): What ran it.
        images (int): How many there were.
        file (dict[str, float]): The metrics by name.
        trained (dict[str, float], optional): Those of the checkpoint, as
            ``mim test`` has them. Defaults to None: there was none.
    """

    path: str
    engine: str
    images: int
    file: dict[str, float]
    trained: dict[str, float] | None = None

    def differences(self) -> dict[str, float]:
        """The file's metrics less the trained model's."""
        return {name: value - self.trained[name]
                for name, value in self.file.items()
                if self.trained is not None and name in self.trained}

    def as_dict(self) -> dict:
        """All figures, for JSON."""
        return dict(path=self.path, engine=self.engine, images=self.images,
                    file=self.file, trained=self.trained,
                    differences=self.differences())

    def __str__(self) -> str:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE)
        rows = {'file': self.file}
        if self.trained is not None:
            rows.update({'trained model': self.trained,
                         'difference': self.differences()})
        for title in ('', *rows):
            table.add_column(title, no_wrap=True)
        for name in self.file:
            table.add_row(name, *(
                ('{:+.4g}' if title == 'difference' else '{:.4f}').format(
                    row[name]) if name in row else ''
                for title, row in rows.items()))
        out = io.StringIO()
        console = Console(file=out, width=200)
        console.print(table)
        console.print(f'{self.path} in {self.engine}, {self.images} images',
                      highlight=False)
        return '\n'.join(line.rstrip()
                         for line in out.getvalue().splitlines())


def evaluate_file(config: str | Config,
                  path: str | os.PathLike,
                  checkpoint: str | None = None,
                  engine: str | None = None) -> Evaluation:
    """Run the config's test on an exported file.

    Args:
        config (str | Config): The config that the model was trained with: its
            ``test_dataloader`` and ``test_evaluator`` (or those of ``val``).
        path (str | os.PathLike): The file.
        checkpoint (str, optional): What the file was exported from, to be
            tested in the same way. Defaults to None.
        engine (str, optional): What runs the file, one of
            :func:`.formats.known_engines`. Defaults to None: the one that it
            is for.

    Returns:
        Evaluation: The metrics.

    Raises:
        ValueError: If the config has no test, the model's answers are not
            made by a head, or the engine does not take the file.
        ImportError: If the engine is not installed.
        FileNotFoundError: If the file is missing.
    """
    opened = format_of(path).open(path, engine)
    cfg = Config.fromfile(config) if isinstance(config, str) else config
    model = build_model(cfg).eval()
    evaluator_of(cfg)  # before anything that takes long
    trained = None if checkpoint is None else load_model(cfg, checkpoint)
    loader = ordered_images(cfg)
    with answered_by(model, opened):
        scores = _tested(model, loader, cfg, 'the file')
    return Evaluation(
        os.fspath(path), opened.engine, len(loader.dataset), scores,
        trained and _tested(trained, loader, cfg, 'the trained model'))


def evaluator_of(cfg: Config) -> Evaluator:
    """What measures the config's test data, built anew.

    Args:
        cfg (Config): The config of a run.

    Returns:
        Evaluator: Of ``test_evaluator``, or else ``val_evaluator``.

    Raises:
        ValueError: If the config has neither.
    """
    name = 'test' if cfg.get('test_dataloader') else 'val'
    metrics = cfg.get(f'{name}_evaluator')
    if not metrics:
        raise ValueError(f'the config has no {name}_evaluator to measure the '
                         'file by')
    if isinstance(metrics, dict) and 'metrics' in metrics:
        return EVALUATOR.build(dict(dict(type='Evaluator'), **metrics))
    return Evaluator(metrics)


@contextmanager
def answered_by(model: nn.Module, opened: OpenedFile) -> Iterator[None]:
    """Have a file make the answers of a model's head.

    Args:
        model (nn.Module): One of OpenMMLab's, in eval mode.
        opened (OpenedFile): The file.

    Raises:
        ValueError: If the model has no such head, or does not ask it.
    """
    name = next((name for name in HEADS
                 if isinstance(getattr(model, name, None), nn.Module)), None)
    if name is None or not hasattr(model, 'extract_feat'):
        raise ValueError(
            f'{type(model).__name__} has no {", ".join(HEADS)} behind an '
            'extract_feat: its answers cannot be made from a file')
    head, asked = getattr(model, name), []

    def forward(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(images))
        return _in_batches(opened, images)

    head.forward, model.extract_feat = forward, lambda images, *a, **k: images
    try:
        yield
        if not asked:
            raise ValueError(f'the predict of {type(head).__name__} does not '
                             'call its forward: the file was not asked')
    finally:
        del head.forward, model.extract_feat


def _in_batches(opened: OpenedFile, images: Tensor) -> Any:
    """Run a file that may take one size of batch alone."""
    size = opened.batch_size
    if size is None:
        return opened.run(images)
    answers = []
    for part in images.split(size):
        missing = size - len(part)
        full = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
        answers.append(opened.run(full))
    flat = zip(*map(tensors_of, answers))
    return arranged([torch.cat(parts)[:len(images)] for parts in flat],
                    structure_of(answers[0]))


@torch.no_grad()
def _tested(model: nn.Module, loader: DataLoader, cfg: Config,
            what: str) -> dict[str, float]:
    """What ``mim test`` does with a model."""
    evaluator = evaluator_of(cfg)
    evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', None)
    step: Callable[[Any], Any] = model.test_step
    console = Console(stderr=True)
    for data in track(loader, f'testing {what}', len(loader), console=console,
                      transient=True, disable=not console.is_terminal):
        evaluator.process(data_samples=step(data), data_batch=data)
    found = evaluator.evaluate(len(loader.dataset))
    return {name: float(value) for name, value in found.items()}
