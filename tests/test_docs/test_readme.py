"""The README's options are the hook's; its code runs in test_docs.py."""

import inspect
import re

import torch
from runs import ROOT

import fpq_plugin
from fpq_plugin import FPQHook
from fpq_plugin.layers import get_backend

BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(),
                    re.DOTALL)


def block(start):
    found, = (b for b in BLOCKS if start in b)
    return found


def test_the_new_layer_is_quantized():
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
