"""Fig. 4: the distribution of a layer's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save


def draw_histograms(study: dict[str, Any], path: Path) -> Path:
    """Draw the models' densities over each other."""
    found = study['features']['histograms']
    figure, ax = canvas()
    for label, density in found['densities'].items():
        ax.stairs(density, found['edges'], label=label, linewidth=1.2)
    ax.set_yscale('log')
    ax.set_xlabel(f'output of {study["layer"]}')
    ax.set_ylabel('density')
    ax.legend()
    return save(figure, path)
