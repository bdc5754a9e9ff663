"""The loss along filter-normalised random directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .canvas import canvas, save
from .families import whole


def draw_slice_1d(study: dict[str, Any], path: Path) -> Path:
    """Draw the loss along one direction, all models in one picture."""
    figure, ax = canvas()
    for label, model in whole(study).items():
        ax.plot(model['slice_1d']['steps'], model['slice_1d']['loss'],
                label=label)
    ax.set_xlabel('step along a filter-normalised direction')
    ax.set_ylabel('task loss')
    ax.legend()
    return save(figure, path)


def draw_slices_2d(study: dict[str, Any], path: Path) -> Path:
    """Draw the loss over two directions, the levels shared by all models."""
    models = whole(study)
    losses = [np.array(m['slice_2d']['loss']) for m in models.values()]
    low, high = min(x.min() for x in losses), max(x.max() for x in losses)
    levels = np.geomspace(max(low, 1e-6), max(high, 2e-6), 20)
    figure, axes = canvas(len(models), squeeze=False, sharey=True)
    for ax, (label, model), loss in zip(axes.flat, models.items(), losses):
        steps = model['slice_2d']['steps']
        lines = ax.contour(steps, steps, loss.T, levels=levels)
        ax.clabel(lines, fontsize=7)
        ax.plot(0, 0, 'k+')
        ax.set_title(label)
    return save(figure, path)
