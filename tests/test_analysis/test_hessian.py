"""The operator against the exact Hessian and that of curvlinops."""

import pytest
import torch
from exact_hessian import (
    exact_hessian,
    small_batches,
    small_net,
    softmax_hessian,
)
from torch import nn

from fpq_plugin.analysis import PlainBatch, left_unchanged
from fpq_plugin.analysis.hessian import SurrogateHessian
from fpq_plugin.analysis.measuring import weighted_layers


@pytest.mark.parametrize('quantized', [False, True])
def test_operator_is_the_exact_hessian(quantized):
    model, batches = small_net(quantized), small_batches()
    weights = [w.weight for w in weighted_layers(model).values()]
    with left_unchanged(model, 0, weights):
        operator = SurrogateHessian(model, weights, batches)
        found = operator @ torch.eye(operator.shape[0]).double()
    exact = exact_hessian(model, batches)
    assert exact.norm() > 0.1
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_operator_is_that_of_curvlinops_on_a_float_model():
    from curvlinops import HessianLinearOperator
    model, batches = small_net(False).eval(), small_batches()
    weights = [w.weight for w in weighted_layers(model).values()]
    theirs = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), weights,
        [(b.inputs, b.target) for b in batches])
    ours = SurrogateHessian(model, weights, batches)
    vector = torch.randn(ours.shape[0]).double()
    torch.testing.assert_close(ours @ vector, theirs @ vector)


def test_operator_of_linear_softmax_is_its_closed_form():
    model = nn.Linear(4, 3, bias=False).double()
    inputs = torch.randn(10, 4).double()
    batches = [
        PlainBatch(inputs[:7], torch.randint(3, (7, ))),
        PlainBatch(inputs[7:], torch.randint(3, (3, )))
    ]
    exact = softmax_hessian(inputs, model.weight.detach())
    operator = SurrogateHessian(model, [model.weight], batches)
    torch.testing.assert_close(operator @ torch.eye(12).double(), exact)


def test_each_batch_of_a_product_is_reported():
    model, batches = small_net(False).eval(), small_batches(3)
    weights = [w.weight for w in weighted_layers(model).values()]
    steps = []
    operator = SurrogateHessian(model, weights, batches,
                                lambda: steps.append(1))
    operator @ torch.randn(operator.shape[0]).double()
    assert len(steps) == 3
