"""Measures training inputs against their originals: pixels, colours, axes, flips and boxes.

Nothing here shares code with what makes a batch: the originals are decoded by another library,
areas averaged by their exact sums, and boxes carried over anew.
"""

import io
import itertools
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

PLAIN = ('RGB', 'RGBA', 'L', 'LA', 'P', '1')  # of Pillow's modes, those that decoders agree on
SLIVER = 16  # pixels of a side, below which resizing leaves too little to compare
THUMBNAIL, PATCH = 32, 8  # cells along a side that pictures and boxes are compared at
SMALLEST = 8  # pixels along a side, before and after, below which a box's content says too little
MOVED = 0.1  # of the image's sides: how far a box is moved to see what an error would look like
ORDERS = [''.join(order) for order in itertools.permutations('RGB')]


class Evidence(NamedTuple):
    """What was measured on one image; distances are mean absolute differences, in levels of 255."""

    image_id: str
    round_trip: float  # the most that a pixel differs from itself, normalised and back
    formula: float  # the most that the input differs from (pixel - mean) / std, in levels
    outside: float  # the most that the input differs from 0 outside the real image
    size: tuple[int, int]  # (height, width) of the real image
    planned: tuple[int, int]
    padded: bool  # whether the canvas is larger
    turns: dict[str, float]  # distance to the original, turned this way; {} without one
    colours: dict[str, float]  # distance to the original, its channels in this order
    same_objects: bool  # as many, and of the same kinds
    beyond: float  # pixels that boxes reach out of the real image
    corners: dict[bool, np.ndarray]  # [n] pixels each box is off, if flipped and if not
    patches: dict[bool, np.ndarray]  # [m] distances of the boxes' content, if flipped and if not
    moved: np.ndarray  # [m] distances of the content, had the box been moved


def decode(data):
    """Returns a file's uint8 [height, width, 3] RGB pixels as Pillow reads them, unturned.

    None where decoders may well differ, or Pillow cannot read it.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in PLAIN:
                return None
            image = image.convert('RGBA') if 'transparency' in image.info else image
            return np.asarray(image.convert('RGB'))
    except Exception:  # whatever a strange file makes Pillow raise: cv2 has read it
        return None


def compare(record, original, network, seen, row, planned, pixels):
    """Measures one image of a batch.

    Args:
      record: the Record that it was made from.
      original: uint8 [h, w, 3] RGB pixels by another way than the batch's, or None.
      network: float32 [H, W, 3] network input.
      seen: uint8 [H, W, 3] RGB, the network's input carried back.
      row: dict of the image's row of the batch.
      planned: (height, width) that the image is to be resized to.
      pixels: the Pixels that made the input.
    """
    size = tuple(int(side) for side in row['size'])
    height, width = size
    real = row['kind'] > 0
    boxes = row['boxes'][real].astype(np.float64)
    inside = np.zeros(seen.shape[:2], bool)
    inside[:height, :width] = True
    difference = np.abs(seen.astype(np.int16) - row['image'])[inside]
    expected = row['image'][..., ['RGB'.index(channel) for channel in pixels.order]]
    expected = (expected.astype(np.float64) - pixels.mean) / pixels.std
    formula = np.abs((network - expected) * pixels.std)[inside]
    reach = boxes - np.array([width, height] * 2)
    common = dict(
        image_id=record.image_id,
        round_trip=float(difference.max(initial=0)),
        formula=float(formula.max(initial=0)),
        outside=float(np.abs(network[~inside]).max(initial=0)),
        size=size,
        planned=tuple(int(side) for side in planned),
        padded=not inside.all(),
        same_objects=np.array_equal(row['kind'][real], record.kind),
        beyond=float(max(reach.max(initial=0), (-boxes).max(initial=0))),
    )
    return Evidence(**common, **_content(record, original, seen, size, boxes))


def _content(record, original, seen, size, boxes):
    """Returns what the pixels say, as fields of Evidence."""
    same = len(boxes) == len(record.boxes)
    corners = {f: _offsets(record, boxes, size, f) if same else np.zeros(0) for f in (False, True)}
    found = dict(turns={}, colours={}, corners=corners, moved=np.zeros(0))
    found['patches'] = {False: np.zeros(0), True: np.zeros(0)}
    if original is None or min(*size, *original.shape[:2]) < SLIVER:
        return found
    before, after = map(_sums, (original, seen))
    thumbnail = _cells(before, [0, 0, *original.shape[1::-1]], THUMBNAIL)
    shown = _cells(after, [0, 0, *size[::-1]], THUMBNAIL)
    found['turns'] = {
        name: _distance(_colourless(turned), _colourless(shown))
        for name, turned in _turned(thumbnail).items()
    }
    upright = thumbnail
    if found['turns']['mirrored'] < found['turns']['upright']:
        upright = thumbnail[:, ::-1]
    found['colours'] = {
        order: _distance(upright[..., ['RGB'.index(c) for c in order]], shown) for order in ORDERS
    }
    if same:
        found |= _patches(before, after, record, boxes, size)
    return found


def _patches(before, after, record, boxes, size):
    """Returns the distances of the content of boxes, as fields of Evidence."""
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
    """Returns how many pixels each box is off from where the resize takes it, at most a corner."""
    scale = np.divide(size, record.size)[[1, 0, 1, 0]]
    x0, y0, x1, y1 = (record.boxes * scale).T
    carried = (size[1] - x1, y0, size[1] - x0, y1) if flipped else (x0, y0, x1, y1)
    return np.abs(np.stack(carried, 1) - boxes).max(1, initial=0)


def _turned(picture):
    """Returns the ways a picture can lie: the two right ones first."""
    ways = {'upright': picture, 'upside down': picture[::-1]}
    ways['with height and width swapped'] = picture.swapaxes(0, 1)
    ways['turned by 90 degrees'] = picture.swapaxes(0, 1)[::-1]
    mirrored = {f'{name}, mirrored': way[:, ::-1] for name, way in ways.items()}
    mirrored['mirrored'] = mirrored.pop('upright, mirrored')
    return ways | mirrored


def _sums(image):
    """Returns the table [h + 1, w + 1, 3] of the sums of all pixels above and left of a corner."""
    return cv2.integral(np.ascontiguousarray(image), sdepth=cv2.CV_64F)


def _cells(sums, box, cells):
    """Returns the mean colours [cells, cells, 3] of a box that is divided into equal cells."""
    x0, y0, x1, y1 = box
    rows = _between(sums, np.linspace(y0, y1, cells + 1))
    corners = _between(rows.swapaxes(0, 1), np.linspace(x0, x1, cells + 1)).swapaxes(0, 1)
    area = max((x1 - x0) * (y1 - y0) / cells**2, 1e-9)
    return np.diff(np.diff(corners, axis=0), axis=1) / area


def _between(table, places):
    """Returns the rows of a table at places that may lie between two of them."""
    places = np.clip(places, 0, len(table) - 1)
    low = np.minimum(places.astype(int), len(table) - 2)
    share = (places - low).reshape(-1, 1, 1)
    return table[low] * (1 - share) + table[low + 1] * share


def _colourless(cells):
    """Returns two channels that stay the same in whatever order red, green and blue are."""
    return np.stack([cells.mean(-1), cells.max(-1)], -1)


def _distance(a, b):
    return float(np.abs(a - b).mean())
