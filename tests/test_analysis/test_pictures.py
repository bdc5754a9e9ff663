"""What the pictures of whole models show, read back from their axes."""

import copy

import pytest
from matplotlib.figure import Figure

from fpq_plugin.analysis import pictures
from fpq_plugin.analysis.pictures import (
    checkpoints_by_run,
    draw_noise_gradient,
    draw_output_variance,
    draw_over_epochs,
    draw_slice_1d,
    draw_slices_2d,
    draw_spectrum,
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
