"""Pictures of what was measured; they take its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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


def whole(study: dict[str, Any]) -> dict[str, dict]:
    """The models of which all was measured, one of each family."""
    return {
        model['run']: model
        for model in study['models'].values() if 'layers' in model
    }


def courses(study: dict[str, Any]) -> dict[str, list[dict]]:
    """Each family's models by epoch, of families with more than one."""
    families: dict[str, list[dict]] = {}
    for model in study['models'].values():
        families.setdefault(model['run'], []).append(model)
    return {
        family: sorted(models, key=lambda m: m['epoch'] or 0)
        for family, models in families.items() if len(models) > 1
    }


def draw_output_variance(study: dict[str, Any], path: Path) -> Path:
    """Draw variance against the noise's standard deviation.

    Once in units of the output squared, once over the variance that the
    clean outputs have between images, which takes the logits' scale out.
    """
    figure, (raw, relative) = canvas(2)
    for label, model in whole(study).items():
        found = model['output_variance']
        values = [v['value'] for v in found['variances']]
        errors = [v['error'] for v in found['variances']]
        for ax, unit in ((raw, 1), (relative, found['clean'])):
            ax.errorbar(found['sigmas'], [v / unit for v in values],
                        [e / unit for e in errors], marker='o', capsize=3,
                        label=label)
    for ax in (raw, relative):
        ax.set_xscale('log')
        ax.set_yscale('log')
        ax.set_xticks(found['sigmas'], found['sigmas'])
        ax.tick_params('x', which='minor', bottom=False, labelbottom=False)
        ax.set_xlabel('standard deviation of the input noise')
    raw.set_ylabel('variance of the output')
    relative.set_ylabel('the same / variance between images')
    raw.legend()
    return save(figure, path)


def draw_noise_gradient(study: dict[str, Any], path: Path) -> Path:
    """Draw the norms over epochs of each run, or else of each model."""
    runs = courses(study) or dict(models=list(study['models'].values()))
    figure, axes = canvas(len(runs), squeeze=False, sharey=True)
    for ax, (family, models) in zip(axes.flat, runs.items()):
        over = family in courses(study)
        places = [m['epoch'] if over else i for i, m in enumerate(models)]
        style = dict(marker='o', capsize=3, linestyle='-' if over else '')
        norms = [m['noise_gradient'] for m in models]
        for kind in ('weight', 'feature'):
            ax.errorbar(places, [n[kind]['value'] for n in norms],
                        [n[kind]['error'] for n in norms],
                        label=f'{kind} noise', **style)
        ax.plot(places, [n['clean'] for n in norms], color='0.5',
                marker='.', linestyle=':' if over else '', label='no noise')
        if over:
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_xlabel('epoch')
            ax.set_title(family)
        else:
            ax.set_xticks(places, list(study['models']), rotation=20)
        ax.set_ylim(bottom=0)
    axes.flat[0].set_ylabel("norm of the loss's gradient")
    axes.flat[0].legend()
    return save(figure, path)


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


def draw_trace(study: dict[str, Any], path: Path) -> Path:
    """Draw each model's trace; over epochs, if a run has several.

    The thick error bars are one standard error of the probes, the thin ones
    of the images.
    """
    runs = courses(study)
    figure, axes = canvas(1 + bool(runs), squeeze=False)
    axes = list(axes.flat)
    if runs:
        over = axes.pop(0)
        for family, models in runs.items():
            over.errorbar([m['epoch'] for m in models],
                          [m['trace']['value'] for m in models],
                          [m['trace']['error'] for m in models],
                          marker='o', capsize=3, label=family)
        over.xaxis.get_major_locator().set_params(integer=True)
        over.set_xlabel('epoch')
        over.set_ylabel("trace of the task loss's Hessian")
        over.set_ylim(bottom=0)
        over.legend()
    labels = list(study['models'])
    traces = [model['trace'] for model in study['models'].values()]
    bars = axes[0]
    places = range(len(labels))
    values = [t['value'] for t in traces]
    bars.barh(places, values, color='0.8')
    bars.errorbar(values, places, xerr=[t['data_error'] for t in traces],
                  fmt='none', ecolor='0.4', elinewidth=1)
    bars.errorbar(values, places, xerr=[t['error'] for t in traces],
                  fmt='none', ecolor='k', elinewidth=3)
    bars.set_yticks(places, labels)
    bars.invert_yaxis()
    bars.set_xlabel('trace (thick: probes, thin: images)')
    return save(figure, path)


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


def draw_spectrum(study: dict[str, Any], path: Path) -> Path:
    """Draw the spectral density and the top eigenvalues with errors."""
    figure, (left, right) = canvas(2)
    for label, model in whole(study).items():
        found = model['density']
        left.plot(found['grid'], found['density'], label=label)
        top = model['eigenvalues']
        right.errorbar(range(1, len(top) + 1), [e['value'] for e in top],
                       [e['error'] for e in top], marker='o', capsize=3,
                       label=label)
    left.set_yscale('log')
    left.set_ylim(bottom=1e-8)
    left.set_xlabel('eigenvalue')
    left.set_ylabel('density')
    right.set_xlabel('number')
    right.set_ylabel('eigenvalue')
    right.legend()
    return save(figure, path)


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
