"""Fig. 1: the output's variance under Gaussian input noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save
from .families import whole


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
