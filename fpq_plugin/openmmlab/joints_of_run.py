"""The joints of a run: of the checkpoint that it loads, or found anew.

Or given to a trained model, for the export.
"""

from __future__ import annotations

from dataclasses import replace

from mmengine.runner import Runner, set_random_seed
from torch import nn

from .._compat.files import load_file
from .._compat.restoring import same_randomness
from ..calibrate import calibrate
from ..joints import Placing
from ..layer_table import LayerRow
from ..recipe import Recipe
from ..state import bare_state, quantizer_bits
from .calibration import calibration_batches
from .checkpoints import last_checkpoint, stored_joints
from .model_families import calibration_forward

# One image would do; a batch norm in training mode would not take it.
WATCHED = 2


def join_run(runner: Runner, model: nn.Module, recipe: Recipe,
             training: bool) -> tuple[list[LayerRow], Placing]:
    """Give a run's model its quantizers beside the layers.

    A checkpoint of FPQ says where it has them. A run that starts from full
    precision watches one forward, on a batch of its training data.

    Args:
        runner (Runner): The runner, before it loads the checkpoint.
        model (nn.Module): Its model, converted, without a wrapper, changed in
            place.
        recipe (Recipe): The options, with a target.
        training (bool): Whether it trains.

    Returns:
        tuple: A row for each; and the places.

    Raises:
        ValueError: If the checkpoint was trained without a target.
    """
    path = runner._load_from
    if path is None and runner._resume:
        path = last_checkpoint(runner.work_dir)
    if path is not None:
        content = load_file(path)
        if quantizer_bits(bare_state(content)):
            joints = tuple(stored_joints(content, path))
            return recipe.attach_joints(model, joints), Placing(joints, ())
    if not training:  # there is nothing to test; the Runner says so
        return [], Placing((), ())
    forward = calibration_forward(model)
    with same_randomness():
        # In this process: the loader's workers and its sampler stay as new.
        batch = next(calibration_batches(
            runner.train_dataloader, WATCHED, runner.seed or 0,
            progress=False))
        return recipe.find_joints(model, lambda: forward(model, batch))


def join_late(model: nn.Module, recipe: Recipe, target: str) -> int:
    """Give a trained model what an engine wants, calibrated, not trained.

    Args:
        model (nn.Module): What :func:`~fpq_plugin.load_model` gave, changed
            in place. Its trained steps stay.
        recipe (Recipe): The options that it was trained with.
        target (str): The engine.

    Returns:
        int: How many tensors are quantized now that were not.

    Raises:
        ValueError: If the config has no training data to calibrate on, or an
            option does not go with the engine.
    """
    cfg = model._config
    if cfg.get('train_dataloader') is None:
        raise ValueError(
            f'target: the checkpoint was trained without one. What {target} '
            'wants besides is calibrated on training images, and the config '
            'has no train_dataloader')
    wanted = replace(recipe, target=target)
    forward = calibration_forward(model)
    with same_randomness():
        set_random_seed(0)
        loader = Runner.build_dataloader(cfg.train_dataloader)
        batches = list(calibration_batches(
            loader, recipe.calibration_images(), 0, progress=False))
        rows, _ = wanted.find_joints(
            model, lambda: forward(model, batches[0]))
        if rows:
            calibrate(model, batches, forward)
    return len(rows)
