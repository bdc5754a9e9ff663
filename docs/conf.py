"""Sphinx settings of the manual: make docs."""

import re
from importlib.metadata import version as installed_version

project = 'FPQ for OpenMMLab'
author = 'the FPQ for OpenMMLab contributors'
version = release = installed_version('fpq-openmmlab')

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
html_theme = 'sphinx_rtd_theme'
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


def setup(app):
    app.connect('source-read', _link_to_files)
