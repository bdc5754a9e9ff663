"""Where a backend's layers and quantizers are found by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module

from mmengine.registry import MODELS, Registry
from torch import nn


@dataclass(frozen=True)
class Backend:
    """Whose quantizers and layers a model is converted to.

    Attributes:
        name (str): The name in configs.
        weight (Registry): Types that ``weight=dict(type=...)`` may name.
        activation (Registry): The same for ``activation``.
        layers (dict): From a layer type to its quantized type.
        derived (dict): The same for subclasses of those layer types, filled
            as they are met.
    """

    name: str
    weight: Registry = MODELS
    activation: Registry = MODELS
    layers: dict[type[nn.Module], type[nn.Module]] = field(
        default_factory=dict)
    derived: dict[type[nn.Module], type[nn.Module]] = field(
        default_factory=dict)

    def registry(self, part: str) -> Registry:
        """The registry of 'weight', 'activation' or 'perturbation'."""
        return getattr(self, part, MODELS)


_BACKENDS = {'torch_ao': Backend('torch_ao')}
# Backends that register themselves when their package is imported.
_PACKAGES = {'brevitas': 'brevitas_adapters'}


def register_backend(backend: Backend) -> Backend:
    """Make ``backend`` known by its name."""
    _BACKENDS[backend.name] = backend
    return backend


def get_backend(name: str) -> Backend:
    """Find a backend; its package is imported at the first call.

    Raises:
        ValueError: If there is no such backend.
        ImportError: If what the backend needs is not installed; the message
            names the extra to install.
    """
    if name not in _BACKENDS and name in _PACKAGES:
        try:
            import_module(_PACKAGES[name])
        except ModuleNotFoundError as error:
            raise ImportError(
                f'backend: {name!r} needs a package that is not installed '
                f"({str(error.name).partition('.')[0]}): "
                f"pip install 'fpq-openmmlab[{name}]'"
            ) from error
    if name not in _BACKENDS:
        known = ' or '.join(repr(n) for n in sorted({*_BACKENDS, *_PACKAGES}))
        raise ValueError(f'backend: must be {known}, got {name!r}')
    return _BACKENDS[name]
