"""The composed scenes: their annotations say what is in the picture."""

import json

import numpy as np
import pytest
from garments_data import CLASSES, INK, scene
from PIL import Image
from shapes_data import write


def garments():
    """Bright ones of an outline: a class each, by their height."""
    images = np.zeros((10, 28, 28), np.uint8)
    for kind in range(10):
        images[kind, 2:8 + 2 * kind, 4:24] = 200
    return images, np.arange(10)


def scenes(number, seed=0):
    rng = np.random.default_rng(seed)
    return [scene(rng, *garments(), 96) for _ in range(number)]


def decoded(code):
    """COCO's run lengths, down the columns, one run at a time."""
    height, width = code['size']
    flat, value = [], 0
    for count in code['counts']:
        flat += [value] * count
        value = 1 - value
    assert len(flat) == height * width
    return np.array(flat, bool).reshape(width, height).T


def test_masks_boxes_and_maps_agree():
    hidden = 0
    for _, labels, rows in scenes(40):
        labels = np.asarray(labels)
        told = np.zeros(labels.shape, int)
        for row in rows:
            mask = decoded(row['segmentation'])
            assert mask.sum() == row['area'] > 0
            assert (labels[mask] == row['category_id']).all()
            left, top, width, height = row['bbox']
            ys, xs = np.nonzero(mask)
            assert (xs.min(), ys.min()) == (left, top)
            assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == (width, height)
            told += mask
        assert told.max() <= 1  # one over the other, not both
        hidden += ((labels > 0) & (told == 0)).any()
    assert hidden  # too little of some is seen


def test_what_covers_is_seen_and_the_ground_differs():
    (picture, labels, _), (other, *_) = scenes(2)
    inked = np.asarray(labels) > 0
    assert 0.02 < inked.mean() < 0.8
    assert np.asarray(picture).std() > INK / 2
    assert not np.array_equal(picture, other)


def test_a_seed_makes_the_same_scenes(tmp_path):
    for name in ('a', 'b'):
        write(tmp_path / name, iter(scenes(3)), CLASSES)
    first = json.loads((tmp_path / 'a/coco.json').read_text())
    assert (tmp_path / 'b/coco.json').read_text() == json.dumps(first)
    assert [image['file_name'] for image in first['images']] == [
        '0000.jpg', '0001.jpg', '0002.jpg']
    assert len({row['id'] for row in first['annotations']}) == len(
        first['annotations'])
    assert len(first['categories']) == 10
    with Image.open(tmp_path / 'a/labels/0000.png') as labels:
        assert np.asarray(labels).max() <= 10


@pytest.mark.parametrize('seed', [1, 2])
def test_another_seed_makes_others(seed):
    assert not np.array_equal(scenes(1)[0][0], scenes(1, seed)[0][0])
