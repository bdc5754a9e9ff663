"""A config's FPQHook: found, forgotten, or with options nobody reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine import Config
from mmengine.runner import Runner

from ..options import refuse_unknown, type_name
from ..recipe import Recipe


def recipe_of(cfg: Config) -> Recipe | None:
    """The recipe of a config's FPQHook, None if it has none.

    Raises:
        ValueError: If an option is wrong, as :class:`Recipe`, or if there
            are two hooks.
    """
    hooks = dict(_hooks_in(cfg))
    _refuse_two(list(hooks))
    for options in hooks.values():
        return Recipe.of(_without_type(options))
    return None


def is_fpq_hook(options: Any) -> bool:
    """Whether these are a config's options of an FPQHook, however named."""
    if not isinstance(options, dict):
        return False
    return type_name(options.get('type', '')).rpartition('.')[2] == 'FPQHook'


def check_config(runner: Runner) -> None:
    """Refuse a config that asks for what would not be trained.

    Args:
        runner (Runner): The runner, before it trains or tests.

    Raises:
        ValueError: If the hook is forgotten or there twice, or if options
            are where nobody reads them; the message names the key.
    """
    hooks = dict(_hooks_in(runner.cfg))
    number = sum(type(hook).__name__ == 'FPQHook' for hook in runner.hooks)
    if number > 1:
        _refuse_two(list(hooks) + ['Runner.register_hook'])
    if number == 0:
        _refuse_forgotten(runner.cfg)
    elif len(hooks) == 1:
        for key, options in hooks.items():
            refuse_unread(runner.cfg, key, _without_type(options))


def _refuse_two(keys: list[str]) -> None:
    if len(keys) > 1:
        raise ValueError(
            f'{keys[1]}: a second FPQHook, beside {keys[0]}; each would '
            'convert and train the model. Keep one, with all the options')


def _refuse_forgotten(cfg: Config) -> None:
    """Refuse a config that has a fragment's ``fpq`` and no hook.

    ``default_hooks = dict(fpq=_base_.fpq)`` is a line of the user's, since
    mmengine refuses two bases with one key. Without it the model would be
    trained and tested in full precision, and nothing would say so.
    """
    written = cfg.get('fpq')
    if is_fpq_hook(written):
        raise ValueError(
            'default_hooks.fpq: missing; the config has the fpq of a '
            'fragment but no FPQHook, so nothing would be quantized. Add '
            'the line default_hooks = dict(fpq=_base_.fpq); for a run in '
            'full precision leave the fragment out, or set fpq = None')
    if (isinstance(written, dict) and 'type' not in written
            and set(written) & set(Recipe.options())):
        raise ValueError(
            f'fpq.{next(iter(written))}: nobody reads it, the config has no '
            'FPQHook, so nothing would be quantized. Put the hook in: '
            "default_hooks = dict(fpq=dict(type='FPQHook', ...))")


def refuse_unread(cfg: Config, key: str, used: dict[str, Any]) -> None:
    """Refuse options that are not where the hook reads its own.

    Args:
        cfg (Config): The config.
        key (str): Where it has its hook, as ``default_hooks.fpq``.
        used (dict): The hook's options.

    Raises:
        ValueError: Naming the option, and where it goes.
    """
    written = cfg.get('fpq')
    if written is not used and _is_ours(written):
        _refuse_other_fragment(cfg, key, _without_type(written), used)
    elif written is None and 'fpq' in cfg:
        before = _said(cfg)
        if before and used in [_without_type(each) for each in before
                               if isinstance(each, Mapping)]:
            raise ValueError(
                f'fpq: None at the top level turns nothing off, {key} has '
                'the options of a base. For a run in full precision set '
                f'{key}.weight and {key}.activation to None, or inherit the '
                'full-precision config')
    recipe = Recipe.of(used)
    for option in Recipe.options():
        if (option in cfg and not _is_said(option, cfg[option], used)
                and _asks_otherwise(option, cfg[option], recipe)):
            raise ValueError(
                f'{option}: nobody reads it at the top level of the config. '
                f'Set {_as_option(key)}.{option}; a variable of your own '
                'needs another name')


def _refuse_other_fragment(cfg: Config, key: str, written: dict[str, Any],
                           used: dict[str, Any]) -> None:
    """Refuse a top-level ``fpq`` with options that the hook does not have.

    What the hook's own options change from the fragment's is meant so:
    ``default_hooks = dict(fpq=dict(_base_.fpq, skip=['head']))``.
    """
    refuse_unknown('fpq', written, Recipe.options())
    if written == used:
        return
    try:
        asked = Recipe.of(written)
    except (TypeError, ValueError) as error:
        raise type(error)(f'{error} (This is the fpq at the top level of the '
                          f'config; the hook reads {key}.)') from error
    recipe, said = Recipe.of(used), _said(cfg)
    if said is not None and hook_is_later(cfg.text or '') and (
            said[-1:] == [_plain(cfg.fpq)]):
        return  # it has read the fragment, and says otherwise on purpose
    for option, value in written.items():
        if (_meaning(asked, option) == _meaning(recipe, option)
                or _is_said(option, value, used)):
            continue
        if option in used and not _changed_later(option, value, used, said):
            continue
        name, wanted = _leaf(option, value, used.get(option))
        raise ValueError(
            f'fpq.{name}: {wanted!r} at the top level of the config is not '
            f'read, the hook has its own options in {key}. Put it there: '
            f'--cfg-options {_as_option(key)}.{name}=..., or in the file '
            f'dict(_base_.fpq, {option}=...) as the hook')


def _changed_later(option: str, value: Any, used: dict[str, Any],
                   said: list[Any] | None) -> bool:
    """Whether the top level changed after the hook had read it."""
    if said is None:
        # Nothing tells; what equals the default was hardly set on purpose.
        preset = {} if option == 'preset' else {
            k: v for k, v in used.items() if k == 'preset'}
        own = Recipe.of({**preset, option: used[option]})
        return _meaning(own, option) == _meaning(Recipe.of(preset), option)
    texts = [each.get(option) for each in said if isinstance(each, Mapping)]
    if not texts or texts[-1] != _plain(value):
        return True  # --cfg-options
    return _plain(used[option]) in texts[:-1]


def _said(cfg: Config) -> list[Any] | None:
    """What ``fpq`` was after each file; None if the text does not tell."""
    if cfg.filename is None:
        return None
    values = assigned(cfg.text or '', 'fpq')
    return None if values is None else list(merged(values))


def _asks_otherwise(option: str, value: Any, recipe: Recipe) -> bool:
    """Whether a variable of an option's name could be meant as the option."""
    try:
        asked = Recipe.of({'preset': recipe.preset, option: value})
    except (TypeError, ValueError, ImportError):
        return False  # teacher = dict(...): something else of this name
    return _meaning(asked, option) != _meaning(recipe, option)


def _is_said(option: str, value: Any, used: Mapping[str, Any]) -> bool:
    """Whether the hook has the option too, in the same words."""
    return option in used and _plain(used[option]) == _plain(value)


def _meaning(recipe: Recipe, option: str) -> Any:
    """What an option comes to; two of them stand for others."""
    stands_for = dict(bits=('weight', 'activation'),
                      preset=('weight', 'activation', 'perturbation',
                              'distillation', 'objective'))
    return [_plain(getattr(recipe, each)) or None
            for each in stands_for.get(option, (option, ))]


def _hooks_in(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Where a config has FPQHooks, and their options."""
    for name, options in (cfg.get('default_hooks') or {}).items():
        if is_fpq_hook(options):
            yield f'default_hooks.{name}', options
    for number, options in enumerate(cfg.get('custom_hooks') or []):
        if is_fpq_hook(options):
            yield f'custom_hooks[{number}]', options


def _as_option(key: str) -> str:
    """A key as ``--cfg-options`` takes it."""
    return re.sub(r'\[(\d+)\]', r'.\1', key)


def _is_ours(written: Any) -> bool:
    """Whether a top-level ``fpq`` is a fragment, or meant as one."""
    return is_fpq_hook(written) or (
        isinstance(written, dict) and 'type' not in written)


def _without_type(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ('type', 'priority')}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _leaf(name: str, value: Any, other: Any) -> tuple[str, Any]:
    """The full name and value of the first thing that differs."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        both = [key for key in value if key in other]
        for key in both or value:
            item = value[key]
            if item != other.get(key):
                return _leaf(f'{name}.{key}', item, other.get(key))
    return name, value


def assigned(text: str, name: str) -> list[Any] | None:
    """What the files of a config assign to a variable, in their order.

    Args:
        text (str): MMEngine's ``Config.text``: bases first, each file after a
            line with its path.
        name (str): A variable of the top level.

    Returns:
        list | None: The values; None if one of them, or a file, is more than
        plain data.
    """
    values = []
    try:
        for tree in _files(text):
            for node in tree.body:
                if _reads_base_lazily(node):
                    return None
                if isinstance(node, ast.Assign) and any(
                        isinstance(target, ast.Name) and target.id == name
                        for target in node.targets):
                    values.append(_literal(node.value))
    except (SyntaxError, ValueError):
        return None
    return values


def hook_is_later(text: str) -> bool:
    """Whether a file after the last with an ``fpq`` takes it into the hook.

    As ``default_hooks = dict(fpq=dict(_base_.fpq, perturbation=...))``.

    Args:
        text (str): MMEngine's ``Config.text``, whose files can be parsed.
    """
    last = dict(fpq=-1, default_hooks=-1)
    for number, tree in enumerate(_files(text)):
        for node in tree.body:
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                name = getattr(target, 'id', '')
                if name == 'fpq' or (name == 'default_hooks'
                                     and "attr='fpq'" in ast.dump(node)):
                    last[name] = number
    return last['default_hooks'] > last['fpq']


def merged(values: list[Any]) -> Iterator[Any]:
    """Each value merged over those before, as MMEngine merges bases."""
    last: Any = {}
    for value in values:
        last = _over(last, value)
        yield last


def _files(text: str) -> Iterator[ast.Module]:
    """The syntax trees of the files in a config's text."""
    for part in re.split(r'(?m)^[^#\'"=()\n]+\.py$', text):
        yield ast.parse(part)


def _reads_base_lazily(node: ast.stmt) -> bool:
    """Whether it is new-style ``with read_base():``, whose text is absent."""
    return isinstance(node, ast.With) and 'read_base' in ast.dump(node)


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if (not isinstance(node.func, ast.Name) or node.func.id != 'dict'
                or node.args or any(k.arg is None for k in node.keywords)):
            raise ValueError('not plain data')
        return {str(k.arg): _literal(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError('not plain data')
        return {_literal(key): _literal(value)  # type: ignore[arg-type]
                for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)


def _over(base: Any, value: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(value, Mapping):
        return value
    rest = {k: v for k, v in value.items() if k != '_delete_'}
    if value.get('_delete_'):
        return rest
    return {**base, **{k: _over(base.get(k), v) for k, v in rest.items()}}
