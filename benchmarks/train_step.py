"""One training step, the thing that is timed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fpq_plugin


class TrainStep:
    """Forward and backward with cross-entropy, without optimizer.

    Args:
        model (nn.Module): The model; it is put into training mode.
        x (Tensor): Images, (N, 3, H, W).
        y (Tensor): Labels, (N,).
        distiller (fpq_plugin.Distiller, optional): Adds its loss.
        teacher (nn.Module, optional): Runs a forward of its own before the
            model's, in eval mode, without gradient.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor,
                 distiller: fpq_plugin.Distiller | None = None,
                 teacher: nn.Module | None = None) -> None:
        model.train()
        self.model = model
        self.x, self.y = x, y
        self.distiller = distiller
        self.teacher = teacher

    def __call__(self) -> None:
        if self.teacher is not None:
            with torch.no_grad():
                self.teacher(self.x)
        self.model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.x), self.y)
        if self.distiller is not None:
            loss = loss + self.distiller.loss()
        loss.backward()

    def compile(self) -> TrainStep:
        """Have ``torch.compile`` trace the models, as MMEngine's ``compile``.

        Returns:
            TrainStep: Itself.
        """
        self.model = torch.compile(self.model)
        if self.teacher is not None:
            self.teacher = torch.compile(self.teacher)
        return self

    def in_channels_last(self) -> TrainStep:
        """Lay images and weights out with the channels innermost.

        Returns:
            TrainStep: Itself.
        """
        models = [self.model, self.teacher,
                  self.distiller and self.distiller.teacher]
        for model in filter(None, models):
            model.to(memory_format=torch.channels_last)
        self.x = self.x.contiguous(memory_format=torch.channels_last)
        return self
