"""The presets: what holds where an option is not given."""

from __future__ import annotations

from typing import Any

from torch import nn

from .perturbation import StochasticFeaturePerturbation
from .quantizers import Quantizer

LSQ: dict[str, Any] = dict(type='LSQFakeQuantize', bits=4)
LOG_LSQ: dict[str, Any] = dict(type='LogLSQFakeQuantize', bits=4)
SFP: dict[str, Any] = dict(type='StochasticFeaturePerturbation', p=0.1)
CSD: dict[str, Any] = dict(type='CSDLoss', loss_weight=1.0)
LOGITS: dict[str, Any] = dict(
    type='LogitKD', loss_weight=3.0, temperature=4.0)
PRESETS: dict[str, dict[str, Any]] = {
    'recommended': dict(
        weight=LOG_LSQ,
        activation=dict(LOG_LSQ, observer='mse'),
        perturbation={**SFP, 'p': 0.5},
        distillation=[
            {**CSD, 'fades': 'out', 'fades_by': 100},
            {**LOGITS, 'fades': 'in', 'fades_by': 100},
        ],
        objective='mean',
        batch_norms=dict(num_images=1000)),
    'paper': dict(
        weight=LSQ,
        activation=LSQ,
        perturbation=SFP,
        distillation=CSD,
        objective='sum',
        batch_norms=None),
}
"""What each preset says where an option is not given."""

KINDS: dict[str, type[nn.Module]] = dict(
    weight=Quantizer,
    activation=Quantizer,
    perturbation=StochasticFeaturePerturbation)


class _OfPreset:
    """The default of an option that the preset has a value for."""

    def __repr__(self) -> str:
        return "the preset's"


OF_PRESET: Any = _OfPreset()
"""Stands for the preset's value in signatures."""
