"""What the pictures show, read back from their axes."""

import copy

import pytest
from matplotlib.figure import Figure

from fpq_plugin.analysis import pictures
from fpq_plugin.analysis.pictures import (
    checkpoints_by_run,
    draw_channel_ranges,
    draw_histograms,
    draw_layer_traces,
    draw_noise_gradient,
    draw_output_variance,
    draw_over_epochs,
    draw_slice_1d,
    draw_slices_2d,
    draw_spectrum,
    draw_sqnr,
    draw_trace,
    last_of_runs,
)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws, and gives the figure that was saved."""
    figures = []
    monkeypatch.setattr(Figure, 'savefig',
                        lambda figure, *args, **more: figures.append(figure))

    def draw(function, *args):
        function(*args[:1], tmp_path / 'a.png', *args[1:])
        figures[-1].draw_without_rendering()
        return figures[-1]

    return draw


@pytest.fixture
def single(analysed):
    """The study, with one checkpoint of each run."""
    study = copy.deepcopy(analysed.study)
    del study['models']['quantized epoch_1']
    return study


def texts(figure):
    """All that is written in a figure's panels and legend."""
    found = []
    for ax in figure.axes:
        found += [ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]
        found += [t.get_text() for t in ax.get_xticklabels()]
        found += [t.get_text() for t in ax.get_yticklabels()]
    for legend in figure.legends:
        found += [legend.get_title().get_text()]
        found += [t.get_text() for t in legend.get_texts()]
    return found


ALL = (draw_noise_gradient, draw_output_variance, draw_slice_1d,
       draw_slices_2d, draw_spectrum, draw_trace)


@pytest.mark.parametrize('function', ALL)
@pytest.mark.parametrize('checkpoints', ['single', 'several'])
def test_all_models_are_named_in_words(function, checkpoints, drawn, single,
                                       analysed):
    study = single if checkpoints == 'single' else analysed.study
    found = texts(drawn(function, study))
    assert {'full', 'quantized'} <= set(found)
    assert not any('_' in text for text in found)


@pytest.mark.parametrize('function', [
    draw_noise_gradient, draw_output_variance, draw_trace, draw_spectrum])
def test_error_bars_are_explained_in_the_picture(function, drawn, analysed):
    figure = drawn(function, analysed.study)
    assert figure.legends[0].get_title().get_text().startswith('error bars: ')


@pytest.mark.parametrize('function', [draw_noise_gradient, draw_slices_2d])
def test_panels_share_their_scale(function, drawn, analysed):
    study = copy.deepcopy(analysed.study)
    steps = study['models']['full']['slice_2d']['steps']
    steps[:] = [2 * step for step in steps]
    panels = [ax for ax in drawn(function, study).axes
              if ax.get_title()]
    assert len(panels) == 2
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels}) == 1


def test_slices_share_the_levels_of_the_loss(drawn, analysed):
    figure = drawn(draw_slices_2d, analysed.study)
    contours = [c for ax in figure.axes[:2] for c in ax.collections]
    assert len({tuple(c.levels) for c in contours}) == 1
    losses = [loss for model in last_of_runs(analysed.study).values()
              for row in model['slice_2d']['loss'] for loss in row]
    assert contours[0].levels[0] == pytest.approx(min(losses))
    assert contours[0].levels[-1] == pytest.approx(max(losses))


def test_a_flat_loss_has_a_picture(drawn, single):
    for model in single['models'].values():
        model['slice_2d']['loss'] = [[0.5] * 11] * 11
    assert drawn(draw_slices_2d, single).axes[0].get_title() == 'full'


def test_the_trace_is_drawn_over_epochs_or_by_model(drawn, single, analysed):
    traces = {label: model['trace']['value']
              for label, model in analysed.study['models'].items()}
    [ax] = drawn(draw_trace, analysed.study).axes
    line = next(line for line in ax.lines if len(line.get_xdata()) == 2
                and line.get_marker() == 's')
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == [traces['quantized epoch_1'],
                                      traces['quantized epoch_2']]
    [ax] = drawn(draw_trace, single).axes
    assert [bar.get_width() for bar in ax.patches] == [
        traces['full'], traces['quantized epoch_2']]


def test_thin_bars_are_explained_where_there_are_some(drawn, single):
    title = drawn(draw_trace, single).legends[0].get_title().get_text()
    assert title == 'error bars: one standard error of the probes'
    single['models']['full']['trace']['data_error'] = 1.0
    title = drawn(draw_trace, single).legends[0].get_title().get_text()
    assert 'of the images (thin)' in title


def test_checkpoints_are_in_the_order_of_their_epochs():
    study = dict(models={
        str(epoch): dict(run='a', epoch=epoch) for epoch in (10, 9, 2)})
    assert [m['epoch'] for m in checkpoints_by_run(study)['a']] == [2, 9, 10]


def test_what_a_hook_measured_is_drawn_over_epochs(drawn):
    rows = [dict(epoch=e, sqnr_input=dict(value=float(v), error=0.5))
            for e, v in ((0, 3), (2, 5), (4, 4))]
    figure = drawn(draw_over_epochs, rows, 'SQNR, dB',
                   dict(sqnr_input='inputs', sqnr_weight='weights'))
    [ax] = figure.axes
    assert list(ax.lines[0].get_xdata()) == [0, 2, 4]
    assert list(ax.lines[0].get_ydata()) == [3, 5, 4]
    assert {'SQNR, dB', 'epoch', 'inputs', pictures.ERROR_BARS} <= set(
        texts(figure))


NAIVE = 'W4A4 without training (of full)'


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
