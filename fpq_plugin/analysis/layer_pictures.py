"""Pictures of layers; they take the numbers of ``analysis.json``.

Figs. 3 and 4 of arXiv 2503.11159, and two pictures with a row for each
layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .drawing import (
    canvas,
    count_on_x,
    entitle,
    layer_canvas,
    name_layers,
    offsets,
    save,
    shortened,
    styles,
)
from .pictures import ERROR_BARS, last_of_runs


def draw_channel_ranges(study: dict[str, Any], path: Path) -> Path:
    """Draw each channel's range as a bar and its mean as a dot."""
    found = study['features']['channels']
    figure, axes = canvas(len(found), 3.2, columns=2, sharex=True,
                          sharey=True)
    for ax, (label, channels) in zip(axes, found.items()):
        places = range(len(channels['mean']))
        ax.vlines(places, channels['low'], channels['high'], color='C0',
                  alpha=0.5, linewidth=2, label='range over images and space')
        ax.plot(places, channels['mean'], 'k.', markersize=4, label='mean')
        entitle(ax, label)
        count_on_x(ax, 'channel')
    figure.supylabel(f'output of {shortened(study["layer"])}', fontsize=10)
    return save(figure, path)


def draw_histograms(study: dict[str, Any], path: Path) -> Path:
    """Draw the models' densities over each other."""
    found = study['features']['histograms']
    figure, [ax] = canvas()
    for label, density in found['densities'].items():
        ax.stairs(density, found['edges'], label=label, linewidth=1.2,
                  color=styles(list(found['densities']))[label]['color'])
    ax.set_yscale('log')
    ax.set_xlabel(f'output of {shortened(study["layer"])}')
    ax.set_ylabel('density')
    return save(figure, path)


def draw_layer_traces(study: dict[str, Any], path: Path) -> Path:
    """Draw the trace of each layer's block, in the order of the layers."""
    models = last_of_runs(study)
    names = _names([model['layers'] for model in models.values()])
    figure, [ax] = layer_canvas(len(names))
    for offset, (run, model) in zip(offsets(len(models)), models.items()):
        rows = model['layers']
        ax.errorbar([row['trace']['value'] for row in rows],
                    [names.index(row['name']) + offset for row in rows],
                    xerr=[row['trace']['error'] for row in rows],
                    linestyle='', label=run, **styles(list(models))[run])
    lowest = min(row['trace']['value'] for model in models.values()
                 for row in model['layers'])
    if lowest > 0:
        ax.set_xscale('log')
    name_layers(ax, names)
    ax.set_xlabel("trace of the layer's block of the Hessian")
    return save(figure, path, f'{ERROR_BARS} of the probes')


def draw_sqnr(study: dict[str, Any], path: Path) -> Path | None:
    """Draw each layer's SQNR; None if no model is quantized."""
    models = {
        run: [row for row in model['layers'] if row['sqnr']]
        for run, model in last_of_runs(study).items() if model['quantized']
    }
    if not models:
        return None
    names = _names(list(models.values()))
    style = styles(list(last_of_runs(study)))
    figure, axes = layer_canvas(len(names), 3, sharex=True, sharey=True)
    for ax, part in zip(axes, ('weight', 'input', 'output')):
        for run, rows in models.items():
            seen = [row for row in rows if row['sqnr'][part] is not None]
            ax.plot([row['sqnr'][part] for row in seen],
                    [names.index(row['name']) for row in seen],
                    linestyle='', label=run, **style[run])
        entitle(ax, f"the layer's {part}")
        ax.set_xlabel('signal to quantization noise, dB')
        name_layers(ax, names)
        ax.tick_params(labelleft=ax is axes[0])
    return save(figure, path)


def _names(tables: list[list[dict[str, Any]]]) -> list[str]:
    """The layers of all models, in the order of the first."""
    return list(dict.fromkeys(row['name'] for rows in tables
                              for row in rows))
