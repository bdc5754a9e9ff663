"""Names and axes that can be read."""

import pytest
from matplotlib.image import imread

from fpq_plugin.analysis.drawing import (
    LAYER_LABELS,
    canvas,
    entitle,
    layer_canvas,
    name_layers,
    offsets,
    save,
    shortened,
    styles,
)


def test_long_names_lose_their_middle():
    name = 'backbone.stages.2.blocks.17.attention.qkv'
    assert shortened(name, 21) == 'backbone.s\u2026ention.qkv'
    assert shortened(name, 20) == 'backbone.\u2026ention.qkv'
    assert shortened('head.fc', 7) == 'head.fc'
    for length in range(3, 50):
        assert len(shortened(name, length)) == min(length, len(name))


@pytest.mark.parametrize('layers', [1, 17, 54, 60, 61, 200, 1000])
def test_names_of_layers_do_not_overlap(layers):
    names = [f'backbone.stages.{i}.blocks.{i}.attention' for i in
             range(layers)]
    figure, [ax] = layer_canvas(layers)
    name_layers(ax, names)
    figure.draw_without_rendering()
    boxes = sorted((label.get_window_extent()
                    for label in ax.get_yticklabels()), key=lambda b: b.y0)
    assert 0 < len(boxes) <= LAYER_LABELS
    assert all(a.y1 <= b.y0 for a, b in zip(boxes, boxes[1:]))
    assert all(box.x0 >= 0 for box in boxes)
    for tick, label in zip(ax.get_yticks(), ax.get_yticklabels()):
        assert label.get_text() == shortened(names[int(tick)])
    # The first layer is at the top.
    assert ax.transData.transform((0, 0))[1] > ax.transData.transform(
        (0, layers))[1]


def test_panels_go_into_rows():
    figure, axes = canvas(5, columns=2, sharex=True, sharey=True)
    assert len(axes) == 5
    assert len(figure.axes) == 6
    assert not figure.axes[5].get_visible()
    assert figure.get_figwidth() == 8


@pytest.mark.parametrize('title', [
    'resnet_fp', 'W4A4 without training (of a_model_with_a_long_name_fp)',
    'work_dirs/experiments/a_very_long_folder/of_a_user/with_a_config'])
def test_titles_of_panels_do_not_overlap(title):
    figure, axes = canvas(3, sharey=True)
    for ax in axes:
        entitle(ax, title)
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in axes]
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
    assert boxes[0].x0 >= 0


@pytest.mark.parametrize('labels', [1, 4, 12])
def test_the_legend_is_in_the_picture_and_off_the_axes(tmp_path, labels):
    figure, axes = canvas(2)
    for i in range(labels):
        axes[0].plot([0, 1], label=f'{"a_long_name_" * 8}{i}')
    axes[1].set_xlabel('step')
    path = save(figure, tmp_path / 'a.png', 'error bars: one standard error')
    assert imread(path).shape[:2] == (380, 800)
    [legend] = figure.legends
    assert legend.get_title().get_text() == 'error bars: one standard error'
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 800
    assert box.y0 >= 0
    assert all(box.y1 < ax.get_tightbbox().y0 for ax in axes)


def test_runs_look_different_from_each_other():
    found = styles([str(i) for i in range(10)])
    assert len({(s['color'], s['marker']) for s in found.values()}) == 10
    assert styles(['a', 'b'])['b'] == styles(['a', 'b', 'c'])['b']


def test_offsets_keep_to_their_row():
    assert offsets(1) == [0]
    assert offsets(2) == [-0.125, 0.125]
    for number in range(1, 9):
        found = offsets(number)
        assert sorted(set(found)) == found
        assert sum(found) == pytest.approx(0)
        assert max(found) < 0.25
