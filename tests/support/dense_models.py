"""Models of mmdet's and mmseg's configs, without weights from outside."""

from importlib.util import find_spec
from pathlib import Path

from mmengine import Config
from mmengine.registry import MODELS, init_default_scope


def build(library, path):
    home = Path(find_spec(library).origin).parent / '.mim/configs'
    cfg = Config.fromfile(str(home / path))
    init_default_scope(library)
    cfg.model.backbone.init_cfg = None
    cfg.model.pop('pretrained', None)
    return MODELS.build(cfg.model)
