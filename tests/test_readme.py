"""The README's code runs, and its options are the hook's."""

import inspect
import re

from mmengine import Config
from runs import CONFIGS, ROOT

from fpq_plugin import FPQHook

BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(),
                    re.DOTALL)


def block(start):
    found, = (b for b in BLOCKS if start in b)
    return found


def test_the_plain_loop_and_the_new_layer_run():
    from torch import nn

    from fpq_plugin.backends import get_backend
    layers = get_backend('torch_ao').layers
    exec(block('import copy, torch'), {})
    try:
        exec(block('@register_layer'), {})
        assert nn.Conv1d in layers
    finally:
        layers.pop(nn.Conv1d, None)


def test_the_options_block_names_every_option_and_builds():
    scope = {}
    exec(block("fpq = dict(\n    type='FPQHook'"), scope)
    options = scope['fpq']
    options.pop('type')
    FPQHook(**options)
    known = set(inspect.signature(FPQHook).parameters)
    assert known - {'unknown'} == set(options)


def test_the_first_config_loads(tmp_path):
    text = block('_base_ = [').replace('path/to/mm_configs', str(CONFIGS))
    path = tmp_path / 'my_fpq_config.py'
    path.write_text(text)
    cfg = Config.fromfile(str(path))
    assert cfg.default_hooks.fpq.weight.bits == 4
    assert cfg.model.backbone.depth == 50
    assert 'logger' in cfg.default_hooks


def test_the_commands_exist():
    readme = (ROOT / 'README.md').read_text()
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'^make (\S+)', readme, re.MULTILINE):
        assert f'\n{target}:' in makefile
