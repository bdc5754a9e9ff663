"""The page of environments shows what is in its JSON, and nothing else."""

import configparser
import importlib.util
import json
import re
import subprocess
import sys

from runs import ROOT

PATH = ROOT / 'tools/matrix.py'
spec = importlib.util.spec_from_file_location('matrix', PATH)
matrix = importlib.util.module_from_spec(spec)
spec.loader.exec_module(matrix)


def environments():
    tox = configparser.ConfigParser()
    tox.read(ROOT / 'tox.ini')
    return re.split(r'[,\s]+', tox['tox']['env_list'].strip())


def test_the_page_is_rendered_from_the_results():
    rows = (json.loads(matrix.RESULTS.read_text())
            if matrix.RESULTS.is_file() else [])
    assert {r['environment'] for r in rows} <= set(environments())
    page = matrix.PAGE.read_text()
    assert matrix.render(rows, page) == page


def test_every_environment_has_its_pins_and_is_in_the_command():
    text = matrix.PAGE.read_text()
    for name in environments():
        pins = (ROOT / f'requirements/{name}.txt').read_text()
        python, torch = re.fullmatch(r'py3(\d+)-torch2(\d+)', name).groups()
        assert re.search(rf'^torch==2\.{torch}\.', pins, re.MULTILINE)
        assert 10 <= int(python) <= 13
        assert name in text


def test_counts_are_those_of_the_tests(tmp_path):
    (tmp_path / 'test_it.py').write_text(
        'import pytest\n'
        'def test_a(): pass\n'
        'def test_b(): pass\n'
        'def test_c(): assert 0\n'
        'def test_d(): pytest.skip("why")\n'
        'def test_e(missing): pass\n')
    report = tmp_path / 'tests.xml'
    subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p',
                    'no:cacheprovider', f'--junitxml={report}', 'test_it.py'],
                   cwd=tmp_path, capture_output=True)
    assert matrix.counts(report) == dict(passed=2, failed=2, skipped=1)
