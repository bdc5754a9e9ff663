"""Pictures of whole models; they take the numbers of ``analysis.json``.

Figs. 1, 2 and 5 of arXiv 2503.11159, the Hessian's spectrum and slices of
the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

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

ERROR_BARS = 'error bars: one standard error'


def last_of_runs(study: dict[str, Any]) -> dict[str, dict]:
    """By run, the model of which all was measured: the last checkpoint."""
    return {
        model['run']: model
        for model in study['models'].values() if 'layers' in model
    }


def checkpoints_by_run(study: dict[str, Any]) -> dict[str, list[dict]]:
    """By run, its models in the order of their epochs."""
    runs: dict[str, list[dict]] = {}
    for model in study['models'].values():
        runs.setdefault(model['run'], []).append(model)
    return {
        run: sorted(models, key=lambda m: m['epoch'] or 0)
        for run, models in runs.items()
    }


def draw_output_variance(study: dict[str, Any], path: Path) -> Path:
    """Draw variance against the noise's standard deviation.

    Once in units of the output squared, once over the variance that the
    clean outputs have between images, which takes the logits' scale out.
    """
    figure, (raw, relative) = canvas(2)
    models = last_of_runs(study)
    for run, model in models.items():
        found = model['output_variance']
        values = [v['value'] for v in found['variances']]
        errors = [v['error'] for v in found['variances']]
        for ax, unit in ((raw, 1), (relative, found['clean'])):
            ax.errorbar(found['sigmas'], [v / unit for v in values],
                        [e / unit for e in errors], capsize=3, label=run,
                        **styles(list(models))[run])
    for ax in (raw, relative):
        ax.set_xscale('log')
        ax.set_yscale('log')
        ax.set_xticks(found['sigmas'], found['sigmas'])
        ax.tick_params('x', which='minor', bottom=False, labelbottom=False)
        ax.set_xlabel('standard deviation of the input noise')
    raw.set_ylabel('variance of the output')
    relative.set_ylabel('variance of the output /\n'
                        'its variance between images')
    return save(figure, path, f'{ERROR_BARS} over images')


def draw_noise_gradient(study: dict[str, Any], path: Path) -> Path:
    """Draw the gradient's norms, over epochs where a run has several."""
    runs = checkpoints_by_run(study)
    if all(len(models) == 1 for models in runs.values()):
        figure, [ax] = canvas(height=2 + 0.3 * len(runs))
        _draw_norms(ax, [models[0] for models in runs.values()], 'y')
        ax.set_yticks(range(len(runs)), [shortened(run) for run in runs])
        ax.set_ylim(len(runs) - 0.5, -0.5)
        ax.set_xlim(left=0)
        ax.set_xlabel("norm of the loss's gradient")
    else:
        figure, axes = canvas(len(runs), sharex=True, sharey=True)
        for ax, (run, models) in zip(axes, runs.items()):
            _draw_norms(ax, models, 'x')
            entitle(ax, run)
            count_on_x(ax, 'epoch')
        axes[0].set_ylim(bottom=0)
        figure.supylabel("norm of the loss's gradient", fontsize=10)
    return save(figure, path, f'{ERROR_BARS} over draws of the noise')


def _draw_norms(ax: Axes, models: list[dict], axis: str) -> None:
    """Against epochs if ``axis`` is 'x', else one below the other."""
    norms = [model['noise_gradient'] for model in models]
    clean = [dict(value=n['clean'], error=0.0) for n in norms]
    kinds = (
        ('noise in the weights', 'C0', 'o', [n['weight'] for n in norms]),
        ('noise in the features', 'C1', 's', [n['feature'] for n in norms]),
        ('no noise', '0.4', 'x', clean))
    for offset, (label, color, marker, found) in zip(offsets(3), kinds):
        values = [f['value'] for f in found]
        errors = [f['error'] for f in found]
        more: dict[str, Any] = dict(
            label=label, color=color, marker=marker, capsize=3)
        if axis == 'x':
            ax.errorbar([m['epoch'] or 0 for m in models], values, errors,
                        **more)
        else:
            ax.errorbar(values, [i + offset for i in range(len(models))],
                        xerr=errors, linestyle='', **more)


def draw_trace(study: dict[str, Any], path: Path) -> Path:
    """Draw each model's trace, over epochs if a run has several.

    The thick error bars are one standard error of the probes, the thin ones
    of the images.
    """
    runs = checkpoints_by_run(study)
    if all(len(models) == 1 for models in runs.values()):
        figure, [ax] = canvas(height=1.8 + 0.35 * len(runs))
        _draw_traces_by_model(ax, runs)
    else:
        figure, [ax] = canvas(height=4.2)
        _draw_traces_by_epoch(ax, runs)
    images = any(model['trace']['data_error']
                 for models in runs.values() for model in models)
    return save(figure, path, f'{ERROR_BARS} of the probes' + (
        ' (thick), of the images (thin)' if images else ''))


def _draw_traces_by_model(ax: Axes, runs: Mapping[str, list[dict]]) -> None:
    for place, (run, [model]) in enumerate(runs.items()):
        value = model['trace']['value']
        ax.barh(place, value, color=styles(list(runs))[run]['color'],
                alpha=0.4)
        for error, width in (('data_error', 1), ('error', 3)):
            ax.errorbar(value, place, xerr=model['trace'][error], fmt='none',
                        ecolor='k', elinewidth=width)
    ax.set_yticks(range(len(runs)), [shortened(run) for run in runs])
    ax.set_ylim(len(runs) - 0.5, -0.5)
    ax.set_xlabel("trace of the task loss's Hessian")


def _draw_traces_by_epoch(ax: Axes, runs: Mapping[str, list[dict]]) -> None:
    for run, models in runs.items():
        style = styles(list(runs))[run]
        epochs = [model['epoch'] or 0 for model in models]
        traces = [model['trace'] for model in models]
        values = [trace['value'] for trace in traces]
        ax.errorbar(epochs, values, [t['data_error'] for t in traces],
                    elinewidth=1, label=run, **style)
        ax.errorbar(epochs, values, [t['error'] for t in traces],
                    fmt='none', elinewidth=3, ecolor=style['color'])
        if len(models) == 1:
            ax.axhline(values[0], color=style['color'], linestyle=':')
    count_on_x(ax, 'epoch')
    ax.set_ylabel("trace of the task loss's Hessian")
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))


def draw_spectrum(study: dict[str, Any], path: Path) -> Path:
    """Draw the spectral density above the outermost eigenvalues."""
    models = last_of_runs(study)
    figure, (density, outermost) = canvas(
        2, 2.8, columns=1, sharex=True)
    for run, model in models.items():
        style = styles(list(models))[run]
        density.plot(model['density']['grid'], model['density']['density'],
                     color=style['color'], label=run)
        found = [model['lowest_eigenvalue'], *model['eigenvalues']]
        outermost.errorbar(
            [e['value'] for e in found], [0, *range(len(found) - 1, 0, -1)],
            xerr=[e['error'] for e in found], linestyle='', **style)
    density.set_yscale('log')
    density.set_ylim(bottom=1e-8)
    density.set_ylabel('density')
    number = len(found) - 1
    outermost.set_yticks(
        range(number + 1),
        ['lowest', *(f'{i}. highest' for i in range(number, 1, -1)),
         'highest'])
    outermost.set_xlabel('eigenvalue')
    return save(figure, path, 'error bars: the most that an eigenvalue is off')


def draw_slice_1d(study: dict[str, Any], path: Path) -> Path:
    """Draw the loss along one direction, all models in one picture."""
    figure, [ax] = canvas()
    models = last_of_runs(study)
    for run, model in models.items():
        ax.plot(model['slice_1d']['steps'], model['slice_1d']['loss'],
                label=run, **styles(list(models))[run])
    ax.set_xlabel('step along a filter-normalised direction')
    ax.set_ylabel('task loss')
    return save(figure, path)


def draw_slices_2d(study: dict[str, Any], path: Path) -> Path:
    """Draw the loss over two directions, the levels shared by all models."""
    models = last_of_runs(study)
    losses = [np.array(m['slice_2d']['loss']) for m in models.values()]
    low, high = min(x.min() for x in losses), max(x.max() for x in losses)
    low = max(low, 1e-6)
    levels = np.geomspace(low, max(high, 1.01 * low), 20)
    figure, axes = canvas(len(models), sharex=True, sharey=True)
    for ax, (run, model), loss in zip(axes, models.items(), losses):
        steps = model['slice_2d']['steps']
        colors = ax.contourf(steps, steps, loss.T, levels=levels,
                             norm=LogNorm())
        ax.contour(steps, steps, loss.T, levels=levels, colors='w',
                   linewidths=0.4)
        ax.plot(0, 0, 'k+')
        entitle(ax, run)
        ax.tick_params(labelbottom=True)
        ax.set_xlabel('first direction')
    figure.supylabel('second direction', fontsize=10)
    bar = figure.colorbar(colors, ax=axes, label='task loss')
    ticks = levels[::3].tolist()
    bar.set_ticks(ticks, labels=[f'{tick:.2g}' for tick in ticks])
    return save(figure, path, 'cross: the model')


def draw_over_epochs(rows: list[dict[str, Any]], path: Path, quantity: str,
                     labels: Mapping[str, str]) -> Path:
    """Draw what a hook measured against epochs.

    Args:
        rows (list[dict]): For each time its ``epoch``, and estimates by key.
        path (Path): The file.
        quantity (str): What all of them are, with the unit.
        labels (Mapping[str, str]): Words for each key.

    Returns:
        Path: The file.
    """
    figure, [ax] = canvas()
    for key, label in labels.items():
        found = [row for row in rows if key in row]
        ax.errorbar([row['epoch'] for row in found],
                    [row[key]['value'] for row in found],
                    [row[key]['error'] for row in found], marker='o',
                    capsize=3, label=label)
    count_on_x(ax, 'epoch')
    ax.set_ylabel(quantity)
    return save(figure, path, ERROR_BARS)


# -- layers: Figs. 3 and 4, and pictures with a row for each layer --------

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
