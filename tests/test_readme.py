"""The README's code runs, and its options are the hook's."""

import inspect
import re

import torch
from mmengine import Config
from runs import CONFIGS, ROOT

import fpq_plugin
from fpq_plugin import FPQHook
from fpq_plugin.backends import get_backend

BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(),
                    re.DOTALL)


def block(start):
    found, = (b for b in BLOCKS if start in b)
    return found


def test_the_plain_loop_and_the_new_layer_run():
    exec(block('import copy, torch'), {})
    layers, scope = get_backend('torch_ao').layers, {}
    before = dict(layers)
    try:
        exec(block('@register_layer'), scope)
        model = torch.nn.Sequential(scope['TokenMixing'](5))
        fpq_plugin.convert(model)
        x = torch.randn(2, 5, 3)
        fpq_plugin.calibrate(model, [x])
        assert type(model[0]) is scope['QuantizedTokenMixing']
        torch.testing.assert_close(model(x), x, rtol=0, atol=0.1)
    finally:
        layers.clear()
        layers.update(before)


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
