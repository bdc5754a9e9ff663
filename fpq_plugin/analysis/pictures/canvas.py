"""Figures without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def canvas(columns: int = 1, height: float = 3.8, **options: Any) -> tuple:
    """A figure and its axes; no global state of matplotlib changes.

    Args:
        columns (int): Axes side by side. Defaults to 1.
        height (float): Inches. Defaults to 3.8.
        **options: Those of ``Figure.subplots``.

    Returns:
        tuple: Figure, and axes as ``Figure.subplots`` returns them.
    """
    figure = Figure(
        figsize=(6.4 if columns == 1 else 4.2 * columns, height),
        layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, **options)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; its path."""
    figure.savefig(path, dpi=100)
    return path
