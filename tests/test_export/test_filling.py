"""Weights of few bits keep their values in the whole range of int8."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exported_models import net, quantized, weights_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpq_plugin.export.build import trace_model
from fpq_plugin.export.filling import fill_weights
from fpq_plugin.export.integers import IntegerGrid, narrowest_type
from fpq_plugin.targets import ONNXRUNTIME


def stored_weights(model, x):
    """Integers, steps and zero points of a file's weights, in its order."""
    built = trace_model(model, x, ONNXRUNTIME).build().model
    found = []
    for node in built.graph:
        if node.op_type == 'DequantizeLinear' and len(node.inputs) == 3 and (
                node.inputs[0].is_initializer()):
            found.append([value.const_value.numpy().astype(np.float64)
                          for value in node.inputs])
    return found


@given(st.integers(2, 8), st.integers(2, 8), st.booleans(), st.booleans(),
       st.integers(0, 2**31))
def test_filled_weights_are_the_trained_ones(weight, activation, symmetric,
                                             per_channel, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 3, 6, 6, generator=generator)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    quantized(model, x, activation=dict(bits=activation),
              weight=dict(bits=weight, symmetric=symmetric,
                          per_channel=per_channel), first_last_bits=None)
    (integers, steps, zeros), = stored_weights(model, x)
    turn = (-1, 1, 1, 1) if per_channel else ()
    with torch.no_grad():
        expected = model[0].weight_quantizer(model[0].weight)
    np.testing.assert_allclose(
        (integers - zeros.reshape(turn)) * steps.reshape(turn), expected,
        rtol=1e-6, atol=1e-7)
    assert integers.min() >= -128
    assert integers.max() <= 127
    # Filled, unless the sums of pairs would pass 16 bits then.
    if weight < 8 and not zeros.any():
        largest = np.abs(integers).max()
        # (2^q - 1) pairs of the largest stay in 16 bits.
        assert 2 * (2**activation - 1) * largest < 2**15
        room = min(127, (2**15 - 1) // (2 * (2**activation - 1)))
        assert 2 * largest > min(room, 127) - 1 or not largest


@pytest.mark.parametrize('saturates', [False, True])
def test_four_bits_saturate_nowhere(saturates, tmp_path):
    """So they are int8 on every processor, and eight bits are not."""
    x = torch.randn(40, 3, 8, 8)
    path = tmp_path / 'model.onnx'

    def kinds(weight, activation):
        model = quantized(net(), x, weight=dict(bits=weight),
                          activation=dict(bits=activation),
                          first_last_bits=None)
        built = trace_model(model, x, ONNXRUNTIME).build(
            unsigned_weights=saturates)
        ir.save(built.model, path)
        return {kind for kind in weights_of(path)[1] if kind != 'INT32'}

    assert kinds(4, 4) == kinds(4, 8) == kinds(8, 4) == {'INT8'}
    assert kinds(8, 8) == {'UINT8' if saturates else 'INT8'}


def test_what_a_batch_norm_turned_fits_too():
    """-8 has become 8, and 8 times 16 is none of int8."""
    integers = np.array([[-8, 8], [-8, 7], [1, 0], [0, 0]])
    grid = IntegerGrid(np.ones(4), np.zeros(4), -8, 7, 0,
                       narrowest_type(-8, 7, True, ONNXRUNTIME), integers)
    value = ir.Value(name='weight')
    graph = ir.Graph([], [], nodes=[], name='empty')
    fill_weights(graph, {value: grid}, [], ONNXRUNTIME)
    # Nothing is known of what it is multiplied with: half of the type.
    np.testing.assert_array_equal(
        grid.weight, integers * np.array([[8], [8], [64], [1]]))
    np.testing.assert_array_equal(grid.step, [1 / 8, 1 / 8, 1 / 64, 1])
    assert (grid.low, grid.high) == (-64, 64)


def test_signed_features_are_as_narrow_as_unsigned_ones():
    """-8 to 7 is 0 to 15 around 8, and 127 pairs of 15 stay in 16 bits."""
    x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    four = dict(bits=4, symmetric=True)
    quantized(model, x, weight=four, activation=four, first_last_bits=None)
    (integers, *_), = stored_weights(model, x)
    assert np.abs(integers).max() > 64


def test_biases_get_finer_steps():
    x = torch.rand(5, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    quantized(model, x, weight=dict(bits=4), activation=dict(bits=4),
              first_last_bits=None)
    trained = model[0].weight_quantizer.step().detach().numpy()
    (_, steps, _), _ = stored_weights(model, x)
    np.testing.assert_array_equal(np.log2(trained.reshape(-1) / steps) % 1, 0)
    assert (trained.reshape(-1) / steps >= 8).all()
