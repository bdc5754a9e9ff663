"""The Hessian's spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .canvas import canvas, save
from .families import whole


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
