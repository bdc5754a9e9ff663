"""Scenes of Fashion-MNIST's garments, as COCO and as segmentation data sets.

Several garments of unlike sizes and colours lie on a textured ground, one over
the other. Boxes and masks are of what is visible. Scenes for training are
made of the training images, those for testing of the test images:

    python tools/garments_data.py data/garments --train 2000 --test 500
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fashion_mnist import FILES
from PIL import Image
from shapes_data import write

CLASSES = ('t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal',
           'shirt', 'sneaker', 'bag', 'boot')
MOST = 6
# Shares of a scene's side.
SMALLEST, LARGEST = 0.18, 0.5
# A garment that is hidden further is none of the scene's.
LEAST_VISIBLE = 0.4
# Grey levels above it are the garment.
INK = 20

Scene = tuple[Image.Image, Image.Image, list[dict]]


def load(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST's images (N, 28, 28) and classes (N,).

    Args:
        folder (Path): Of the four unpacked files.
        part (str): 'train' or 't10k'.
    """
    images, labels = (name for name in FILES if name.startswith(part))
    return (np.fromfile(folder / images, np.uint8)[16:].reshape(-1, 28, 28),
            np.fromfile(folder / labels, np.uint8)[8:])


def scene(rng: np.random.Generator, garments: np.ndarray,
          classes: np.ndarray, size: int) -> Scene:
    """Compose one scene.

    Args:
        rng (Generator): Source of randomness.
        garments (np.ndarray): Grey images, (N, 28, 28).
        classes (np.ndarray): Their classes, (N,), from 0.
        size (int): Height and width of the scene.

    Returns:
        tuple: The picture; the map of classes, 0 for the ground; one dict a
        garment with ``category_id`` (from 1), ``bbox``, ``area`` and
        ``segmentation``, a run-length code.
    """
    picture = _ground(rng, size)
    owner = np.zeros((size, size), int)  # 0: the ground
    kinds, whole = [], []
    for number in range(1, int(rng.integers(2, MOST + 1)) + 1):
        chosen = int(rng.integers(len(garments)))
        side = int(size * rng.uniform(SMALLEST, LARGEST))
        image = Image.fromarray(garments[chosen]).resize((side, side))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        grey = np.asarray(image)
        top, left = rng.integers(size - side + 1, size=2)
        place = np.s_[top:top + side, left:left + side]
        inked = grey > INK
        colour = rng.uniform(0.3, 1.0, 3) * grey[..., None]
        picture[place][inked] = colour[inked]
        owner[place][inked] = number
        kinds.append(int(classes[chosen]))
        whole.append(int(inked.sum()))
    labels = np.zeros((size, size), np.uint8)
    rows = []
    for number, (kind, area) in enumerate(zip(kinds, whole), 1):
        mask = owner == number
        labels[mask] = kind + 1
        if area and mask.sum() >= LEAST_VISIBLE * area:
            rows.append(_annotation(mask, kind))
    return (Image.fromarray(picture.astype(np.uint8)),
            Image.fromarray(labels), rows)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Patches, stripes and grain, each of a colour: (size, size, 3)."""
    patches = Image.fromarray(rng.integers(
        0, 160, (4, 4, 3), dtype=np.uint8)).resize((size, size))
    along = np.arange(size) * rng.uniform(0.1, 0.6)
    turned = along[:, None] * rng.uniform(-1, 1) + along * rng.uniform(-1, 1)
    stripes = 30 * np.sin(turned)[..., None] * rng.random(3)
    grain = rng.normal(0, 12, (size, size, 3))
    return (np.asarray(patches) + stripes + grain).clip(0, 255)


def _annotation(mask: np.ndarray, kind: int) -> dict:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    # COCO counts down the columns, and begins with what is outside.
    flat = np.concatenate([[False], mask.T.flatten(), [False]])
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return dict(
        category_id=kind + 1,
        bbox=[left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        area=int(mask.sum()),
        segmentation=dict(counts=counts.tolist(), size=list(mask.shape)))


def scenes(folder: Path, part: str, number: int, size: int,
           seed: int = 0) -> Iterator[Scene]:
    """So many scenes of one part of Fashion-MNIST, see :func:`scene`."""
    rng = np.random.default_rng([seed, part == 'train'])
    garments, classes = load(folder, part)
    for _ in range(number):
        yield scene(rng, garments, classes, size)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--source', type=Path,
                        default=Path('data/fashion_mnist'),
                        help='what tools/fashion_mnist.py made')
    parser.add_argument('--train', type=int, default=2000)
    parser.add_argument('--test', type=int, default=500)
    parser.add_argument('--size', type=int, default=160)
    args = parser.parse_args()
    for name, number in (('train', args.train), ('t10k', args.test)):
        write(args.folder / name,
              scenes(args.source, name, number, args.size), CLASSES)
        print(f'{args.folder / name}: {number} scenes')
