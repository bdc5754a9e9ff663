"""What a hook measured over training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save


def draw_course(rows: list[dict[str, Any]], path: Path) -> Path:
    """Draw each quantity of the rows against their ``epoch``."""
    figure, ax = canvas()
    for key in rows[0]:
        if key != 'epoch':
            ax.errorbar([row['epoch'] for row in rows],
                        [row[key]['value'] for row in rows],
                        [row[key]['error'] for row in rows], marker='o',
                        capsize=3, label=key)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel('epoch')
    ax.legend()
    return save(figure, path)
