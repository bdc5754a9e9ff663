"""The manual: code runs, commands exist, figures are those of the files."""

import ast
import json
import re
import shlex
import subprocess
from importlib.metadata import metadata
from importlib.util import find_spec

import pytest
from manual import PAGES, blocks, every, train_two_iterations
from mmengine.registry import DATASETS, MODELS
from runs import ROOT

import mm_configs
from brevitas_adapters.backend import BREVITAS
from fpq_plugin.layers import backends, routing

KINDS = {
    'python', 'python config', 'python fragment', 'python config mmdet',
    'python no-run', 'bash', '', '{toctree}', '{eval-rst}'
}
DOCS = ROOT / 'docs'


def ids(block):
    return f'{block.page}:{block.line}'


@pytest.fixture(autouse=True)
def registered():
    """What a page registers is gone afterwards."""
    registries = (MODELS, DATASETS, BREVITAS.activation, BREVITAS.weight)
    native = backends.get_backend('torch_ao')
    kept = [r._module_dict for r in registries] + [
        native.layers, native.derived, backends._BACKENDS, routing._READERS,
        routing._ATTENTION, MODELS._children]
    before = [content.copy() for content in kept]
    yield
    for content, old in zip(kept, before):
        content.clear()
        content.update(old)


def test_every_block_is_of_a_known_kind():
    found = {block.kind for page in PAGES for block in blocks(page)}
    included = {kind for kind in found if kind.startswith('{include} ')}
    assert found - included <= KINDS
    for kind in included:
        assert (DOCS / kind.split(' ')[1]).is_file()
    assert len(every('python')) > 25


@pytest.mark.parametrize(
    'page', [page for page in PAGES if blocks(page, 'python')],
    ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {'__name__': page.stem}
    for block in blocks(page, 'python'):
        exec(compile(block.text, ids(block), 'exec'), scope)


@pytest.mark.parametrize(
    'block', every('python config') + every('python fragment'), ids=ids)
def test_a_config_trains(block, digits, tmp_path):
    train_two_iterations(block, tmp_path)


def test_what_does_not_run_here_is_sound():
    for block in every('python no-run'):
        ast.parse(block.text)
    block, = every('python config mmdet')
    default_hooks, = (line.value for line in ast.parse(block.text).body
                      if line.targets[0].id == 'default_hooks')
    assert '_base_.fpq' in ast.unparse(default_hooks)
    for base in re.findall(r"'mm_configs/(\S+?)'", block.text):
        mm_configs.path(base)


def commands():
    for block in every('bash'):
        text = block.text.replace('\\\n', ' ')
        for line in text.splitlines():
            yield ids(block), shlex.split(line, comments=True)


def test_shell_blocks_parse():
    for block in every('bash'):
        done = subprocess.run(['bash', '-n'], input=block.text, text=True,
                              capture_output=True)
        assert not done.stderr, ids(block)


def test_the_commands_exist():
    """Targets, modules, files, extras, environments and configs."""
    makefile = (ROOT / 'Makefile').read_text()
    tox = (ROOT / 'tox.ini').read_text()
    extras = metadata('fpq-openmmlab').get_all('Provides-Extra')
    seen = set()
    for where, words in commands():
        if not words:
            continue
        program, rest = words[0], words[1:]
        seen.add(program)
        if program == 'make':
            assert f'\n{rest[0]}:' in makefile, where
        elif program == 'tox':
            assert rest[-1] in tox, where
        elif program == 'pip':
            for extra in re.findall(r'\[(.*?)\]', ' '.join(rest)):
                assert set(extra.split(',')) <= set(extras), where
        elif program == 'mim':
            config = rest[2]
            assert rest[0] in ('train', 'test'), where
            assert ((ROOT / config).is_file()
                    or config in ('my_fpq_config.py', 'CONFIG')), where
        elif program == 'python' and rest[0] == '-m':
            assert find_spec(rest[1]), where
            if rest[1] == 'mm_configs' and rest[2:]:
                mm_configs.path(rest[2])
        elif program == 'python':
            assert (ROOT / rest[0]).is_file(), where
        else:
            assert program == 'export', where
    assert {'make', 'mim', 'pip', 'python'} <= seen


def literals(folder):
    """Every string in a package's source; a \\0 for each value in it."""
    for path in sorted(folder.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield ''.join(part.value if isinstance(part, ast.Constant)
                              else '\0' for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(
                    node.value, str):
                yield node.value


def test_troubleshooting_quotes_messages_of_the_source():
    known = [text for package in ('fpq_plugin', 'brevitas_adapters')
             for text in literals(ROOT / package)]
    text = (DOCS / 'troubleshooting.md').read_text()
    quoted = re.findall(r'^### `(.*)`$', text, re.MULTILINE)
    assert len(quoted) > 30
    for message in quoted:
        parts = [part for part in message.split('...') if part.strip(' :,')]
        pattern = re.compile('.*'.join(map(re.escape, parts)), re.DOTALL)
        assert any(map(pattern.search, known)), message


def test_the_tables_of_fashion_mnist_are_the_files():
    rows = json.loads((DOCS / 'results/demo.json').read_text())['rows']
    text = (DOCS / 'results.md').read_text()
    for r in rows:
        assert (f'| {r["method"]} | {r["top1"]:.2f} | {r["epochs"]} | '
                f'{r["minutes"]:.2f} | {r["bits"]} | {r["kilobytes"]} |'
                ) in text
    exported = json.loads(
        (ROOT / 'benchmarks/results/export.json').read_text())['rows']
    text = (DOCS / 'choosing.md').read_text()
    for bits in ('W8A8', 'W4A4', 'W2A2'):
        r = exported[f'resnet_fpq_{bits.lower()}']
        assert (f'| {bits} | {r["mim_test_top1"]:.2f} | '
                f'{r["size_ratio"]:.3f} |') in text


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
    assert find_spec('fpq_plugin.analysis.command')
    text = (ROOT / 'docs/analysis.md').read_text()
    for command in re.findall(r'python (benchmarks/\S+)', text):
        assert (ROOT / command).is_file()
    pictures = re.findall(r'!\[.*?\]\((\S+?)\)', text)
    assert len(pictures) >= 5
    for picture in pictures:
        assert (ROOT / 'docs' / picture).is_file()
