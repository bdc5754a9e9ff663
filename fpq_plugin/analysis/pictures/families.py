"""Models of a JSON, sorted by run."""

from __future__ import annotations

from typing import Any


def whole(study: dict[str, Any]) -> dict[str, dict]:
    """The models of which all was measured, one of each family."""
    return {
        model['family']: model
        for model in study['models'].values() if 'layers' in model
    }


def courses(study: dict[str, Any]) -> dict[str, list[dict]]:
    """Each family's models by epoch, of families with more than one."""
    families: dict[str, list[dict]] = {}
    for model in study['models'].values():
        families.setdefault(model['family'], []).append(model)
    return {
        family: sorted(models, key=lambda m: m['epoch'] or 0)
        for family, models in families.items() if len(models) > 1
    }
