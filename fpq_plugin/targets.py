"""What an engine takes: rules as data, one entry for each engine.

A model that is right by the ONNX standard may still be one that an engine
cannot open, or runs in float. What is quantized beside the layers, and what
an exported file looks like, depends on the engine by these rules alone. A new
engine is one more :class:`Target`::

    register_target(Target(
        name='mine', title='My engine', features=('INT8', ),
        weights=('INT8', ), zero_points=False, integer_biases=False,
        biases_inside=True, measured=False))
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """An engine's rules.

    Attributes:
        name (str): What options call it.
        title (str): What messages call it.
        features (tuple[str, ...]): Types of the ONNX standard that it takes
            for quantized features, the first that holds a range is used. If
            none does, the range is counted from the lowest integer of the
            first.
        weights (tuple[str, ...]): The same for stored weights.
        zero_points (bool): Whether zero points may be other than 0.
        integer_biases (bool): Whether biases may be INT32.
        biases_inside (bool): Whether a float bias stays in its layer. If
            not, it is added after the layer.
        measured (bool): Whether onnxruntime is the engine, which runs and
            times the file. If not, it computes what the file says, in float,
            unless the export finds the engine itself.
        narrow (str): How a range narrower than its type is kept: 'float', by
            a Clip before QuantizeLinear; 'integer', by one after it, on
            integers, so that a layer before still ends in QuantizeLinear;
            'end', by the end of the type, which the range is moved to, and
            below by an activation that a layer does, where it is not one
            already. Defaults to 'float'.
        fills_weights (bool): Whether weights of fewer bits than their type
            are multiplied by a power of two up to its range, and their steps
            divided: the same values, and biases in finer steps. Defaults to
            False.
        narrow_biases (bool): Whether biases are INT32 at fewer than 8 bits
            as well. Defaults to False.
        joints (frozenset[str]): Operations that it runs on integers if their
            operands and results are quantized, by the names of
            :mod:`fpq_plugin.joints`. Of 'swish' and 'hard_swish' the gate is
            quantized as well. Defaults to none.
        ends_quantized (frozenset[str]): Layers that it runs on integers only
            if their results are quantized as well, of 'conv' and 'linear'.
            Defaults to none.
        answers_quantized (bool): Whether that holds for what the model
            returns, too. Defaults to False.
        mirrored_weights (bool): Whether the lowest integer of a weight is
            minus the highest of its type. Defaults to False.
        endings (tuple[str, ...]): Endings of the files that it takes.
            Defaults to that of ONNX.
    """

    name: str
    title: str
    features: tuple[str, ...]
    weights: tuple[str, ...]
    zero_points: bool
    integer_biases: bool
    biases_inside: bool
    measured: bool
    narrow: str = 'float'
    fills_weights: bool = False
    narrow_biases: bool = False
    joints: frozenset[str] = frozenset()
    ends_quantized: frozenset[str] = frozenset()
    answers_quantized: bool = False
    mirrored_weights: bool = False
    endings: tuple[str, ...] = ('.onnx', )


_TARGETS: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    """Let options name an engine.

    Args:
        target (Target): The engine's rules.

    Returns:
        Target: The same.

    Raises:
        ValueError: If the name is taken.
    """
    if target.name in _TARGETS:
        raise ValueError(f'there is a target {target.name!r} already')
    return _TARGETS.setdefault(target.name, target)


def known_targets() -> list[str]:
    """The names of all targets."""
    return list(_TARGETS)


def target_of(name: str | None) -> Target:
    """The rules of an engine.

    Args:
        name (str, optional): Its name; None: :data:`STANDARD`.

    Returns:
        Target: The rules.

    Raises:
        ValueError: If there is none; the message names those there are.
    """
    if name is None:
        return STANDARD
    if not isinstance(name, str) or name not in _TARGETS:
        raise ValueError(
            f'target must be one of {known_targets()} or None, got {name!r}')
    return _TARGETS[name]


# Any runtime of the standard; the smallest file. onnxruntime 1.24 cannot open
# a Clip, as ReLU6 is one, in front of a QuantizeLinear to four bits; and it
# rounds a float bias that is left inside a layer.
STANDARD = Target(
    name='standard', title='any ONNX runtime', features=('UINT8', 'INT8'),
    weights=('UINT4', 'INT4', 'UINT8', 'INT8'), zero_points=True,
    integer_biases=True, biases_inside=False, measured=True)

# Its kernels: onnxruntime/core/optimizer/qdq_transformer. A convolution is one
# of integers only between DequantizeLinear and QuantizeLinear, and on x86 of
# uint8 features alone; no kernel has four bits.
ONNXRUNTIME = register_target(Target(
    name='onnxruntime', title='onnxruntime', features=('UINT8', ),
    weights=('INT8', ), zero_points=True, integer_biases=True,
    biases_inside=False, measured=True, narrow='integer', fills_weights=True,
    narrow_biases=True,
    joints=frozenset({'add', 'mul', 'cat', 'mean', 'avg_pool', 'sigmoid',
                      'leaky_relu', 'upsample', 'swish', 'hard_swish'}),
    ends_quantized=frozenset({'conv'})))

TENSORRT = register_target(Target(
    name='tensorrt', title='TensorRT', features=('INT8', ),
    weights=('INT8', ), zero_points=False, integer_biases=False,
    biases_inside=True, measured=False, joints=frozenset({'add'})))

# It keeps a range that is narrower than its type inside a layer's kernel only
# if it is kept in float, and computes a sum in the convolution before it if
# both operands and the result are quantized. Where a chain of sums ends in a
# float pool, its last sums stay float as well.
OPENVINO = register_target(Target(
    name='openvino', title='OpenVINO', features=('UINT8', 'INT8'),
    weights=('INT8', ), zero_points=True, integer_biases=False,
    biases_inside=True, measured=False,
    joints=frozenset({'add', 'mean', 'avg_pool'})))

# XNNPACK, by executorch/backends/xnnpack: a layer is one of integers only
# between dequantize and quantize (partition/config/gemm_configs.py), bounds of
# a range are not read (operators/quant_params.py), and weights are -127 to 127
# (quantizer/xnnpack_quantizer.py), since kernels on ARM add two products in 16
# bits. All that is no joint has kernels in float (generic_node_configs.py).
EXECUTORCH = register_target(Target(
    name='executorch', title='ExecuTorch', features=('INT8', ),
    weights=('INT8', ), zero_points=True, integer_biases=True,
    biases_inside=True, measured=False, narrow='end', fills_weights=True,
    narrow_biases=True, joints=frozenset({'add', 'mul', 'cat', 'avg_pool'}),
    ends_quantized=frozenset({'conv', 'linear'}), answers_quantized=True,
    mirrored_weights=True, endings=('.pte', '.pt2')))
