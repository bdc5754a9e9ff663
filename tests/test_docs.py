"""The code of the documentation runs, block after block."""

import json
import re
from importlib.util import find_spec

import pytest
from mmengine.registry import HOOKS
from runs import ROOT

from brevitas_adapters.backend import BREVITAS
from fpq_plugin import FPQHook


def blocks(page, language):
    text = (ROOT / 'docs' / page).read_text()
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


@pytest.fixture
def registered():
    """What the page registers is gone afterwards."""
    before = dict(BREVITAS.activation._module_dict)
    yield
    BREVITAS.activation._module_dict.clear()
    BREVITAS.activation._module_dict.update(before)


def test_the_brevitas_page_runs(tmp_path, monkeypatch, registered):
    monkeypatch.chdir(tmp_path)
    found = blocks('brevitas.md', 'python')
    configs = [b for b in found if b.startswith('default_hooks')]
    code = [b for b in found if b not in configs]
    assert len(configs) == 2
    assert len(code) == 6
    for config in configs:
        scope = {}
        exec(config, scope)
        options = scope['default_hooks']['fpq']
        assert options.pop('type') == 'FPQHook'
        assert FPQHook(**options).settings['backend'] == 'brevitas'
    scope = {}
    for block in code:
        exec(block, scope)
    assert (tmp_path / 'model.onnx').exists()


def test_the_export_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, *code = blocks('export.md', 'python')
    scope = {}
    exec(config, scope)
    options = scope['default_hooks']['fpq']
    assert options.pop('type') == 'FPQHook'
    FPQHook(**options)
    assert len(code) == 5
    for block in code:
        exec(block, scope)
    assert (tmp_path / 'model.onnx').exists()


def test_the_analysis_page_runs():
    hooks, code = blocks('analysis.md', 'python')
    scope = {}
    exec(hooks, scope)
    assert len(scope['custom_hooks']) == 4
    for hook in scope['custom_hooks']:
        assert HOOKS.build(hook).interval == 1
    exec(code, {})


def test_the_analysis_pages_traces_are_the_benchmarks():
    text = (ROOT / 'docs/analysis.md').read_text()
    path = ROOT / 'benchmarks/results/hessian_trace.json'
    found = json.loads(path.read_text())
    for row in found['rows']:
        cells = (f'| {row["split"]} | {row["model"]} | {row["loss"]:.3f} | '
                 f'{row["value"]:.0f} ± {row["error"]:.0f} (±')
        assert cells in text
    for row in found['ratios']:
        assert f'{row["ratio"]:.2f} ± {row["error"]:.2f}' in text


def test_the_analysis_pages_commands_and_pictures_exist():
    assert find_spec('fpq_plugin.analysis.__main__')
    text = (ROOT / 'docs/analysis.md').read_text()
    for command in re.findall(r'python (benchmarks/\S+)', text):
        assert (ROOT / command).is_file()
    pictures = re.findall(r'!\[.*?\]\((\S+?)\)', text)
    assert len(pictures) >= 5
    for picture in pictures:
        assert (ROOT / 'docs' / picture).is_file()
