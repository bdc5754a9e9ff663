"""The code of the page on methods runs, block after block."""

import re

import pytest
from mmengine import Config
from mmengine.registry import HOOKS, MODELS
from runs import CONFIGS, ROOT

TEXT = (ROOT / 'docs/methods.md').read_text()


def blocks(kind):
    return re.findall(rf'```{kind}\n(.*?)```', TEXT, re.DOTALL)


@pytest.fixture
def registered():
    """What the page registers is gone afterwards."""
    before = dict(MODELS._module_dict)
    yield
    MODELS._module_dict.clear()
    MODELS._module_dict.update(before)


def test_its_code_runs(registered):
    scope = {}
    assert len(blocks('python')) == 3
    for block in blocks('python'):
        exec(block, scope)
    type_name = type(scope['model'][0].input_quantizer).__name__
    assert type_name == 'FixedStepFakeQuantize'


def test_its_config_builds(tmp_path):
    block, = blocks('python config')
    path = tmp_path / 'user.py'
    path.write_text(block.replace('mm_configs/', f'{CONFIGS}/'))
    hook = HOOKS.build(Config.fromfile(str(path)).default_hooks.fpq)
    assert hook.settings['weight'] == dict(
        type='LSQPlusFakeQuantize', bits=2)
    assert hook.settings['perturbation']['p'] == 0.1
    assert [criterion.label for criterion in hook.criteria] == ['csd']


def test_it_names_every_quantizer_fragment_and_recipe():
    for name in MODELS.module_dict:
        if name.endswith('FakeQuantize'):
            assert f'`{name}`' in TEXT
    for path in CONFIGS.glob('_base_/methods/*.py'):
        assert f'`{path.name}`' in TEXT
    for name in re.findall(r'`(?:mm_configs/)?(fpq_\w+_w4a4\.py)`', TEXT):
        assert list(CONFIGS.rglob(name))
