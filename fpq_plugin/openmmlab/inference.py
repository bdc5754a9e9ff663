"""A trained model for inference, in one call."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from mmengine import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from .._compat.files import load_file
from ..state import (
    bare_state,
    float_state,
    load_exactly,
    quantizer_bits,
    refuse_other_architecture,
    refuse_other_quantization,
    refuse_unlike_part,
)
from .config_checks import recipe_of
from .model_families import convert_mm_model, unwrap
from .stored import quantizers_of


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
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(model_cfg))
    recipe = recipe_of(cfg)
    content = load_file(checkpoint)
    state = bare_state(content)
    what = f'the checkpoint {checkpoint!r}'
    if recipe is not None and not recipe.is_float():
        convert_mm_model(model, recipe)
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
