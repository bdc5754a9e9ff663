"""What an export reports, as figures and as text."""

import json
from dataclasses import replace

import pytest

from fpq_plugin.export import ExportReport, Parity
from fpq_plugin.export.report import ExportedLayer, Latency


@pytest.fixture
def report():
    parity = Parity(images=40, largest_difference=0.5, mean_difference=0.01,
                    spread=2., answers=40, other_class=1, top1_trained=75.,
                    top1_exported=72.5)
    return ExportReport(
        'model.onnx', 1500, 6000, 21, parity, (Latency(1, 2e-3, 4e-3, 3e-3),),
        (ExportedLayer('stem.conv', 8, 32, 216),))


def test_figures_are_those_of_the_parts(report):
    figures = json.loads(json.dumps(report.as_dict()))
    assert figures['size_ratio'] == 0.25
    assert figures['parity']['equal'] == pytest.approx(97.5)
    (latency, ) = figures['latencies']
    assert latency['ratio'] == pytest.approx(0.5)
    assert latency['unpacked_ratio'] == pytest.approx(0.75)
    assert figures['layers'] == [dict(name='stem.conv', weight_bits=8,
                                      activation_bits=32, weights=216)]


def test_the_text_has_them_in_units(report):
    lines = [line.split() for line in str(report).splitlines()]
    assert ['stem.conv', '8', '32', '216'] in lines
    assert ['file,', 'kB', '1.5', '6.0', '0.250'] in lines
    assert ['ms,', 'batch', '1', '2.00', '4.00', '0.50'] in lines
    assert ['ms,', 'batch', '1,', 'unpacked', '3.00', '4.00', '0.75'] in lines
    assert 'equal class 97.50 %' in str(report)
    assert 'top-1 72.50 %, trained 75.00 %' in str(report)


def test_what_became_of_biases_is_told(report):
    told = replace(
        report, bias_reason='top-1 is 0.40 points lower',
        biases=(('a', ''), ('b', 'too coarse'), ('c', 'too coarse')))
    assert told.bias_line() == (
        'integer biases: 1 of 3 layers, because with more of them top-1 is '
        '0.40 points lower; float because too coarse (2)')
    assert told.bias_line() in str(told)
    assert 'lower; integer kernels that this costs: 7; float' in replace(
        told, lost_kernels=7).bias_line()
    figures = json.loads(json.dumps(told.as_dict()))
    assert figures['integer_biases'] == dict(
        reason='top-1 is 0.40 points lower', lost_kernels=0,
        layers=dict(a='integers', b='too coarse', c='too coarse'))
    assert 'biases' not in str(report)


def test_what_is_worse_than_in_full_precision_is_a_warning(report):
    assert report.warnings() == []
    assert 'warning' not in str(report)
    slow = replace(report, latencies=(
        Latency(1, 2e-3, 4e-3, 2e-3), Latency(32, 6e-3, 4e-3, 3e-3),
        Latency(64, 4.1e-3, 4e-3, 4e-3)))
    warning, way_out = slow.warnings()
    assert '--target onnxruntime' in way_out
    assert len(replace(slow, target='onnxruntime').warnings()) == 1
    assert warning.startswith('slower than in full precision: 1.50 times the '
                              'time with batches of 32 (0.75 unpacked')
    assert f'warning: {warning}' in str(slow)
    warning, _ = replace(report, latencies=(
        Latency(32, 6e-3, 4e-3), )).warnings()
    assert warning.endswith('1.50 times the time with batches of 32')
    other = replace(report, latencies=(), target='Mine', batch_size=8)
    assert other.warnings() == [
        'checked against the rules of Mine, and not run in it',
        'takes batches of 8 alone']
    assert other.as_dict()['warnings'] == other.warnings()


def test_moved_weights_are_told(report):
    text, = [each for each in replace(report, moved_weights=3,
                                      target='Mine').warnings()
             if 'weights' in each]
    assert text == ('3 weights of -128 are one step from it in the file, so '
                    'that Mine computes their layers on integers')
    assert replace(report, moved_weights=3).as_dict()['moved_weights'] == 3
