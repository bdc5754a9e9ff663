"""One HTML file that shows an analysis, and needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .measuring import Estimate
from .pictures import (
    draw_channel_ranges,
    draw_histograms,
    draw_layer_traces,
    draw_noise_gradient,
    draw_output_variance,
    draw_slice_1d,
    draw_slices_2d,
    draw_spectrum,
    draw_sqnr,
    draw_trace,
    last_of_runs,
)
from .tradeoff import more_kilobytes, overrides_text, worst_layers

PICTURES = (
    ('fig1_output_variance', draw_output_variance,
     'Fig. 1 of the paper. Variance of the output under Gaussian noise on the '
     'input, over draws: lower is steadier. Right: over the variance that '
     'the clean outputs have between images.'),
    ('fig2_noise_gradient', draw_noise_gradient,
     "Fig. 2 of the paper. Norm of the task loss's gradient with uniform "
     "noise of one quantization step in every layer's input, or in every "
     "layer's weight."),
    ('fig3_channel_ranges', draw_channel_ranges,
     "Fig. 3 of the paper. Range and mean of each channel of one layer's "
     'output.'),
    ('fig4_histograms', draw_histograms,
     "Fig. 4 of the paper. Distribution of one layer's output."),
    ('fig5_trace', draw_trace,
     "Fig. 5 of the paper. Trace of the task loss's Hessian in the latent "
     'weights: lower is flatter.'),
    ('layer_traces', draw_layer_traces,
     "The trace of each layer's block of the Hessian."),
    ('spectrum', draw_spectrum,
     'Spectral density and outermost eigenvalues of the Hessian.'),
    ('slice_1d', draw_slice_1d,
     'Task loss along one filter-normalised random direction.'),
    ('slices_2d', draw_slices_2d,
     'Task loss over two such directions; contours at the same levels.'),
    ('sqnr', draw_sqnr,
     'Signal to quantization noise of each layer: higher is closer to the '
     'float operation.'),
)

_STYLE = ('body{font:15px sans-serif;max-width:72em;margin:2em auto}'
          'img{max-width:100%}table{border-collapse:collapse}'
          'td,th{padding:.2em .7em;text-align:right;border-bottom:'
          '1px solid #ddd}td:first-child,th:first-child{text-align:left}'
          'pre{background:#f4f4f4;padding:.8em;overflow:auto}')


def draw_all(study: dict[str, Any], folder: Path) -> list[tuple[Path, str]]:
    """Write all pictures.

    Args:
        study (dict): What :func:`run_study` returns.
        folder (Path): Where to.

    Returns:
        list[tuple[Path, str]]: Their paths and captions.
    """
    drawn = [(draw(study, folder / f'{name}.png'), caption)
             for name, draw, caption in PICTURES]
    return [(path, caption) for path, caption in drawn if path is not None]


def write_report(study: dict[str, Any],
                 pictures: Sequence[tuple[Path, str]], path: Path) -> None:
    """Write the HTML file, the pictures inside it.

    Args:
        study (dict): What :func:`run_study` returns, with its ``command``,
            ``split``, ``accuracy_split`` and ``machine``.
        pictures (Sequence[tuple[Path, str]]): Paths and captions.
        path (Path): The file.
    """
    parts = [
        '<!doctype html><meta charset="utf-8"><title>FPQ analysis</title>',
        f'<style>{_STYLE}</style><h1>FPQ analysis</h1>',
        f'<p><code>{escape(study["command"])}</code></p>',
        *_overview(study), *_advice(study), '<h2>Pictures</h2>'
    ]
    for picture, caption in pictures:
        code = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<figure><img src="data:image/png;base64,{code}">'
                     f'<figcaption>{escape(caption)}</figcaption></figure>')
    parts += ['<h2>Loss and gradient</h2>', _losses(study)]
    for run, model in last_of_runs(study).items():
        parts += [f'<h2>Layers of {escape(run)}</h2>',
                  _layers(model['layers'])]
    path.write_text('\n'.join(parts), encoding='utf-8')


def _overview(study: dict[str, Any]) -> list[str]:
    """The table to choose a model by."""
    rows = []
    for label, model in (study['models'] | study['untrained']).items():
        epoch = model.get('epoch')
        rows.append([
            label, '' if epoch is None else epoch,
            _with_error(model['accuracy'], '.2f'),
            f'{model["kilobytes"]:.1f}', f'{model["latency_ms"]:.2f}',
            _with_error(model.get('trace'))
        ])
    split = study['accuracy_split']
    accuracy = (f'images of the {split} set' if split else
                'no data with one class for an image')
    return [
        _table(['model', 'epoch', 'top-1, %', 'weights, kB', 'ms per image',
                'Hessian trace'], rows),
        f'<p>Top-1: {escape(accuracy)}. Weights: at their bits, without '
        'biases, norms and scales. ms per image: in PyTorch on this machine '
        f'({escape(study["machine"])}), where quantization is simulated and '
        'costs time; the median of calls in turns. What the exported model '
        'takes, <code>fpq export</code> measures. '
        f'Trace: of the task loss, on {study["images"]} images of the '
        f'{escape(study["split"])} set, {study["probes"]} probes, seed '
        f'{study["seed"]}; models in eval mode, curvature in the latent '
        'weights through the straight-through surrogate. ± is one standard '
        'error.</p>'
    ]


def _advice(study: dict[str, Any]) -> list[str]:
    """Per quantized run, the layers to give more bits."""
    parts = []
    for run, model in last_of_runs(study).items():
        worst = worst_layers(model['layers'])
        if not worst:
            continue
        kilobytes = sum(map(more_kilobytes, worst))
        price = f'{kilobytes:.1f} kB more' if kilobytes else 'no more'
        parts += [
            f'<h3>{escape(run)}</h3>',
            _layers(worst),
            f'<p>In FPQHook, for {price} weights:</p>'
            f'<pre>{escape(overrides_text(worst))}</pre>'
        ]
    if not parts:
        return []
    return [
        '<h2>Layers to give more bits</h2>',
        '<p>Where quantization costs most: the lowest signal to quantization '
        "noise (SQNR) of the layer's output, of the layers below 8 bits. The "
        'trace says how much the loss notices a change of the weights '
        'there. The bits go to the part, weight or input, whose SQNR is '
        'lower, to both within one bit (6 dB). It is a start: train with '
        'it and compare.</p>', *parts
    ]


def _losses(study: dict[str, Any]) -> str:
    rows = []
    for label, model in study['models'].items():
        top = model.get('eigenvalues')
        noise = model['noise_gradient']
        rows.append([
            label, f'{model["loss"]:.4f}',
            f'{model["trace"]["data_error"]:.2g}',
            _with_error(top[0]) if top else '',
            *(_with_error(noise[key]) for key in (
                'feature', 'weight', 'feature_loss', 'weight_loss'))
        ])
    return _table([
        'model', 'task loss', 'trace, error of the images', 'top eigenvalue',
        'gradient, feature noise', 'gradient, weight noise',
        'loss, feature noise', 'loss, weight noise'
    ], rows)


def _layers(layers: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in layers:
        sqnr = row['sqnr'] or {}
        rows.append([
            row['name'], row['weight_bits'], row['input_bits'],
            *(f'{sqnr[part]:.1f}' if sqnr.get(part) is not None else ''
              for part in ('weight', 'input', 'output')),
            _with_error(row['trace'])
        ])
    return _table([
        'layer', 'weight bits', 'input bits', 'SQNR of weight, dB',
        'of input', 'of output', 'trace'
    ], rows)


def _with_error(estimate: dict[str, float] | None, digits: str = '') -> str:
    if estimate is None:
        return ''
    value, error = estimate['value'], estimate['error']
    if digits:
        return f'{value:{digits}} ± {error:{digits}}'
    return str(Estimate(value, error)).replace('+-', '±')


def _table(titles: list[str], rows: list[list]) -> str:

    def line(cells: list, tag: str) -> str:
        inside = ''.join(f'<{tag}>{escape(str(c))}</{tag}>' for c in cells)
        return f'<tr>{inside}</tr>'

    return ('<table>' + line(titles, 'th') +
            ''.join(line(row, 'td') for row in rows) + '</table>')
