"""The report: its tables, its advice, its pictures inside."""

import copy
import re
from html.parser import HTMLParser

import pytest

from fpq_plugin.analysis.report import PICTURES, write_report

NAIVE = 'W4A4 without training (of full)'


class Tables(HTMLParser):
    """Rows of cells of each table, and the headings before them."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.headings, self.code, self.tag = [], [], '', ''
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        if tag == 'table':
            self.tables.append([])
        if tag == 'tr':
            self.tables[-1].append([])
        if tag in ('td', 'th'):
            self.tables[-1][-1].append('')

    def handle_endtag(self, tag):
        self.tag = ''

    def handle_data(self, data):
        if self.tag in ('td', 'th'):
            self.tables[-1][-1][-1] += data
        if self.tag in ('h1', 'h2', 'h3'):
            self.headings.append(data)
        if self.tag == 'pre':
            self.code += data


@pytest.fixture
def page(analysed):
    return (analysed.out / 'report.html').read_text(encoding='utf-8')


def written(study, tmp_path):
    """The tables of the report of a study."""
    write_report(study, [], tmp_path / 'report.html')
    return Tables((tmp_path / 'report.html').read_text(encoding='utf-8'))


def test_it_is_one_file(page):
    assert page.count('<img src="data:image/png;base64,') == len(PICTURES)
    assert 'http' not in page.replace('data:image', '')
    for _, _, caption in PICTURES:
        assert caption[:20] in page


def test_it_opens_with_accuracy_size_latency_and_trace(page, analysed):
    table = Tables(page).tables[0]
    assert table[0] == ['model', 'epoch', 'top-1, %', 'weights, kB',
                        'ms per image', 'Hessian trace']
    assert [row[:2] for row in table[1:]] == [
        ['full', '3'], ['quantized epoch_1', '1'], ['quantized epoch_2', '2'],
        [NAIVE, '']]
    for row in table[1:3]:
        model = analysed.study['models'][row[0]]
        assert row[2] == (f'{model["accuracy"]["value"]:.2f} ± '
                          f'{model["accuracy"]["error"]:.2f}')
        assert row[3] == f'{model["kilobytes"]:.1f}'
        assert row[4] == f'{model["latency_ms"]:.2f}'
        assert float(row[5].partition(' ± ')[0]) == pytest.approx(
            model['trace']['value'], 1e-3)
    assert table[4][5] == ''
    assert 'in PyTorch on this machine' in page
    assert 'images of the val set' in page


def test_without_accuracy_the_cell_is_blank(analysed, tmp_path):
    study = copy.deepcopy(analysed.study)
    study['models']['full']['accuracy'] = None
    assert written(study, tmp_path).tables[0][1][2] == ''


def test_the_layers_to_give_more_bits_follow(page, analysed, tmp_path):
    found = Tables(page)
    assert found.headings[:3] == ['FPQ analysis', 'Layers to give more bits',
                                  'quantized']
    study = copy.deepcopy(analysed.study)
    rows = study['models']['quantized epoch_2']['layers']
    worst = next(row for row in rows if row['name'].endswith('3.1.conv2'))
    worst['sqnr'] = dict(weight=2.0, input=20.0, output=1.5)
    worst['weight_bits'] = 2
    found = written(study, tmp_path)
    assert found.tables[1][1][:6] == [worst['name'], '2', '4', '2.0', '20.0',
                                      '1.5']
    outputs = [float(row[5]) for row in found.tables[1][1:]]
    assert outputs == sorted(outputs)
    assert 1 < len(outputs) <= 5
    options = eval(f'dict({found.code})')['overrides']
    assert list(options) == [row[0] for row in found.tables[1][1:]]
    assert options[worst['name']] == dict(weight=dict(bits=4))


def test_a_float_model_gets_no_advice(analysed, tmp_path):
    study = copy.deepcopy(analysed.study)
    study['models'] = dict(full=study['models']['full'])
    assert 'Layers to give more bits' not in written(study, tmp_path).headings


def test_names_are_escaped(analysed, tmp_path):
    study = copy.deepcopy(analysed.study)
    study['models'] = {'<b>&': study['models']['full']}
    found = written(study, tmp_path)
    assert found.tables[0][1][0] == '<b>&'
    assert '<b>' not in (tmp_path / 'report.html').read_text('utf-8')


def test_every_measured_layer_has_a_row(page, analysed):
    tables = Tables(page).tables
    for table, label in zip(tables[-2:], ('full', 'quantized epoch_2')):
        rows = analysed.study['models'][label]['layers']
        assert [row[0] for row in table[1:]] == [row['name'] for row in rows]
        assert all(re.fullmatch(r'-?[\d.e-]+ ± [\d.e-]+', row[-1])
                   for row in table[1:])
