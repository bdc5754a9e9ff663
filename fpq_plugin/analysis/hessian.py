"""The task loss's Hessian as a linear operator of curvlinops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from curvlinops import HessianLinearOperator
from torch import Tensor, nn

from .._compat.versions import twice_differentiable_attention
from .batches import Batch


class SurrogateHessian(HessianLinearOperator):
    """Hessian of the mean task loss in the latent weights.

    The loss is that of the straight-through surrogate: where the model
    rounds, the derivative is the identity, and the second derivative zero.
    A product ``H v`` is the gradient of ``v . grad L``, two backwards.
    curvlinops takes it by ``torch.func``, which stops at an autograd function
    without ``setup_context``, as the straight-through ones of FPQ and of
    Brevitas are; so this class takes it by :func:`torch.autograd.grad`. All
    else is curvlinops's.

    Args:
        model (nn.Module): The model, in eval mode.
        parameters (Sequence[nn.Parameter]): The weights; they need gradient.
        batches (Sequence[Batch]): The data.
        on_product (Callable, optional): Called after each batch of a
            product. Defaults to None.

    Examples:
        >>> import torch
        >>> from fpq_plugin.analysis import PlainBatch
        >>> from fpq_plugin.analysis.hessian import SurrogateHessian
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> batch = PlainBatch(torch.eye(2), torch.zeros(2, 1),
        ...                    torch.nn.functional.mse_loss)
        >>> SurrogateHessian(model, [model.weight], [batch]) @ torch.eye(2)
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(self,
                 model: nn.Module,
                 parameters: Sequence[nn.Parameter],
                 batches: Sequence[Batch],
                 on_product: Callable[[], None] | None = None) -> None:
        self._on_product = on_product
        nothing = torch.empty(0)
        super().__init__(
            lambda batch: batch.loss(model),
            _MeanLoss(),
            list(parameters), [(batch, nothing) for batch in batches],
            check_deterministic=False,
            batch_size_fn=len)

    def _matmat_batch(self, X: Batch, y: Tensor,
                      M: list[Tensor]) -> list[Tensor]:
        with torch.enable_grad(), twice_differentiable_attention():
            loss = self._loss_func(self._model_func(X), y)
            if not loss.requires_grad:
                return [torch.zeros_like(m) for m in M]
            gradients = torch.autograd.grad(
                loss,
                self._params,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True)
        # Not those of weights that have no part in the loss, or a linear one.
        parts = [i for i, g in enumerate(gradients) if g.requires_grad]
        if not parts:
            return [torch.zeros_like(m) for m in M]
        columns = [
            torch.autograd.grad(
                [gradients[i] for i in parts],
                self._params,
                [M[i].select(-1, column) for i in parts],
                retain_graph=True,
                materialize_grads=True)
            for column in range(M[0].shape[-1])
        ]
        if self._on_product is not None:
            self._on_product()
        return [torch.stack(column, dim=-1) for column in zip(*columns)]


class _MeanLoss:
    """What the model returns here is the mean loss already."""

    reduction = 'mean'

    def __call__(self, loss: Tensor, nothing: Tensor) -> Tensor:
        return loss
