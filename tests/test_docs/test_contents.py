"""The contents of the code in the manual are those of the modules."""

import importlib.util

from runs import ROOT

PATH = ROOT / 'tools/contents.py'
spec = importlib.util.spec_from_file_location('contents', PATH)
contents = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contents)


def test_the_manual_lists_every_module():
    page = contents.PAGE.read_text()
    assert page == contents.written(), 'run python tools/contents.py'
    for package in contents.PACKAGES:
        for path in (ROOT / package).rglob('*.py'):
            if path.name != '__init__.py':
                assert f'| `{path.stem}` | {contents.first_line(path)} |' in (
                    page)
