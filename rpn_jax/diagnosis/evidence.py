"""Measures training inputs against their originals: pixels, colours, axes, flips and boxes.

Nothing here shares code with what makes a batch: another library decodes the originals, areas are
averaged by their exact sums, and boxes are scaled anew.
"""

import io
import itertools
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from rpn_jax.data import images
from rpn_jax.data.records import Kind

PLAIN = ('RGB', 'RGBA', 'L', 'LA', 'P', '1')  # Pillow's modes that all decoders read alike
LARGEST = 2**24  # pixels of an image that sums of 24 bytes a pixel are made of
SLIVER = 16  # pixels of a side; a resized image with less is not compared
THUMBNAIL, PATCH = 32, 8  # cells along a side that pictures and boxes are compared at
SMALLEST = 8  # pixels of a side, before and after; the content of smaller boxes is not compared
MOVED = 0.1  # of the image's sides: how far boxes are moved, to measure what an error would give
ORDERS = [''.join(order) for order in itertools.permutations('RGB')]


class Evidence(NamedTuple):
    """What was measured on one image; distances are mean absolute differences, in levels of 255."""

    image_id: str
    round_trip: float  # greatest difference of a pixel from itself, normalised and back
    formula: float  # greatest difference of the input from (pixel - mean) / std, in levels
    outside: float  # greatest absolute value of the input outside the real image
    size: tuple[int, int]  # (height, width) of the real image
    planned: tuple[int, int]  # what size should be
    padded: bool  # whether the canvas is larger
    turns: dict[str, float]  # distance to the original, turned this way; {} without an original
    colours: dict[str, float]  # distance to the original, its channels in this order
    same_objects: bool  # whether the boxes are as many, and of the same kinds
    beyond: float  # pixels that boxes extend out of the real image
    corners: dict[bool, np.ndarray]  # [n] pixels each box is off, if flipped and if not
    patches: dict[bool, np.ndarray]  # [m] distances of the boxes' content, if flipped and if not
    moved: np.ndarray  # [m] distances of the content after moving the box


def decode(data, turned=False):
    """Returns a file's uint8 [height, width, 3] RGB pixels as Pillow reads them.

    turned says whether its EXIF orientation is applied. None where other decoders may differ, or
    Pillow cannot read the file.
    """
    try:
        with warnings.catch_warnings(action='ignore'), Image.open(io.BytesIO(data)) as image:
            if image.mode not in PLAIN:
                return None
            image = image.convert('RGBA') if 'transparency' in image.info else image
            image = ImageOps.exif_transpose(image) if turned else image
            return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
    except Exception:  # Pillow raises almost anything; OpenCV has read the file already
        return None


def compare(record, original, network, seen, row, planned, pixels):
    """Returns the Evidence of one image of a batch, made from a record.

    original is its uint8 [h, w, 3] RGB pixels, decoded in another way than the batch's, or None;
    network the float32 [H, W, 3] input that `pixels` made, seen the same as uint8 RGB again; row is
    the image's row of the batch, planned the (height, width) that it is to be resized to.
    """
    size = tuple(int(side) for side in row['size'])
    height, width = size
    real = row['kind'] != Kind.PADDING
    boxes = row['boxes'][real].astype(np.float64)
    inside = np.zeros(seen.shape[:2], bool)
    inside[:height, :width] = True
    difference = np.abs(seen.astype(np.int16) - row['image'])[inside]
    expected = row['image'][..., ['RGB'.index(channel) for channel in pixels.order]]
    expected = (expected.astype(np.float64) - pixels.mean) / pixels.std
    formula = np.abs((network - expected) * pixels.std)[inside]
    reach = boxes - np.array([width, height] * 2)
    comparable = len(boxes) == len(record.boxes)
    pairs = (record.boxes.astype(np.float64), boxes) if comparable else (boxes[:0], boxes[:0])
    return Evidence(
        image_id=record.image_id,
        round_trip=float(difference.max(initial=0)),
        formula=float(formula.max(initial=0)),
        outside=float(np.abs(network[~inside]).max(initial=0)),
        size=size,
        planned=tuple(int(side) for side in planned),
        padded=not inside.all(),
        same_objects=np.array_equal(row['kind'][real], record.kind),
        beyond=float(max(reach.max(initial=0), (-boxes).max(initial=0))),
        corners=_corners(*pairs, np.divide(size, record.size), width),
        **_content(pairs, original, seen, size),
    )


def _corners(before, after, scale, width):
    """Returns how many pixels the corners of each box [n] are off from the resized annotation."""
    x0, y0, x1, y1 = (before * scale[[1, 0, 1, 0]]).T
    expected = {False: (x0, y0, x1, y1), True: (width - x1, y0, width - x0, y1)}
    return {f: np.abs(np.stack(e, 1) - after).max(1, initial=0) for f, e in expected.items()}


def _content(pairs, original, seen, size):
    """Returns the fields of Evidence that compare pixels."""
    if original is None or min(*size, *original.shape[:2]) < SLIVER:
        none = np.zeros(0)
        return dict(turns={}, colours={}, patches={False: none, True: none}, moved=none)
    small = images.shrunk(original, LARGEST)
    pairs = pairs[0] * np.tile(np.divide(small.shape[1::-1], original.shape[1::-1]), 2), pairs[1]
    original = small
    sums = _sums(original), _sums(seen)
    thumbnail = _cells(sums[0], [0, 0, *original.shape[1::-1]], THUMBNAIL)
    shown = _cells(sums[1], [0, 0, *size[::-1]], THUMBNAIL)
    turns = {
        name: _distance(_colourless(turned), _colourless(shown))
        for name, turned in _turned(thumbnail).items()
    }
    upright = thumbnail[:, ::-1] if turns['mirrored'] < turns['upright'] else thumbnail
    colours = {
        order: _distance(upright[..., ['RGB'.index(c) for c in order]], shown) for order in ORDERS
    }
    same, mirrored, moved = _patches(pairs, sums, size)
    return dict(turns=turns, colours=colours, patches={False: same, True: mirrored}, moved=moved)


def _patches(pairs, sums, size):
    """Returns distances of boxes' content [3, m]: if not flipped, if flipped, after moving them."""
    extent, rows = np.array([size[1], size[0]] * 2, np.float64), []
    steps = extent * MOVED * [[1, 0, 1, 0], [-1, 0, -1, 0], [0, 1, 0, 1], [0, -1, 0, -1]]
    for before, after in zip(*pairs, strict=True):
        if min(*(before[2:] - before[:2]), *(after[2:] - after[:2])) < SMALLEST:
            continue
        content = _colourless(_cells(sums[0], before, PATCH))
        shown = _colourless(_cells(sums[1], after, PATCH))
        same, mirrored = _distance(content, shown), _distance(content[:, ::-1], shown)
        upright = content if same <= mirrored else content[:, ::-1]
        others = [_cells(sums[1], np.clip(after + step, 0, extent), PATCH) for step in steps]
        moved = min(_distance(upright, _colourless(other)) for other in others)
        rows.append((same, mirrored, moved))
    return np.reshape(rows, (-1, 3)).T


def _turned(picture):
    """Returns a picture turned and mirrored in all eight ways, by name."""
    ways = {'upside down': picture[::-1], 'with height and width swapped': picture.swapaxes(0, 1)}
    ways['turned by 90 degrees'] = picture.swapaxes(0, 1)[::-1]
    ways |= {f'{name}, mirrored': way[:, ::-1] for name, way in ways.items()}
    return {'upright': picture, 'mirrored': picture[:, ::-1]} | ways


def _sums(image):
    """Returns an image's summed-area table [h + 1, w + 1, 3]."""
    return cv2.integral(np.ascontiguousarray(image), sdepth=cv2.CV_64F)


def _cells(sums, box, cells):
    """Returns the mean colours [cells, cells, 3] of a box divided into equal cells."""
    x0, y0, x1, y1 = box
    rows = _between(sums, np.linspace(y0, y1, cells + 1))
    corners = _between(rows.swapaxes(0, 1), np.linspace(x0, x1, cells + 1)).swapaxes(0, 1)
    area = max((x1 - x0) * (y1 - y0) / cells**2, 1e-9)
    return np.diff(np.diff(corners, axis=0), axis=1) / area


def _between(table, rows):
    """Returns the rows of a table at fractional positions, interpolated."""
    rows = np.clip(rows, 0, len(table) - 1)
    low = np.minimum(rows.astype(int), len(table) - 2)
    share = (rows - low).reshape(-1, 1, 1)
    return table[low] * (1 - share) + table[low + 1] * share


def _colourless(cells):
    """Returns two channels that do not depend on the order of red, green and blue."""
    return np.stack([cells.mean(-1), cells.max(-1)], -1)


def _distance(a, b):
    return float(np.abs(a - b).mean())
