"""The README is short; the manual's block of options is the hook's.

Their code runs in test_docs.py.
"""

from manual import blocks
from runs import ROOT

from fpq_plugin import FPQHook
from fpq_plugin.recipe import Recipe


def test_the_readme_is_read_in_one_go():
    text = (ROOT / 'README.md').read_text()
    assert text.count('\n') <= 120
    assert text.count('![') == 1
    assert 'preset=' in text.split('\n## ')[0]


def test_the_options_block_names_every_option_and_builds():
    block, = (block for block in
              blocks(ROOT / 'docs/configuration.md', 'python')
              if "fpq = dict(\n    type='FPQHook'" in block.text)
    scope = {}
    exec(block.text, scope)
    options = scope['fpq']
    options.pop('type')
    FPQHook(**options)
    assert set(Recipe.options()) == set(options)
