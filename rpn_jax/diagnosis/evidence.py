"""Measures training inputs against their originals: pixels, colours, axes, flips and boxes.

Nothing here shares code with what makes a batch: another library decodes the originals, areas are
averaged by their exact sums, and boxes are scaled anew.
"""

import io
import itertools
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from rpn_jax.data.records import Kind

PLAIN = ('RGB', 'RGBA', 'L', 'LA', 'P', '1')  # Pillow's modes that all decoders read alike
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


def decode(data):
    """Returns a file's uint8 [height, width, 3] RGB pixels as Pillow reads them, not rotated.

    None where other decoders may differ, or Pillow cannot read the file.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in PLAIN:
                return None
            image = image.convert('RGBA') if 'transparency' in image.info else image
            return np.asarray(image.convert('RGB'))
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
        **_content(record, original, seen, size, boxes),
    )


def _content(record, original, seen, size, boxes):
    """Returns the fields of Evidence that compare pixels or corners."""
    same, none = len(boxes) == len(record.boxes), {False: np.zeros(0), True: np.zeros(0)}
    corners = {f: _offsets(record, boxes, size, f) for f in none} if same else none
    fields = dict(turns={}, colours={}, corners=corners, patches=none, moved=np.zeros(0))
    if original is None or min(*size, *original.shape[:2]) < SLIVER:
        return fields
    before, after = map(_sums, (original, seen))
    thumbnail = _cells(before, [0, 0, *original.shape[1::-1]], THUMBNAIL)
    shown = _cells(after, [0, 0, *size[::-1]], THUMBNAIL)
    fields['turns'] = {
        name: _distance(_colourless(turned), _colourless(shown))
        for name, turned in _turned(thumbnail).items()
    }
    mirrored = fields['turns']['mirrored'] < fields['turns']['upright']
    upright = thumbnail[:, ::-1] if mirrored else thumbnail
    fields['colours'] = {
        order: _distance(upright[..., ['RGB'.index(c) for c in order]], shown) for order in ORDERS
    }
    if same:
        fields |= _patches(before, after, record, boxes, size)
    return fields


def _patches(before, after, record, boxes, size):
    """Returns the fields of Evidence that compare the content of boxes."""
    patches, moved = {False: [], True: []}, []
    extent = np.array([size[1], size[0]] * 2, np.float64)
    for old, new in zip(record.boxes.astype(np.float64), boxes, strict=True):
        if min(*(old[2:] - old[:2]), *(new[2:] - new[:2])) < SMALLEST:
            continue
        content = _colourless(_cells(before, old, PATCH))
        shown = _colourless(_cells(after, new, PATCH))
        for flipped in patches:
            patches[flipped].append(_distance(content[:, ::-1] if flipped else content, shown))
        upright = content if patches[False][-1] <= patches[True][-1] else content[:, ::-1]
        steps = extent * MOVED * [[1, 0, 1, 0], [-1, 0, -1, 0], [0, 1, 0, 1], [0, -1, 0, -1]]
        others = [_cells(after, np.clip(new + step, 0, extent), PATCH) for step in steps]
        moved.append(min(_distance(upright, _colourless(other)) for other in others))
    return {
        'patches': {flipped: np.array(values) for flipped, values in patches.items()},
        'moved': np.array(moved),
    }


def _offsets(record, boxes, size, flipped):
    """Returns how many pixels the corners of each box are off from the resized annotation: [n]."""
    scale = np.divide(size, record.size)[[1, 0, 1, 0]]
    x0, y0, x1, y1 = (record.boxes * scale).T
    expected = (size[1] - x1, y0, size[1] - x0, y1) if flipped else (x0, y0, x1, y1)
    return np.abs(np.stack(expected, 1) - boxes).max(1, initial=0)


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
