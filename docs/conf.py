"""Sphinx settings of the manual: make docs."""

import inspect
import re
from importlib.metadata import version as installed_version

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

project = 'FPQ for OpenMMLab'
author = 'the FPQ for OpenMMLab authors'
copyright = f'2026, {author}'
version = release = installed_version('fpq-openmmlab')

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_enable_extensions = ['dollarmath', 'amsmath', 'deflist']
html_theme = 'furo'
html_title = f'{project} {version}'
html_static_path = ['_static']
html_css_files = ['manual.css']
html_math_renderer = 'mathml'
html_show_sphinx = False
exclude_patterns = ['analysis', 'results']
autodoc_member_order = 'bysource'
napoleon_use_rtype = False
napoleon_use_ivar = True
myst_heading_anchors = 3
# "python config" says what a test does with a block, not its language.
suppress_warnings = ['misc.highlighting_failure']


def _link_to_files(app, document, source):
    """Links out of docs/ work in a checkout; here they are downloads."""
    source[0] = re.sub(r'(?<!!)(\[[^\]]*\])\(\.\./', r'\1(path:../',
                       source[0])


def _formula(translator, node):
    """Formulas as MathML: a reader needs no script and no network."""
    text, number = node.astext(), ''
    tag = re.search(r'\\tag\{(.*?)\}', text)
    if tag:
        text, number = text.replace(tag[0], ''), f'({tag[1]})'
    block = node.tagname == 'math_block'
    # docutils 0.22 turned this argument round.
    turned = 'as_block' in inspect.signature(tex2mathml).parameters
    mathml = tex2mathml(text.strip(), block if turned else not block)
    if block:
        mathml = (f'<div class="formula">{mathml}'
                  f'<span class="number">{number}</span></div>')
    translator.body.append(mathml)
    raise SkipNode


def setup(app):
    app.connect('source-read', _link_to_files)
    app.add_html_math_renderer('mathml', (_formula, None), (_formula, None))
