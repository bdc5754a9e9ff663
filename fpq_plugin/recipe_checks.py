"""What a recipe refuses, by the option's full name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .layers import Backend, get_backend
from .options import (
    FLOAT_BITS,
    build,
    is_number,
    override,
    refuse_no_patterns,
    refuse_unknown,
    resolve,
)
from .presets import KINDS
from .quantizers import check_bits

if TYPE_CHECKING:
    from .recipe import Recipe


def check_recipe(recipe: Recipe) -> None:
    """Refuse options that are of a wrong type or value, or contradict.

    Args:
        recipe (Recipe): Its parts are resolved: dicts with a type, or None.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option has a wrong value, or cannot be built.
    """
    _check_parts(recipe)
    _check_overrides(recipe)
    _check_target(recipe)
    for option in ('skip', 'distill_skip'):
        refuse_no_patterns(recipe.name_of(option), getattr(recipe, option))
    _check_teacher(recipe)
    _check_training(recipe)


def _check_parts(recipe: Recipe) -> None:
    """Build every component that the options name, once."""
    backend = get_backend(recipe.backend)
    for part in (*KINDS, 'joints'):
        _check_part(recipe.name_of(part), part, getattr(recipe, part),
                    backend)
    recipe.losses()
    if recipe.attention is not None:
        build(recipe.name_of('attention'), recipe.attention)
    if recipe.first_last_bits not in (None, FLOAT_BITS):
        try:
            check_bits(recipe.first_last_bits)
        except ValueError as error:
            raise ValueError(
                f'{recipe.name_of("first_last_bits")}: {error}') from error


def _check_part(key: str, part: str, cfg: dict | None,
                backend: Backend) -> None:
    """Refuse a component's config that cannot be built, or not for this."""
    if cfg is None:
        return
    built = build(key, cfg, backend.registry(part),
                  **(dict(symmetric=True) if part == 'weight' else {}))
    if part in ('activation', 'joints') and built.for_weights_only:
        raise ValueError(f'{key}.type: {cfg["type"]} is for weights; take '
                         'another one for activations')


def _check_overrides(recipe: Recipe) -> None:
    backend = get_backend(recipe.backend)
    if not isinstance(recipe.overrides or {}, Mapping):
        raise TypeError(f'{recipe.name_of("overrides")}: must be a dict '
                        f'from patterns to options, got {recipe.overrides!r}')
    for pattern, changes in (recipe.overrides or {}).items():
        key = f'{recipe.name_of("overrides")}[{pattern!r}]'
        if not isinstance(changes, Mapping):
            raise TypeError(f'{key}: must be a dict, got {changes!r}')
        refuse_unknown(key, changes, list(KINDS))
        for part, given in changes.items():
            cfg = resolve(
                f'{key}.{part}', override(getattr(recipe, part), given),
                recipe.default_type(part), backend.registry(part),
                KINDS[part])
            _check_part(f'{key}.{part}', part, cfg, backend)


def _check_target(recipe: Recipe) -> None:
    """Refuse features that the engine has no integers for."""
    rules = recipe.rules()
    if rules.zero_points:
        return
    ends = ({} if recipe.activation is None or not recipe.first_last_bits
            else {**recipe.activation, 'bits': recipe.first_last_bits})
    parts = {'activation': recipe.activation, 'joints': recipe.joints,
             'first_last_bits': ends}
    for pattern, changes in (recipe.overrides or {}).items():
        parts[f'overrides[{pattern!r}].activation'] = override(
            recipe.activation, changes.get('activation'))
    registry = get_backend(recipe.backend).registry('activation')
    for part, cfg in parts.items():
        built = build(recipe.name_of(part), cfg, registry) if cfg else None
        # Fewer bits fit int8, counted from their zero.
        if built is not None and built.num_bits == 8 and (
                getattr(built, 'symmetric', True) is False):
            raise ValueError(
                f'{recipe.name_of(part)}: {rules.title} takes 8-bit '
                'integers around 0 alone; set symmetric=True in '
                f'{recipe.name_of("activation")}, or take 7 bits, or '
                f'another {recipe.name_of("target")}')


def _check_teacher(recipe: Recipe) -> None:
    key, teacher = recipe.name_of('teacher'), recipe.teacher
    if teacher is None or isinstance(teacher, str):
        return
    if not isinstance(teacher, Mapping):
        raise TypeError(
            f'{key}: must be the path or URL of a checkpoint, or '
            f'dict(config=..., checkpoint=...), got {teacher!r}')
    refuse_unknown(key, teacher, ['config', 'checkpoint'])
    for part in ('config', 'checkpoint'):
        if not isinstance(teacher.get(part), str):
            raise TypeError(f'{key}.{part}: must be a path, got '
                            f'{teacher.get(part)!r}')
    for loss in recipe.losses():
        if not loss.of_one_layer():
            raise ValueError(
                f'{recipe.name_of("distillation")}: {type(loss).__name__} '
                'compares layers by their names, which a teacher of '
                f'another architecture ({key}.config) does not share; '
                "take dict(type='LogitKD')")


def _check_training(recipe: Recipe) -> None:
    if recipe.objective not in ('mean', 'sum'):
        raise ValueError(f"{recipe.name_of('objective')}: must be 'mean' "
                         f"or 'sum', got {recipe.objective!r}")
    if not is_number(recipe.scale_lr_mult, 0):
        raise ValueError(f'{recipe.name_of("scale_lr_mult")}: must be a '
                         f'number >= 0, got {recipe.scale_lr_mult!r}')
    if not isinstance(recipe.baselines, bool):
        raise TypeError(f'{recipe.name_of("baselines")}: must be True or '
                        f'False, got {recipe.baselines!r}')
    _check_images(recipe.name_of('calibration'), recipe.calibration)
    if recipe.batch_norms is not None:
        _check_images(recipe.name_of('batch_norms'), recipe.batch_norms)


def _check_images(key: str, given: Any) -> None:
    """Refuse what does not say how many training images."""
    if not isinstance(given, Mapping):
        raise TypeError(f'{key}: must be a dict, got {given!r}')
    refuse_unknown(key, given, ['num_images'])
    number = given.get('num_images', 1)
    if not is_number(number, 1) or not isinstance(number, int):
        raise ValueError(f'{key}.num_images: must be a positive integer, '
                         f'got {number!r}')
