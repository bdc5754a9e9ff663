"""What the pictures share: panels, legends, names that can be read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLUMNS = 3
LAYER_LABELS = 60
"""Most names of layers on an axis; of more layers every k-th is named."""

_TITLE = 38
_MARKERS = 'osD^vP*X<>'


def canvas(panels: int = 1,
           height: float = 3.8,
           columns: int = COLUMNS,
           **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure and its axes; no global state of matplotlib changes.

    Args:
        panels (int): Axes, side by side and then in a new row. Defaults to
            1.
        height (float): Inches of a row. Defaults to 3.8.
        columns (int): Axes of a row at most. Defaults to 3.
        **options: Those of ``Figure.subplots``.

    Returns:
        tuple[Figure, list[Axes]]: The figure, and one Axes for each panel.
    """
    columns = min(panels, columns)
    rows = math.ceil(panels / columns)
    width = 7.0 if columns == 1 else 4.0 * columns
    figure = Figure(figsize=(width, height * rows), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for surplus in axes.flat[panels:]:
        surplus.set_visible(False)
    return figure, list(axes.flat)[:panels]


def layer_canvas(layers: int, panels: int = 1,
                 **options: Any) -> tuple[Figure, list[Axes]]:
    """The same, high enough for the names of that many layers."""
    height = 1.6 + 0.16 * min(layers, LAYER_LABELS)
    return canvas(panels, height, **options)


def save(figure: Figure, path: Path, note: str = '') -> Path:
    """Write a PNG, with a legend of what the first Axes shows.

    Args:
        figure (Figure): The figure.
        path (Path): The file.
        note (str): Title of the legend, such as what the error bars are.
            Defaults to ''.

    Returns:
        Path: The file.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles or note:
        labels = [shortened(label, 60) for label in labels]
        inches = 0.7 + 0.075 * max(map(len, labels), default=0)
        figure.legend(
            handles, labels, title=note or None, title_fontsize=9,
            fontsize=9, loc='outside lower center', frameon=False,
            ncols=max(1, int(figure.get_figwidth() / inches)))
    figure.savefig(path, dpi=100)
    return path


def shortened(text: str, length: int = 32) -> str:
    """The text, its middle left out if it is longer than ``length``."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f'{text[:head]}\u2026{text[len(text) - (length - 1 - head):]}'


def entitle(ax: Axes, title: str) -> None:
    """Put a title over a panel, in lines that are no wider than it is."""
    lines = textwrap.wrap(title, _TITLE, break_long_words=False,
                          break_on_hyphens=False)
    ax.set_title('\n'.join(shortened(line, _TITLE) for line in lines),
                 fontsize=10)


def name_layers(ax: Axes, names: Sequence[str]) -> None:
    """Put layers on the vertical axis, the first one at the top.

    Args:
        ax (Axes): Where layer i is at y = i.
        names (Sequence[str]): The layers' names.
    """
    every = math.ceil(len(names) / LAYER_LABELS)
    ax.set_yticks(range(0, len(names), every),
                  [shortened(name) for name in names[::every]], fontsize=7)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis='y', color='0.92')
    ax.set_axisbelow(True)


def styles(runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each run, the same in all pictures."""
    return {
        run: dict(color=f'C{i % 10}', marker=_MARKERS[i % len(_MARKERS)],
                  markersize=5)
        for i, run in enumerate(runs)
    }


def offsets(number: int) -> list[float]:
    """Small distances, so that points of one row do not hide each other."""
    return [0.5 * (i - (number - 1) / 2) / number for i in range(number)]


def count_on_x(ax: Axes, what: str) -> None:
    """Label the horizontal axis, of each panel, with integers alone.

    Args:
        ax (Axes): The axes.
        what (str): What is counted, such as 'epoch'.
    """
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelbottom=True)
    ax.set_xlabel(what)
