"""Checkpoints: a model from one, what a run starts from, older releases'."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from mmengine import Config
from mmengine.hooks import EMAHook
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn

from .._compat.files import load_file, other_checkpoint
from ..convert import to_float
from ..joints import Joint
from ..options import type_name
from ..quantizers import describe, named_quantizers
from ..recipe import Recipe
from ..state import (
    bare_state,
    complete_state,
    dropped_keys,
    first_few,
    float_state,
    load_exactly,
    quantizer_bits,
    refuse_other_architecture,
    refuse_other_quantization,
    refuse_unlike_part,
    stored_quantizers,
)
from .config_checks import assigned, is_fpq_hook, recipe_of
from .model_families import convert_mm_model, unwrap


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, in full precision, with fresh weights.

    Args:
        cfg (Config): The config of a run.

    Returns:
        nn.Module: With the config's data preprocessor, for one process.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(model_cfg))


def load_model(config: str | Config,
               checkpoint: str,
               device: str | torch.device = 'cpu') -> nn.Module:
    """Build the model of a config, quantized or not, and load its checkpoint.

    No Runner, teacher or data set is made. The model answers as ``mim test``
    saw it; SFP and CSD have no part in it. A config without an FPQHook, or
    with one that is off, has a full-precision model.

    Args:
        config (str | Config): The config that the model was trained with.
        checkpoint (str): Path or URL of the checkpoint.
        device (str | torch.device): Where the model goes. Defaults to 'cpu'.

    Returns:
        nn.Module: The model in eval mode. ``model._config`` and
        ``model._dataset_meta`` are set, as mmpretrain's inferencers ask.

    Raises:
        ValueError: If the checkpoint is not of the config's architecture or
            quantization.
    """
    cfg = Config.fromfile(config) if isinstance(config, str) else config
    model = build_model(cfg)
    recipe = recipe_of(cfg)
    content = load_file(checkpoint)
    state = bare_state(content)
    what = f'the checkpoint {checkpoint!r}'
    if recipe is not None and not recipe.is_float():
        convert_mm_model(model, recipe)
        refuse_missing_target(content, recipe, what)
        if recipe.target is not None:
            recipe.attach_joints(model, stored_joints(content, checkpoint))
        refuse_other_quantization(
            model, state, what,
            'Use the config that the model was trained with.',
            quantizers_of(content, model))
    else:
        if quantizer_bits(state):
            raise ValueError(
                f'{what} was trained with FPQ, and the config has no FPQHook, '
                'or one that is off: its model would answer with the latent '
                "weights. Use the run's own config, with its FPQHook")
        refuse_other_architecture(float_state(model), state, what)
    load_exactly(model, state)
    model._config = cfg
    model._dataset_meta = content.get('meta', {}).get('dataset_meta')
    return model.to(device).eval()


def refuse_latent_weights(model: nn.Module,
                          state: Mapping[str, Tensor]) -> None:
    """Refuse weights of FPQ for a model that is not quantized like them.

    mmengine calls it (by a patch) before it loads anything.

    Args:
        model (nn.Module): The model to be filled.
        state (Mapping[str, Tensor]): The state to be loaded.

    Raises:
        ValueError: With the way out.
    """
    refuse_unlike_part(unwrap(model), state)


# -- what a run starts from -----------------------------------------------

def starts_from_teacher(runner: Runner, model: nn.Module,
                        teacher: str | None) -> bool:
    """Settle what a run starts from; refuse random weights.

    A cluster starts each run with ``resume``, the first one too. Where there
    is nothing to resume yet, the run starts as it would without.

    Args:
        runner (Runner): The runner, before it loads anything.
        model (nn.Module): Its model.
        teacher (str, optional): The hook's ``teacher``.

    Returns:
        bool: Whether only ``teacher`` gives the student its weights.

    Raises:
        ValueError: If there are no full-precision weights, or the file named
            is missing or no checkpoint; the message names the key.
    """
    resuming = runner._resume
    if resuming and _resumes(runner):
        return False
    if runner._load_from is not None:
        if '://' not in runner._load_from:
            _require_checkpoint(runner._load_from, 'load_from')
        return False
    pretrained = [
        name for name, module in model.named_modules()
        if _is_pretrained(getattr(module, 'init_cfg', None))
    ]
    if not pretrained and teacher is None:
        if resuming:
            raise ValueError('resume: there is no checkpoint in '
                             f'{runner.work_dir!r}, and nothing to start '
                             'from either. Start the run without --resume, '
                             'with load_from, or set fpq.teacher.')
        raise ValueError(
            'FPQ starts from a full-precision model, and none is given: set '
            'load_from to its checkpoint (or fpq.teacher, or an init_cfg of '
            'type Pretrained in the model)')
    left = [
        name for name, child in model.named_children()
        if not any(p.split('.')[0] == name for p in pretrained)
        and any(True for _ in child.parameters())
    ]
    if pretrained and '' not in pretrained and left and teacher is None:
        runner.logger.warning(
            'FPQ: init_cfg gives full-precision weights to '
            f'{first_few(pretrained)} only; the teacher starts with random '
            f'weights in {first_few(left)}')
    return not pretrained


def _resumes(runner: Runner) -> bool:
    """Whether there is something to resume; else the run starts anew.

    A full-precision ``load_from`` is what a run starts from, not what it
    resumes.
    """
    source = runner._load_from
    if source is not None and not _is_full_precision(source):
        return True
    last = last_checkpoint(runner.work_dir)
    if last is not None:
        if source is not None:
            runner.logger.warning(
                f'FPQ resumes {last}: load_from, {source}, is of full '
                'precision, so it is what the run once started from')
        runner._load_from = None
        return True
    if source is None:
        source = _written_load_from(runner.cfg)
    runner.logger.warning(
        f'FPQ: there is nothing in {runner.work_dir} to resume yet; the run '
        'starts from its full-precision weights')
    runner._load_from, runner._resume = source, False
    return False


def _written_load_from(cfg: Config) -> str | None:
    """The ``load_from`` in the config's file.

    The packages' train.py sets it to None where ``--resume`` is given.
    """
    if cfg.filename is None or not osp.isfile(cfg.filename):
        return None
    return Config.fromfile(cfg.filename).get('load_from')


def last_checkpoint(folder: str) -> str | None:
    """The checkpoint that MMEngine resumes of itself, None if none yet.

    Raises:
        ValueError: If the file that is named is not there.
    """
    path = find_latest_checkpoint(folder)
    if path is None or '://' in path or (path and osp.exists(path)):
        return path
    note = osp.join(folder, 'last_checkpoint')
    raise ValueError(
        f'resume: {note!r} names {path!r}, and there is no such file; if the '
        'folder was moved, name the checkpoint by --resume CKPT'
        f'{other_checkpoint(note)}')


def _is_full_precision(path: str) -> bool:
    """Whether a checkpoint is not FPQ's."""
    return not quantizer_bits(bare_state(_require_checkpoint(path, 'resume')))


def _require_checkpoint(path: str, key: str) -> dict:
    if '://' not in path and not osp.isfile(path):
        raise ValueError(f'{key}: no file {path!r}')
    try:
        return load_file(path)
    except ValueError as error:
        raise ValueError(f'{key}: {error}') from error


def _is_pretrained(init_cfg: Any) -> bool:
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    # By name, with its scope or without, or by class.
    return any(
        isinstance(cfg, dict) and type_name(cfg.get('type')).rpartition('.')[2]
        in ('Pretrained', 'PretrainedInit') for cfg in cfgs)


# -- how a checkpoint was made, of older releases too ---------------------

def stored_joints(checkpoint: Mapping[str, Any], path: str) -> list[Joint]:
    """The joints that a checkpoint was trained with.

    Raises:
        ValueError: If it was trained without a target.
    """
    stored = ((checkpoint.get('meta') or {}).get('fpq') or {}).get('joints')
    if stored is None:
        raise ValueError(
            f'fpq.target: the checkpoint {path} was trained without a '
            'target, and would answer otherwise with one. Leave the option '
            'out here; fpq export --target gives an exported file what the '
            'engine wants, and measures what it costs')
    return [Joint(each['module'], each['side'], tuple(each['layers']),
                  each['why']) for each in stored]


def refuse_missing_target(checkpoint: Mapping[str, Any], recipe: Recipe,
                          what: str) -> None:
    """Refuse a checkpoint of a run with a target for one without.

    Its keys need not tell: a bias is rounded without a quantizer.

    Raises:
        ValueError: Naming the option.
    """
    meta = (checkpoint.get('meta') or {}).get('fpq') or {}
    if recipe.target is None and meta.get('joints'):
        raise ValueError(
            f'{what} was trained for an engine, with the option target, which '
            'is missing here: set fpq.target as in the config that it was '
            'trained with')


def described_joints(joints: Sequence[Joint]) -> list[dict[str, Any]]:
    """Joints as a checkpoint holds them."""
    return [asdict(joint) for joint in joints]


def other_recipe(checkpoint: Mapping[str, Any], recipe: Recipe) -> str:
    """What to say of a checkpoint that another recipe has trained.

    Args:
        checkpoint (Mapping): The checkpoint.
        recipe (Recipe): The one that is to go on with it.

    Returns:
        str: Empty if it is the same, or if nothing tells.
    """
    made = ((checkpoint.get('meta') or {}).get('fpq') or {}).get('recipe')
    options = None if made else _options_of(checkpoint)
    if options is not None:
        try:
            made = Recipe.of({'preset': 'paper', **options}).describe()
        except (TypeError, ValueError, ImportError):
            return ''  # another release's options
    own = recipe.describe()
    parts = [text and text.partition(': ')[2] for text in (made, own)]
    if not made or parts[0] == parts[1]:
        return ''
    return (f'it was trained with {made}, and goes on with {own}. '
            "preset='paper' was the default once")


def quantizers_of(checkpoint: Mapping[str, Any],
                  model: nn.Module) -> dict[str, dict]:
    """The descriptions of a checkpoint's quantizers, by name.

    Release 0.1.0 wrote none. Its checkpoints hold their config, as text, and
    what that makes of the model, with 0.1.0's defaults, is described instead.

    Args:
        checkpoint (Mapping): The checkpoint.
        model (nn.Module): The model to be filled, converted; it stays as it
            is.

    Returns:
        dict: Empty if nothing tells.
    """
    found = stored_quantizers(checkpoint)
    options = None if found else _options_of(checkpoint)
    if options is None:
        return found
    twin = to_float(copy.deepcopy(model))
    try:
        convert_mm_model(twin, Recipe.of({'preset': 'paper', **options}))
    except (TypeError, ValueError, ImportError, AttributeError):
        return {}  # another release's options; keys and shapes still tell
    return {name: describe(quantizer)
            for name, quantizer in named_quantizers(twin, False).items()}


def complete(state: MutableMapping[str, Tensor], model: nn.Module) -> None:
    """Put into a state what the model's own hooks keep out of it.

    Args:
        state (MutableMapping): The state dict of a checkpoint to be saved.
        model (nn.Module): The model, without a wrapper.
    """
    if dropped_keys(model, state):
        for key, value in complete_state(model).items():
            state.setdefault(key, value.cpu())


def refuse_averaged_part(runner: Runner, model: nn.Module) -> None:
    """Refuse an EMA that would average a part of the model's state only.

    Args:
        runner (Runner): The runner, before it trains.
        model (nn.Module): Its model, without a wrapper.

    Raises:
        ValueError: Naming the hook and the keys.
    """
    dropped = dropped_keys(model, model.state_dict())
    if dropped and any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise ValueError(
            f'EMAHook: {type(model).__name__} keeps {first_few(dropped, 2)} '
            'out of its state_dict, so a checkpoint would mix averaged '
            'weights with steps that are not. Leave the EMAHook out')


def refuse_averaged_twice(runner: Runner, model: nn.Module) -> None:
    """Refuse an EMA that goes by the state's keys, where steps are shared.

    Raises:
        ValueError: Naming the hook and its option.
    """
    names = named_quantizers(model, remove_duplicate=False)
    shared = len(names) > len(named_quantizers(model))
    if shared and any(
            isinstance(hook, EMAHook) and hook.ema_cfg.get('update_buffers')
            for hook in runner.hooks):
        raise ValueError(
            'EMAHook.update_buffers: with fpq.target layers share fake '
            'quantizers, and their steps would be averaged once for each '
            'name. Leave the option out')


def _options_of(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The hook's options in the text of the config in a checkpoint."""
    text = (checkpoint.get('meta') or {}).get('cfg')
    if not isinstance(text, str):
        return None
    hooks: list[Any] = []
    for name in ('default_hooks', 'custom_hooks'):
        for value in assigned(text, name) or []:
            hooks += value.values() if isinstance(value, dict) else value
    for options in hooks:
        if is_fpq_hook(options):
            return {key: value for key, value in options.items()
                    if key not in ('type', 'priority')}
    return None
