"""FPQ's configs, installed as data; :func:`path` finds them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent


def names() -> list[str]:
    """Every config and fragment, by the name that :func:`path` takes."""
    found = (p.relative_to(ROOT) for p in ROOT.rglob('*.py'))
    return sorted(p.as_posix() for p in found if not p.name.startswith('__'))


def path(name: str) -> str:
    """Where an installed config is.

    ``_base_`` in a config file is an expression, and takes no imports, so
    there it is ``__import__('mm_configs').path('_base_/fpq.py')``.

    Args:
        name (str): One of :func:`names`, as
            'fashion_mnist/resnet_fpq_w4a4.py'.

    Returns:
        str: The absolute path.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    if name not in names():
        raise FileNotFoundError(
            f'no config {name!r} in {ROOT}; "python -m mm_configs" lists all')
    return str(ROOT / name)
