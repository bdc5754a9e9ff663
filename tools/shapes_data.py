"""Pictures of rectangles and discs, as COCO and as segmentation data sets.

Small enough to be made when needed: for tests and short runs of detectors
and segmentors.

    python tools/shapes_data.py FOLDER --number 40 --size 128
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ('rectangle', 'disc')


def draw(rng: np.random.Generator,
         size: int) -> tuple[Image.Image, Image.Image, list[dict]]:
    """One picture.

    Args:
        rng (Generator): Source of randomness.
        size (int): Height and width.

    Returns:
        tuple: The picture; the map of classes, 0 for background; one dict a
        shape with ``category_id``, ``bbox``, ``area``, ``segmentation``.
    """
    noise = rng.integers(0, 80, (size, size, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    labels = Image.new('L', (size, size))
    annotations = []
    for _ in range(rng.integers(1, 4)):
        kind = int(rng.integers(len(CLASSES)))
        width, height = rng.integers(size // 5, size // 2, 2)
        height = width if kind else height
        left, top = (int(rng.integers(size - n)) for n in (width, height))
        box = (left, top, left + int(width), top + int(height))
        colour = tuple(int(c) for c in rng.integers(120, 256, 3))
        for canvas, fill in ((image, colour), (labels, kind + 1)):
            shape = ImageDraw.Draw(canvas)
            (shape.ellipse if kind else shape.rectangle)(box, fill=fill)
        annotations.append(
            dict(
                category_id=kind + 1,
                bbox=[left, top, int(width), int(height)],
                area=int(width * height),
                segmentation=[_outline(box, kind)]))
    return image, labels, annotations


def make(folder: Path, number: int, size: int, seed: int = 0) -> None:
    """Write ``number`` pictures of ``size`` x ``size``, see :func:`write`."""
    rng = np.random.default_rng(seed)
    write(folder, (draw(rng, size) for _ in range(number)), CLASSES)


def write(folder: Path,
          pictures: Iterable[tuple[Image.Image, Image.Image, list[dict]]],
          classes: Sequence[str]) -> None:
    """Write pictures, ``coco.json`` and the maps of classes.

    Pictures are in ``images/*.jpg``, maps in ``labels/*.png``.

    Args:
        folder (Path): Where, made if it is not there.
        pictures (Iterable): As :func:`draw` gives them.
        classes (Sequence[str]): Names of the categories 1, 2, ...
    """
    for part in ('images', 'labels'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index, (image, labels, found) in enumerate(pictures):
        image.save(folder / f'images/{index:04}.jpg', quality=95)
        labels.save(folder / f'labels/{index:04}.png')
        images.append(dict(id=index, file_name=f'{index:04}.jpg',
                           width=image.width, height=image.height))
        annotations += [
            dict(row, id=len(annotations) + place + 1, image_id=index,
                 iscrowd=0)
            for place, row in enumerate(found)
        ]
    (folder / 'coco.json').write_text(json.dumps(dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=place + 1, name=name)
                    for place, name in enumerate(classes)])))


def _outline(box: tuple[int, ...], kind: int) -> list[float]:
    left, top, right, bottom = box
    if not kind:
        return [left, top, right, top, right, bottom, left, bottom]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([(left + right) / 2 + (right - left) / 2 * np.cos(
        angles), (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)], 1)
    return points.flatten().round(1).tolist()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--number', type=int, default=40)
    parser.add_argument('--size', type=int, default=128)
    args = parser.parse_args()
    make(args.folder, args.number, args.size)
