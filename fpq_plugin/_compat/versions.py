"""Which versions of torch, mmengine and others work, and how they differ.

Importing :mod:`fpq_plugin`, which the config's ``custom_imports`` does before
a Runner exists, imports this first: it refuses what cannot work.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.utils import digit_version

RANGES: dict[str, tuple[str, str | None]] = {
    'torch': ('2.1', None),
    'mmengine': ('0.10.7', None),
    # The adapters use what Brevitas does not promise to keep.
    'brevitas': ('0.13.4', '0.14'),
}
"""From which version on, and below which, a package is known to work."""


def unfit(versions: dict[str, str]) -> str | None:
    """Why FPQ cannot work with these versions, and which would do.

    Args:
        versions (dict[str, str]): From package to version.

    Returns:
        str | None: The reason and the mend; None if they fit.
    """
    for name, found in versions.items():
        low, high = RANGES.get(name, ('0', None))
        wanted = f'{name}>={low}' + (f',<{high}' if high else '')
        if digit_version(found) < digit_version(low) or (
                high and digit_version(found) >= digit_version(high)):
            return (f'FPQ does not work with {name} {found}: '
                    f"pip install '{wanted}'")
    # torch <= 2.2 was built for numpy 1: "Numpy is not available".
    if ('torch' in versions and 'numpy' in versions
            and digit_version(versions['torch']) < digit_version('2.3')
            and digit_version(versions['numpy']) >= digit_version('2.0')):
        return (f'torch {versions["torch"]} does not work with numpy '
                f"{versions['numpy']}: pip install 'numpy<2', or torch>=2.3")
    return None


def refuse_unfit(*packages: str) -> None:
    """Stop where the installed versions cannot work.

    Raises:
        ImportError: Naming the versions that do.
    """
    reason = unfit(
        {name: import_module(name).__version__ for name in packages})
    if reason is not None:
        raise ImportError(reason)


def refuse_broken_torchvision() -> None:
    """Stop where torchvision is installed for another build of torch.

    OpenMMLab's packages import it, and then fail far from the cause. Without
    torchvision, plain PyTorch models can be trained.

    Raises:
        ImportError: Naming both versions.
    """
    if find_spec('torchvision') is None:
        return
    try:
        import_module('torchvision')
    except Exception as error:
        raise ImportError(
            f'torchvision {version("torchvision")} cannot be imported with '
            f'torch {torch.__version__} ({error}): install both together, '
            "from one index: pip install 'torch==X' torchvision") from error


refuse_unfit('torch', 'mmengine', 'numpy')
refuse_broken_torchvision()

_torch_version = digit_version(torch.__version__)

# weights_only takes further types since 2.4, with other names since 2.6.
WEIGHTS_ONLY_TAKES_NAMES = _torch_version >= digit_version('2.6.0')

# torch.compiler has it since 2.3.
is_compiling = (
    torch.compiler.is_compiling if _torch_version >= digit_version('2.3') else
    import_module('torch._dynamo').is_compiling)

HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')
"""Since torch 2.4; before it SFP breaks a graph that torch.compile traces."""

INDUCTOR_TAKES_SYMBOLIC_SIZES = _torch_version >= digit_version('2.2')
"""torch 2.1: "Cannot call sizes() on tensor with symbolic sizes/strides"."""


def twice_differentiable_attention() -> AbstractContextManager:
    """``F.scaled_dot_product_attention`` by its formula.

    The fused kernels have no second derivative. The context manager for that
    moved in torch 2.3.
    """
    if _torch_version >= digit_version('2.3'):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        return sdpa_kernel(SDPBackend.MATH)
    return torch.backends.cuda.sdp_kernel(
        enable_flash=False, enable_mem_efficient=False)


def onnx_tracer_options() -> dict[str, Any]:
    """Options of ``torch.onnx.export`` that ask for the exporter by tracing.

    The other one, the default since torch 2.9, needs onnxscript and knows no
    operators of ours. torch 2.1 has no such option.
    """
    known = inspect.signature(torch.onnx.export).parameters
    return dict(dynamo=False) if 'dynamo' in known else {}


def onednn_qconv2d() -> Any:
    """oneDNN's int8 convolution: ``qconv2d_pointwise`` until torch 2.6."""
    onednn = torch.ops.onednn
    return getattr(onednn, 'qconv_pointwise', None) or onednn.qconv2d_pointwise
