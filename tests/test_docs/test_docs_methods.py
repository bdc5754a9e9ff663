"""The page on methods names what there is; its code runs in test_docs.py."""

import re

from mmengine.registry import MODELS
from runs import CONFIGS, ROOT

TEXT = (ROOT / 'docs/methods.md').read_text()


def test_it_names_every_quantizer_fragment_and_recipe():
    for name in MODELS.module_dict:
        if name.endswith('FakeQuantize'):
            assert f'`{name}`' in TEXT
    for path in CONFIGS.glob('_base_/methods/*.py'):
        assert f'`{path.name}`' in TEXT
    for name in re.findall(r'`(?:mm_configs/)?(fpq_\w+_w4a4\.py)`', TEXT):
        assert list(CONFIGS.rglob(name))
