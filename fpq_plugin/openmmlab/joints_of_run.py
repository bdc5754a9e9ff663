"""The joints of a run: of the checkpoint that it loads, or found anew."""

from __future__ import annotations

from mmengine.runner import Runner
from torch import nn

from .._compat.files import load_file
from .._compat.restoring import same_randomness
from ..joints import Placing
from ..recipe import Recipe
from ..state import bare_state, quantizer_bits
from .checkpoints import last_checkpoint, stored_joints
from .model_families import calibration_forward


def joints_of_run(runner: Runner, model: nn.Module, recipe: Recipe,
                  training: bool) -> Placing:
    """Where a run's model has, or gets, quantizers beside the layers'.

    A checkpoint of FPQ says where it has them. A run that starts from full
    precision watches one forward, on a batch of its training data.

    Args:
        runner (Runner): The runner, before it loads the checkpoint.
        model (nn.Module): Its model, converted, without a wrapper.
        recipe (Recipe): The options, with a target.
        training (bool): Whether it trains.

    Returns:
        Placing: The places.

    Raises:
        ValueError: If the checkpoint was trained without a target.
    """
    path = runner._load_from
    if path is None and runner._resume:
        path = last_checkpoint(runner.work_dir)
    if path is not None:
        content = load_file(path)
        if quantizer_bits(bare_state(content)):
            return Placing(tuple(stored_joints(content, path)), ())
    if not training:  # there is nothing to test; the Runner says so
        return Placing((), ())
    batch = next(iter(runner.train_dataloader))
    forward = calibration_forward(model)
    with same_randomness():
        return recipe.place_joints(model, lambda: forward(model, batch))
