"""Fig. 5: the Hessian's trace, over training and of the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save
from .families import courses


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
