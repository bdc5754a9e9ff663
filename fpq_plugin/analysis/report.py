"""One HTML file that shows an analysis, and needs no other."""

from __future__ import annotations

import base64
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
    whole,
)

PICTURES = (
    ('fig1_output_variance', draw_output_variance,
     'Fig. 1. Variance of the output under Gaussian noise on the input, over '
     'draws: lower is steadier. Right: over the variance that the clean '
     'outputs have between images.'),
    ('fig2_noise_gradient', draw_noise_gradient,
     "Fig. 2. Norm of the task loss's gradient with uniform noise of one "
     "quantization step in every layer's input, or in every layer's weight."),
    ('fig3_channel_ranges', draw_channel_ranges,
     "Fig. 3. Range (bar) and mean (dot) of each channel of one layer's "
     'output.'),
    ('fig4_histograms', draw_histograms,
     "Fig. 4. Distribution of one layer's output."),
    ('fig5_trace', draw_trace,
     "Fig. 5. Trace of the task loss's Hessian in the latent weights. Error "
     'bars are one standard error: of the probes, and (thin) of the images.'),
    ('layer_traces', draw_layer_traces,
     "The trace of each layer's block of the Hessian."),
    ('spectrum', draw_spectrum,
     'Spectral density and top eigenvalues of the Hessian.'),
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
          '1px solid #ddd}td:first-child,th:first-child{text-align:left}')


def draw_all(study: dict[str, Any], folder: Path) -> list[tuple[Path, str]]:
    """Write all pictures; their paths and captions."""
    drawn = [(draw(study, folder / f'{name}.png'), caption)
             for name, draw, caption in PICTURES]
    return [(path, caption) for path, caption in drawn if path is not None]


def write_report(study: dict[str, Any], pictures: list[tuple[Path, str]],
                 path: Path) -> None:
    """Write the HTML file, the pictures inside it.

    Args:
        study (dict): What :func:`run_study` returns, with its ``command``.
        pictures (list): Paths and captions.
        path (Path): The file.
    """
    parts = [
        '<!doctype html><meta charset="utf-8"><title>FPQ analysis</title>',
        f'<style>{_STYLE}</style><h1>FPQ analysis</h1>',
        f'<p><code>{escape(study["command"])}</code></p>',
        f'<p>{study["images"]} images of the {escape(study["split"])} set, '
        f'{study["probes"]} probes, seed {study["seed"]}; models in eval '
        'mode, curvature of the task loss in the latent weights through the '
        'straight-through surrogate.</p>',
        _models(study)
    ]
    for picture, caption in pictures:
        code = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<figure><img src="data:image/png;base64,{code}">'
                     f'<figcaption>{escape(caption)}</figcaption></figure>')
    parts += [_layers(label, model) for label, model in whole(study).items()]
    path.write_text('\n'.join(parts))


def _models(study: dict[str, Any]) -> str:
    rows = []
    for label, model in study['models'].items():
        trace = model['trace']
        top = model.get('eigenvalues')
        noise = model['noise_gradient']
        rows.append([
            label, '' if model['epoch'] is None else model['epoch'],
            f'{model["loss"]:.4f}',
            _of(trace), f'{trace["data_error"]:.2g}',
            _of(top[0]) if top else '',
            _of(noise['feature']), _of(noise['weight']),
            _of(noise['feature_loss']), _of(noise['weight_loss'])
        ])
    return _table([
        'model', 'epoch', 'task loss', 'trace', 'error of the images',
        'top eigenvalue', 'gradient, feature noise',
        'gradient, weight noise', 'loss, feature noise', 'loss, weight noise'
    ], rows)


def _layers(label: str, model: dict[str, Any]) -> str:
    rows = []
    for row in model['layers']:
        sqnr = row['sqnr'] or {}
        rows.append([
            row['name'], row['weight_bits'], row['input_bits'],
            _of(row['trace']),
            *(f'{sqnr[part]:.1f}' if sqnr.get(part) is not None else ''
              for part in ('weight', 'input', 'output'))
        ])
    return f'<h2>{escape(label)}</h2>' + _table([
        'layer', 'W bits', 'A bits', 'trace', 'SQNR weight, dB', 'input',
        'output'
    ], rows)


def _of(estimate: dict[str, float]) -> str:
    return str(Estimate(estimate['value'], estimate['error']))


def _table(titles: list[str], rows: list[list]) -> str:

    def line(cells: list, tag: str) -> str:
        inside = ''.join(f'<{tag}>{escape(str(c))}</{tag}>' for c in cells)
        return f'<tr>{inside}</tr>'

    return ('<table>' + line(titles, 'th') +
            ''.join(line(row, 'td') for row in rows) + '</table>')
