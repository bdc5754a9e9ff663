"""What an engine takes: rules as data, one entry for each engine.

A file that is right by the ONNX standard may still be one that an engine
cannot open, or runs in float. What :mod:`.build` makes depends on the engine
by these rules alone. A new engine is one more :class:`Engine`::

    register_engine(Engine(
        name='mine', title='My engine', features=('INT8', ),
        weights=('INT8', ), zero_points=False, integer_biases=False,
        biases_inside=True, measured=False))
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """An engine's rules.

    Attributes:
        name (str): What options call it.
        title (str): What messages call it.
        features (tuple[str, ...]): Types of the ONNX standard that it takes
            for quantized features, the first that holds a range is used.
        weights (tuple[str, ...]): The same for stored weights.
        zero_points (bool): Whether zero points may be other than 0.
        integer_biases (bool): Whether biases may be INT32.
        biases_inside (bool): Whether a float bias stays in its layer. If
            not, it is added after the layer.
        measured (bool): Whether the export can run and time it. If not,
            onnxruntime computes what the file says, in float.
    """

    name: str
    title: str
    features: tuple[str, ...]
    weights: tuple[str, ...]
    zero_points: bool
    integer_biases: bool
    biases_inside: bool
    measured: bool


_ENGINES: dict[str, Engine] = {}


def register_engine(engine: Engine) -> Engine:
    """Let exports name an engine.

    Args:
        engine (Engine): The engine.

    Returns:
        Engine: The same.

    Raises:
        ValueError: If the name is taken.
    """
    if engine.name in _ENGINES:
        raise ValueError(f'there is an engine {engine.name!r} already')
    return _ENGINES.setdefault(engine.name, engine)


def known_engines() -> list[str]:
    """The names of all engines."""
    return list(_ENGINES)


def engine_of(name: str) -> Engine:
    """The engine of a name.

    Args:
        name (str): The name.

    Returns:
        Engine: The engine.

    Raises:
        ValueError: If there is none; the message names those there are.
    """
    if not isinstance(name, str) or name not in _ENGINES:
        raise ValueError(
            f'engine must be one of {known_engines()}, got {name!r}')
    return _ENGINES[name]


# 1.24 cannot open a Clip, as ReLU6 is one, in front of a QuantizeLinear to
# four bits; and it rounds a float bias that is left inside a layer.
ONNXRUNTIME = register_engine(Engine(
    name='onnxruntime', title='onnxruntime', features=('UINT8', 'INT8'),
    weights=('UINT4', 'INT4', 'UINT8', 'INT8'), zero_points=True,
    integer_biases=True, biases_inside=False, measured=True))

TENSORRT = register_engine(Engine(
    name='tensorrt', title='TensorRT', features=('INT8', ),
    weights=('INT8', ), zero_points=False, integer_biases=False,
    biases_inside=True, measured=False))
