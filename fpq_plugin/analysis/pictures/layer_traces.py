"""The Hessian's trace, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save
from .families import whole


def draw_layer_traces(study: dict[str, Any], path: Path) -> Path:
    """Draw the trace of each layer's block, in the order of the layers."""
    figure, ax = canvas(height=5)
    for label, model in whole(study).items():
        rows = model['layers']
        ax.errorbar(range(len(rows)), [r['trace']['value'] for r in rows],
                    [r['trace']['error'] for r in rows], marker='o',
                    capsize=3, label=label)
    ax.set_xticks(range(len(rows)), [r['name'] for r in rows], rotation=90,
                  fontsize=7)
    ax.set_ylabel("trace of the layer's block")
    ax.legend()
    return save(figure, path)
