"""The teacher: made from the student, filled, kept for a resume."""

from __future__ import annotations

import copy
import hashlib
import os
import os.path as osp
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .convert import to_float
from .safe_loading import load_file
from .state import (
    bare_state,
    float_state,
    load_exactly,
    refuse_other_architecture,
)


def copy_float(model: nn.Module) -> nn.Module:
    """A full-precision copy of ``model``, converted or not, for a teacher."""
    teacher = to_float(copy.deepcopy(model))
    teacher.requires_grad_(False)
    return teacher


def fill_from_student(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's latent weights and statistics to the teacher."""
    load_exactly(teacher, float_state(student))


def fill_from_file(teacher: nn.Module, path: str, key: str) -> None:
    """Load the teacher's weights from a full-precision checkpoint.

    Args:
        teacher (nn.Module): Model to fill.
        path (str): Checkpoint file or URL.
        key (str): The option's name, for messages.

    Raises:
        ValueError: If the file is missing, no checkpoint, quantized, or of
            another architecture; the message names the keys.
    """
    try:
        state = bare_state(load_file(path))
    except (OSError, ValueError) as error:
        raise ValueError(f'{key}: {error}') from error
    refuse_other_architecture(
        float_state(teacher), state, f'{key}: {path!r}')
    teacher.load_state_dict(state, strict=False)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict, 16 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(
            torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_teacher(teacher: nn.Module, path: str) -> None:
    """Write the teacher's weights, whole or not at all."""
    if not osp.exists(path):
        part = f'{path}.part'
        torch.save(dict(state_dict=teacher.state_dict()), part)
        os.replace(part, path)
