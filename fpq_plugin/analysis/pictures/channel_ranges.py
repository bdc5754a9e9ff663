"""Fig. 3: range and mean of a layer's channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save


def draw_channel_ranges(study: dict[str, Any], path: Path) -> Path:
    """Draw each channel's range as a bar and its mean as a dot."""
    found = study['features']['channels']
    figure, axes = canvas(len(found), squeeze=False, sharey=True)
    for ax, (label, channels) in zip(axes.flat, found.items()):
        places = range(len(channels['mean']))
        ax.vlines(places, channels['low'], channels['high'], color='C0',
                  alpha=0.5, linewidth=2)
        ax.plot(places, channels['mean'], 'k.', markersize=4)
        ax.set_title(label)
        ax.set_xlabel('channel')
    axes.flat[0].set_ylabel(f'output of {study["layer"]}')
    return save(figure, path)
