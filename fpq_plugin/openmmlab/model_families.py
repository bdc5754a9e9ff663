"""What FPQ knows of OpenMMLab's models: the families that need care.

Layers behind a model's own proposals, self-supervised models, the forward
mode in which a model is run, attention modules that have to be routed, and
the wrappers around a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from .._compat.restoring import same_randomness
from ..convert import refuse_wrapped
from ..distillation.compared import logits_layer
from ..layer_table import LayerTable
from ..layers import Backend, get_backend, quantized_layers, quantized_type
from ..layers.routing import register_names
from ..options import matches
from ..quantizers import named_quantizers
from ..recipe import Recipe
from .guards import frozen_twins, refuse_averaged

register_names(
    weight_readers=[
        'mmpretrain.models.utils.attention.BEiTAttention',
        'mmpretrain.models.utils.attention.CrossMultiheadAttention',
        'mmpretrain.models.utils.attention.WindowMSAV2',
        'mmseg.models.backbones.beit.BEiTAttention',
    ],
    attention=[
        'mmdet.models.backbones.swin.WindowMSA',
        'mmpretrain.models.backbones.davit.ChannelAttention',
        'mmpretrain.models.backbones.davit.DaViTWindowMSA',
        'mmpretrain.models.backbones.efficientformer.AttentionWithBias',
        'mmpretrain.models.backbones.hivit.Attention',
        'mmpretrain.models.backbones.levit.Attention',
        'mmpretrain.models.backbones.levit.AttentionSubsample',
        'mmpretrain.models.backbones.mvit.MultiScaleAttention',
        'mmpretrain.models.backbones.twins.LocallyGroupedSelfAttention',
        'mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE',
        'mmpretrain.models.backbones.vit_sam.Attention',
        'mmpretrain.models.backbones.xcit.ClassAttntion',
        'mmpretrain.models.backbones.xcit.XCA',
        'mmpretrain.models.utils.attention.BEiTAttention',
        'mmpretrain.models.utils.attention.ChannelMultiheadAttention',
        'mmpretrain.models.utils.attention.CrossMultiheadAttention',
        'mmpretrain.models.utils.attention.LeAttention',
        'mmpretrain.models.utils.attention.MultiheadAttention',
        'mmpretrain.models.utils.attention.WindowMSA',
        'mmpretrain.models.utils.attention.WindowMSAV2',
        'mmseg.models.backbones.beit.BEiTAttention',
        'mmseg.models.backbones.swin.WindowMSA',
        'mmseg.models.backbones.twins.LocallyGroupedSelfAttention',
    ])

# Decoders of detection transformers whose queries are the encoder's best.
_PICKED_QUERIES = ('decoder', 'bbox_head', 'pos_trans_fc')


def behind_proposals(model: nn.Module) -> list[str]:
    """Names of modules whose inputs depend on the model's own predictions.

    Student and teacher pick other proposals, queries or points there, so
    their maps are of other things and must not be compared, whether or not
    their shapes agree: the RoI heads of two-stage detectors (``roi_head``),
    the decoders of transformers with ``as_two_stage``, mmseg's ``PointHead``.

    Args:
        model (nn.Module): A detector or segmentor, or any other model.

    Returns:
        list[str]: Names, as patterns for
        :func:`fpq_plugin.options.matches`; empty for other models.
    """
    found = []
    for name, module in model.named_modules():
        prefix = f'{name}.' if name else ''
        if name.rpartition('.')[2] == 'roi_head':
            found.append(name)
        if _is_point_head(module):
            found.append(name)
        # The head has the attribute too; the detector holds the decoder.
        if getattr(module, 'as_two_stage', False) and hasattr(
                module, 'decoder'):
            found += [
                f'{prefix}{child}' for child in _PICKED_QUERIES
                if hasattr(module, child)
            ]
    return found


def has_point_head(model: nn.Module) -> bool:
    """Whether a part of ``model`` is mmseg's ``PointHead``."""
    return any(_is_point_head(module) for module in model.modules())


def _is_point_head(module: nn.Module) -> bool:
    # It works on points that are drawn, or where a prediction is uncertain.
    return type(module).__name__ == 'PointHead'


def is_self_supervised(model: nn.Module) -> bool:
    """Whether ``model`` is one of mmpretrain's ``BaseSelfSupervisor``.

    Only its forward with ``mode='loss'`` takes a batch as it is: several
    views of an image, or an image with a mask to draw or to apply.
    """
    return any(kind.__name__ == 'BaseSelfSupervisor'
               for kind in type(model).__mro__)


def has_logits(model: nn.Module, skip: Iterable[str] = ()) -> bool:
    """Whether ``model`` is a classifier of mmpretrain with one softmax.

    The one quantized layer of its head is linear, and a forward calls it.
    One of several tasks, or whose classes do not exclude each other, is not.

    Args:
        model (nn.Module): A converted and calibrated model, without a
            wrapper.
        skip (Iterable[str]): Name patterns of layers that are not distilled.
    """
    if not any(kind.__name__ == 'BaseClassifier'
               for kind in type(model).__mro__):
        return False
    layers = quantized_layers(model)
    name = logits_layer(list(layers))
    head = getattr(model, 'head', None)
    if head is None or any(
            getattr(module, 'use_sigmoid', False)
            or type(module).__name__ in ('FocalLoss', 'AsymmetricLoss')
            for module in head.modules()):
        return False
    own = [each for each in layers if each.startswith('head.')]
    return (own == [name] and isinstance(layers[name], nn.Linear)
            and not name.startswith('head.task_heads.')
            and not any(matches(name, pattern) for pattern in skip)
            and not any(quantizer.is_idle() for quantizer
                        in named_quantizers(layers[name]).values()))


def layers_of_targets(model: nn.Module, backend: Backend) -> list[str]:
    """Patterns of the layers that make a self-supervised model's targets.

    They are not what is trained or shipped, so they stay as they are.

    Args:
        model (nn.Module): The model before its conversion.
        backend (Backend): Whose layers would be quantized.

    Returns:
        list[str]: Patterns for ``skip``, none if nothing would match.
    """
    if (is_self_supervised(model)
            and isinstance(model.target_generator, nn.Module)
            and any(quantized_type(module, backend)
                    for module in model.target_generator.modules())):
        return ['target_generator']
    return []


def only_in_loss_mode(model: nn.Module) -> bool:
    """Whether ``mode='tensor'`` does not run the layers that training runs.

    So it is with mmpretrain's self-supervised models, whose other modes are
    the encoder alone, and with mmseg's PointRend, which has none.
    """
    return is_self_supervised(model) or has_point_head(model)


def teacher_forward(model: nn.Module) -> Callable[..., Any]:
    """How the teacher is run beside a student's forward.

    Args:
        model (nn.Module): The student.

    Returns:
        Callable: Takes the teacher, and the student's args and kwargs.
    """
    return _run_loss_mode if only_in_loss_mode(model) else _run_tensor_mode


def calibration_forward(model: nn.Module) -> Callable[..., Any]:
    """How a batch of the training data is run for calibration.

    Args:
        model (nn.Module): The student.

    Returns:
        Callable: Takes the student and a batch.
    """
    return forward_loss if only_in_loss_mode(model) else _forward_tensor


def forward_loss(model: nn.Module, batch: Any) -> Any:
    """Run ``batch`` as a training step does."""
    data = model.data_preprocessor(batch, True)
    return model._run_forward(data, mode='loss')


def is_loss_mode(kwargs: dict) -> bool:
    """Whether a forward's keyword arguments ask for the loss."""
    return kwargs.get('mode') == 'loss'


def _forward_tensor(model: nn.Module, batch: Any) -> Any:
    data = model.data_preprocessor(batch, False)
    return model._run_forward(data, mode='tensor')


def _run_tensor_mode(teacher: nn.Module, args: tuple, kwargs: dict) -> Any:
    # The same layers as in 'loss' mode, without the loss.
    return teacher(*args, **{**kwargs, 'mode': 'tensor'})


def _run_loss_mode(teacher: nn.Module, args: tuple, kwargs: dict) -> Any:
    # A mask that the student draws must be the teacher's as well.
    with same_randomness():
        return teacher(*args, **kwargs)


def unwrap(model: nn.Module) -> nn.Module:
    """The model in MMEngine's wrappers: data-parallel, test-time averaging."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def convert_mm_model(model: nn.Module, recipe: Recipe) -> LayerTable:
    """Quantize one of OpenMMLab's models in place.

    What makes a self-supervised model's targets stays float.

    Args:
        model (nn.Module): The model, without a wrapper.
        recipe (Recipe): The options.

    Returns:
        LayerTable: One row for each layer with a weight of two or more axes.

    Raises:
        ValueError: If the model averages its own weights, or a part of it is
            wrapped, or as :meth:`~fpq_plugin.Recipe.convert`.
    """
    refuse_averaged(model)
    refuse_wrapped(model, 'FPQ')
    backend = get_backend(recipe.backend)
    _refuse_twins(model, recipe, backend)
    return recipe.convert(model, layers_of_targets(model, backend))


def _refuse_twins(model: nn.Module, recipe: Recipe,
                  backend: Backend) -> None:
    """Refuse to quantize a part that looks like an average of another.

    Raises:
        ValueError: Naming the part.
    """
    for twin in frozen_twins(model):
        names = [
            name for name, module in model.named_modules()
            if name.startswith(f'{twin}.')
            and quantized_type(module, backend) is not None
        ]
        if not all(any(matches(name, skip) for skip in recipe.skip)
                   for name in names):
            raise ValueError(
                f'FPQ would quantize {twin!r}, a frozen part that is built '
                'as a trained one: an average of its weights, it seems. '
                'Scales of unlike bits would be averaged. Train in full '
                'precision; or, if nothing averages into it, leave it float '
                f'by fpq.skip=[{twin!r}]')
