"""Quantization error, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save
from .families import whole


def draw_sqnr(study: dict[str, Any], path: Path) -> Path | None:
    """Draw each layer's SQNR; None if no model is quantized."""
    models = {
        label: [row for row in model['layers'] if row['sqnr']]
        for label, model in whole(study).items() if model['quantized']
    }
    if not models:
        return None
    figure, axes = canvas(3, height=5, sharey=True)
    for ax, part in zip(axes, ('weight', 'input', 'output')):
        for label, rows in models.items():
            ax.plot([r['name'] for r in rows],
                    [r['sqnr'][part] for r in rows], marker='o', label=label)
        ax.set_title(part)
        ax.tick_params('x', rotation=90, labelsize=7)
    axes[0].set_ylabel('SQNR, dB')
    axes[0].legend()
    return save(figure, path)
