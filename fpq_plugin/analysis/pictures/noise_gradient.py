"""Fig. 2: the gradient's norm under feature noise and weight noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save
from .families import courses


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
