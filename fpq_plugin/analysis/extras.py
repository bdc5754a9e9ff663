"""What the analysis needs beyond the plugin's own requirements."""

from __future__ import annotations

from importlib.util import find_spec

_PACKAGES = dict(curvlinops='curvlinops-for-pytorch', matplotlib='matplotlib')


def require_extras(*modules: str) -> None:
    """Refuse to go on without optional packages.

    Args:
        *modules (str): Of 'curvlinops' and 'matplotlib'.

    Raises:
        ImportError: Naming what to install.
    """
    missing = [_PACKAGES[m] for m in modules if find_spec(m) is None]
    if missing:
        raise ImportError(f'{" and ".join(missing)} missing: '
                          "pip install 'fpq-openmmlab[analysis]'")
