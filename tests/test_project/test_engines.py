"""The benchmark of engines: one row of a small model, table and picture."""

import argparse
import json
import sys

import pytest
import torch
from runs import ROOT
from torch import nn

RESULTS = ROOT / 'benchmarks/results'


@pytest.fixture(scope='module')
def bench():
    """The benchmark's modules, which are scripts beside each other."""
    pytest.importorskip('onnxruntime')
    folder = str(ROOT / 'benchmarks')
    sys.path.insert(0, folder)
    try:
        import engines
        import runtimes
        yield argparse.Namespace(engines=engines, runtimes=runtimes)
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope='module')
def files(bench, tmp_path_factory):
    """Files of a small network, under the name of one of the zoo."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    return bench.engines.Files(bench.runtimes.Subject(
        'resnet18', model, torch.rand(3, 3, 12, 12),
        tmp_path_factory.mktemp('files')), for_engines=False)


@pytest.fixture(scope='module')
def row(bench, files):
    engine = bench.runtimes.OnnxRuntime(threads=1)
    return bench.engines.measure(engine, files, 'w8a8', rounds=3)


def test_a_row_has_the_three_files(row):
    assert 'errors' not in row
    assert row['parity']['images'] == 3
    assert row['float']['integer'] == 0
    assert row['own']['kinds']['QLinearConv (uint8)'] == 2
    assert 0 < row['ours']['integer'] < row['ours']['kernels']
    for kind, most in (('float', 1e-5), ('own', 0.1), ('ours', 0.05)):
        assert row[kind]['difference'] < most
        assert sum(row[kind]['kinds'].values()) == row[kind]['kernels']
    for name in ('ours/float', 'own/float', 'ours/own'):
        middle, low, high = row['ratios'][name]
        assert 0 < low <= middle <= high


def test_a_file_that_cannot_be_made_leaves_the_others(bench, files):

    class NoOwn(bench.runtimes.OnnxRuntime):

        def own_file(self, subject):
            raise ImportError('no quantization here')

    row = bench.engines.measure(NoOwn(threads=1), files, 'w8a8', rounds=3)
    assert row['errors'] == {'own': 'ImportError: no quantization here'}
    assert list(row['ratios']) == ['ours/float']


def test_a_profile_tells_kernels_and_the_slowest(bench, files):
    engine = bench.runtimes.OnnxRuntime(threads=1)
    text = bench.engines.profile(engine, files, 'w8a8', calls=2)
    assert 'QLinearConv (uint8)' in text
    others = text.split('Our slowest that do not compute on integers:')[1]
    assert 'QLinearConv' not in others
    assert ' ms  ' in others


def test_the_table_has_a_dash_where_nothing_was_measured(bench, row):
    other = dict(row, bits='w4a4', ratios={'ours/float': [1.5, 1.4, 1.6]})
    del other['own']
    lines = bench.engines.table([row, other]).splitlines()
    assert len(lines) == 6
    assert lines[2].startswith('| ResNet-18 | W8A8 | ')
    assert lines[3].startswith('| ResNet-18 | W4A4 | 1.50 | - | - | ')
    assert lines[5].startswith('| geometric mean | W4A4 | 1.50 |  |  |')
    assert len({line.count('|') for line in lines}) == 1


def test_rows_table_and_picture_are_written(bench, row, tmp_path):
    bench.engines.save([row], dict(device='here'), tmp_path / 'out.json')
    found = json.loads((tmp_path / 'out.json').read_text())
    assert found == dict(device='here', rows=[row])
    assert (tmp_path / 'out.md').read_text() == (
        bench.engines.table([row]) + '\n')
    assert (tmp_path / 'out.png').stat().st_size


def test_the_published_table_is_that_of_the_rows(bench):
    path = RESULTS / 'engines.json'
    if not path.exists():
        pytest.skip('not measured yet')
    rows = json.loads(path.read_text())['rows']
    assert path.with_suffix('.md').read_text() == (
        bench.engines.table(rows) + '\n')
