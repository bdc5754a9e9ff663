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
from mmengine import Config
from mmengine.registry import DATASETS, MODELS
from mmpretrain.registry import HOOKS
from runs import ROOT

import fpq_plugin
import mm_configs
from brevitas_adapters.backend import BREVITAS
from fpq_plugin.layers import backends, routing

KINDS = {
    'python', 'python config', 'python fragment', 'python config mmdet',
    'python no-run', 'bash', '', '{toctree}', '{eval-rst}'
}
DOCS = ROOT / 'docs'
MMENGINES = {'FPQHook is not in the mmpretrain::hook registry',
             'Duplicate key is not allowed among bases'}


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
    assert len(every('python')) > 20


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
    scope = {}
    exec(block.text, scope)
    fpq_plugin.FPQHook(**{key: value for key, value in
                          scope['default_hooks']['fpq'].items()
                          if key != 'type'})


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
            assert rest[0] in ('train', 'test'), where
            is_config(rest[2], where)
        elif program == 'fpq':
            assert rest[0] in ('export', 'evaluate', 'analyze'), where
            is_config(rest[1], where)
        elif program == 'python' and rest[0] == '-m':
            assert find_spec(rest[1]), where
            if rest[1] == 'mm_configs' and rest[2:]:
                mm_configs.path(rest[2])
        elif program == 'python':
            assert (ROOT / rest[0]).is_file(), where
        else:
            assert program == 'export', where
    assert {'make', 'mim', 'pip', 'python', 'fpq'} <= seen


def is_config(name, where):
    """A file of the repository, or a name for one of the reader's."""
    assert ((ROOT / name).is_file()
            or name in ('my_fpq_config.py', 'CONFIG')), where


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
    quoted = set(re.findall(r'^### `(.*)`$', text, re.MULTILINE))
    assert len(quoted) > 30
    assert quoted >= MMENGINES
    quoted -= MMENGINES
    for message in quoted:
        parts = [part for part in message.split('...') if part.strip(' :,')]
        pattern = re.compile('.*'.join(map(re.escape, parts)), re.DOTALL)
        assert any(map(pattern.search, known)), message


def test_troubleshooting_quotes_messages_of_mmengine(tmp_path):
    with pytest.raises(KeyError) as missing:
        HOOKS.build(dict(type='FPQHook_'))
    assert missing.value.args[0].startswith(
        'FPQHook_ is not in the mmpretrain::hook registry')
    for name in ('a.py', 'b.py'):
        (tmp_path / name).write_text('custom_imports = dict(imports=[])')
    (tmp_path / 'mine.py').write_text("_base_ = ['a.py', 'b.py']")
    with pytest.raises(KeyError, match='Duplicate key is not allowed among '
                       'bases.*custom_imports'):
        Config.fromfile(tmp_path / 'mine.py')


def test_the_front_page_lists_every_page_once():
    trees = [block.text for block in blocks(DOCS / 'index.md')
             if block.kind == '{toctree}']
    listed = [line for text in trees for line in text.splitlines()
              if line and not line.startswith(':')]
    assert sorted(listed) == sorted(
        page.stem for page in DOCS.glob('*.md') if page.stem != 'index')


def test_the_glossary_is_in_order():
    terms = re.findall(r'^(\S.*)\n: ', (DOCS / 'glossary.md').read_text(),
                       re.MULTILINE)
    assert len(terms) > 25
    assert terms == sorted(terms, key=str.lower)


def test_nothing_cites_what_the_repository_does_not_have():
    for page in PAGES:
        assert not re.search(r"\bspec\b(?!\.)", page.read_text()), page.name


def test_the_tables_of_fashion_mnist_are_the_files():
    rows = json.loads((DOCS / 'results/demo.json').read_text())['rows']
    text = (DOCS / 'results.md').read_text()
    for r in rows:
        assert (f'| {r["method"]} | {r["top1"]:.2f} | {r["epochs"]} | '
                f'{r["bits"]} | {r["kilobytes"]} |'
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
    assert find_spec('fpq_plugin.cli')
    text = (ROOT / 'docs/analysis.md').read_text()
    for command in re.findall(r'python (benchmarks/\S+)', text):
        assert (ROOT / command).is_file()
    pictures = re.findall(r'!\[.*?\]\((\S+?)\)', text)
    assert len(pictures) >= 5
    for picture in pictures:
        assert (ROOT / 'docs' / picture).is_file()
