"""What the pictures of layers show, read back from their axes."""

import copy

import pytest
from matplotlib.figure import Figure

from fpq_plugin.analysis.pictures import (
    draw_channel_ranges,
    draw_histograms,
    draw_layer_traces,
    draw_sqnr,
)

NAIVE = 'W4A4 without training (of full)'


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and gives the figure that was saved."""
    figures = []
    monkeypatch.setattr(Figure, 'savefig',
                        lambda figure, *args, **more: figures.append(figure))

    def draw(function, study):
        function(study, tmp_path / 'a.png')
        figures[-1].draw_without_rendering()
        return figures[-1]

    return draw


def rows(study, label='quantized epoch_2'):
    return study['models'][label]['layers']


def test_the_untrained_model_is_named_by_what_it_is_of(drawn, analysed):
    titles = [ax.get_title().replace('\n', ' ')
              for ax in drawn(draw_channel_ranges, analysed.study).axes]
    assert titles[:3] == ['full', 'quantized', NAIVE]
    legend = drawn(draw_histograms, analysed.study).legends[0]
    assert [t.get_text() for t in legend.get_texts()] == [
        'full', 'quantized', NAIVE]


def test_ranges_are_bars_and_means_are_dots(drawn, analysed):
    figure = drawn(draw_channel_ranges, analysed.study)
    found = analysed.study['features']['channels']
    panels = figure.axes[:3]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels}) == 1
    for ax, channels in zip(panels, found.values()):
        bars = ax.collections[0].get_segments()
        assert [(b[0][1], b[1][1]) for b in bars] == list(
            zip(channels['low'], channels['high']))
        assert list(ax.lines[0].get_ydata()) == channels['mean']
        assert all(tick == int(tick) for tick in ax.get_xticks())


def test_traces_are_at_their_layers_names(drawn, analysed):
    [ax] = drawn(draw_layer_traces, analysed.study).axes
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == [row['name'] for row in rows(analysed.study)]
    line = next(line for line in ax.lines if line.get_marker() == 's')
    for row, x, y in zip(rows(analysed.study), line.get_xdata(),
                         line.get_ydata()):
        assert names[round(y)] == row['name']
        assert x == row['trace']['value']


def test_models_of_other_layers_share_an_axis(drawn, analysed):
    study = copy.deepcopy(analysed.study)
    del rows(study, 'full')[1:]
    rows(study, 'full')[0]['name'] = 'head.fc'
    [ax] = drawn(draw_layer_traces, study).axes
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert sorted(names) == sorted(row['name'] for row in rows(study))
    line = next(line for line in ax.lines if line.get_marker() == 'o')
    assert names[round(line.get_ydata()[0])] == 'head.fc'
    line = next(line for line in ax.lines if line.get_marker() == 's')
    assert [names[round(y)] for y in line.get_ydata()] == [
        row['name'] for row in rows(study)]


def test_the_traces_axis_is_logarithmic_without_negative_ones(drawn,
                                                              analysed):
    study = copy.deepcopy(analysed.study)
    for label in ('full', 'quantized epoch_2'):
        for row in rows(study, label):
            row['trace']['value'] = abs(row['trace']['value']) + 1e-3
    assert drawn(draw_layer_traces, study).axes[0].get_xscale() == 'log'
    rows(study)[3]['trace']['value'] = -1.0
    assert drawn(draw_layer_traces, study).axes[0].get_xscale() == 'linear'


def test_sqnr_of_each_part_has_a_panel_of_the_same_scale(drawn, analysed):
    figure = drawn(draw_sqnr, analysed.study)
    parts = ('weight', 'input', 'output')
    assert [ax.get_title() for ax in figure.axes] == [
        f"the layer's {part}" for part in parts]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    for ax, part in zip(figure.axes, parts):
        assert list(ax.lines[0].get_xdata()) == [
            row['sqnr'][part] for row in rows(analysed.study)]
    legend = figure.legends[0]
    assert [t.get_text() for t in legend.get_texts()] == ['quantized']


def test_float_models_have_no_sqnr(analysed, tmp_path):
    study = copy.deepcopy(analysed.study)
    study['models'] = dict(full=study['models']['full'])
    assert draw_sqnr(study, tmp_path / 'a.png') is None
