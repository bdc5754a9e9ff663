"""Parts of a model that work on what the model itself has picked."""

from __future__ import annotations

from torch import nn

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
        :func:`fpq_plugin.patterns.matches`; empty for other models.
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
