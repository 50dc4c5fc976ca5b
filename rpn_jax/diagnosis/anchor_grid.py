"""How well the grid of anchors can fit objects, in closed form: no list of anchors is made.

The anchors of a type are one box, moved in steps of the stride. Their area is the same everywhere,
so that an object's best one is where the two overlap most. An overlap is a product of lengths along
x and along y, and each is greatest at the cell that is nearest to the object's centre: the best IoU
of an object with all anchors of a type takes one cell. NumPy float64, over the objects of a split.
"""

import math
from typing import NamedTuple

import numpy as np

from rpn_jax import data
from rpn_jax.data.batches import scale
from rpn_jax.data.records import OBJECT
from rpn_jax.evaluation import metrics
from rpn_jax.ops.anchors import base_anchors
from rpn_jax.ops.boxes import MAX_LOG_SCALE

BLOCK = 2**21  # overlaps that are computed at a time


class Objects(NamedTuple):
    """The objects (kind 1) of a split, as a training step sees them, image after image."""

    boxes: np.ndarray  # [n, 4] float64, pixels of the canvas
    image: np.ndarray  # [n] int: the position of each one's image in its split, ascending
    sizes: np.ndarray  # [n, 2] int: (height, width) of the resized image
    canvases: np.ndarray  # [n, 2] int: (height, width) of its canvas
    areas: np.ndarray  # [n] square pixels of the original image

    def take(self, rows):
        """Returns the Objects of these rows, a slice or an array."""
        return Objects(*(column[rows] for column in self))

    def by_image(self):
        """Yields the Objects of each image that has any."""
        starts = np.flatnonzero(np.diff(self.image, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(self.image)], strict=False):
            yield self.take(slice(first, last))


class Layout(NamedTuple):
    """What decides the anchors of every canvas, as the RPN of the same fields has it."""

    strides: tuple[int, ...]  # pixels, of each level
    sizes: tuple[tuple[float, ...], ...]  # of each level
    aspect_ratios: tuple[float, ...]

    @classmethod
    def of(cls, model):
        """Returns the Layout of an RPN."""
        return cls(model.strides, model.sizes, model.aspect_ratios)


class Types(NamedTuple):
    """The types of anchors, in the order of Anchors.types."""

    level: np.ndarray  # [T] int
    stride: np.ndarray  # [T] pixels
    half: np.ndarray  # [T, 2] half the width and the height, whole pixels
    names: tuple[tuple[float, float], ...]  # (size, aspect ratio)


def objects_of(source, options):
    """Returns the Objects of a training split, resized as data.Options say, without flips."""
    canvases = data.canvases_of(source, options)
    columns = [
        (
            record.boxes[own] * scale(record, canvases.sizes[i]),
            np.full(own.sum(), i),
            np.tile(canvases.sizes[i], (own.sum(), 1)),
            np.tile(canvases.shapes[canvases.of[i]], (own.sum(), 1)),
            metrics.area(record.boxes[own]),
        )
        for i, record in enumerate(source.records)
        if (own := record.kind == OBJECT).any()
    ]
    none = (np.zeros((0, 4)), np.zeros(0, int), *[np.zeros((0, 2), int)] * 2, np.zeros(0))
    boxes, *rest = (np.concatenate(column) for column in zip(none, *columns, strict=True))
    return Objects(boxes.astype(np.float64), *rest)


def types_of(layout):
    """Returns the Types of a Layout."""
    rows = [
        (level, layout.strides[level], own)
        for level, sizes in enumerate(layout.sizes)
        for own in ((size, ratio) for ratio in layout.aspect_ratios for size in sizes)
    ]
    level, stride, names = zip(*rows, strict=True)
    return Types(np.array(level), np.array(stride, np.float64), halves(names), names)


def halves(names):
    """Returns half the width and the height [T, 2] of anchors of (size, aspect ratio)."""
    return np.concatenate([base_anchors((s,), (r,)) for s, r in names])[:, 2:].astype(np.float64)


def best_overlaps(objects, types, border=-1):
    """Returns the best IoU [n, T] of each object with the anchors of each type, not clipped.

    border is that of matching.match: where it is not negative, anchors that reach further out of
    the image do not count. Without any anchor that does the IoU is 0.
    """
    found = [_best(own, types, border)[0] for own in _blocks(objects, len(types.level))]
    return np.concatenate([np.zeros((0, len(types.level))), *found])


def clipped_overlaps(objects, types):
    """Returns the best IoU [n] of each object with all anchors, clipped to the image.

    Clipping makes an anchor fit better, at its best where the edge that is left inside the image is
    that of the object: along each axis the cells beside three positions can be the best.
    """
    found = [_best_clipped(own, types) for own in _blocks(objects, 36 * len(types.level))]
    return np.concatenate([np.zeros(0), *found])


def positives(objects, types, *, positive_iou=0.7, border=-1):
    """Returns the foreground anchors of one image, and the object that each is matched to.

    These are positions [p, 3] int (type, row and column of the cell), in no special order, and
    matched [p], the object. objects are those of the image, at least one.
    """
    best, along, cells = _best(objects, types, border)
    least = np.minimum(positive_iou, best.max(axis=1))  # that makes an anchor positive
    is_near = best >= least[:, None]
    row, kind = np.nonzero(is_near & ((least > 0) | (positive_iou <= 0))[:, None])
    boxes, half, stride = objects.boxes[row], types.half[kind], types.stride[kind]
    areas = metrics.area(boxes), 4 * half.prod(axis=1)
    needed = least[row] * sum(areas) / (1 + least[row])  # overlap
    bounds = []
    for axis in (0, 1):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        across = np.maximum(along[1 - axis][row, kind], 1e-9)
        reach = half[:, axis] + (high - low) / 2 - needed / across + 1e-6
        reach = np.where(needed > 0, reach, np.inf)
        first, last = (np.broadcast_to(each, best.shape)[row, kind] for each in cells[axis])
        centre = (low + high) / 2
        first = np.maximum(first, np.ceil((centre - reach) / stride))
        bounds.append((first, np.minimum(last, np.floor((centre + reach) / stride))))
    pair, column, line = _cells_between(*bounds)
    overlaps = _iou(
        *(
            _length(boxes[pair, axis], boxes[pair, axis + 2], cell * stride[pair], half[pair, axis])
            for axis, cell in ((0, column), (1, line))
        ),
        *(area[pair] for area in areas),
    )
    is_positive = overlaps >= least[row[pair]]
    position = np.stack([kind[pair], line, column], axis=1)[is_positive].astype(int)
    _, first = np.unique(position @ _mixed(position), return_index=True)
    position = position[first]
    matched = metrics.iou(_boxes(position, types), objects.boxes).argmax(axis=1)
    return position, matched


def regressed(objects, types, position, matched):
    """Returns the best IoU [n] of an image's objects with its positive anchors moved onto theirs.

    position and matched as positives returns them. No anchor grows more than decode lets it.
    """
    pairs = np.unique(np.stack([position[:, 0], matched], axis=1), axis=0)
    half, boxes = types.half[pairs[:, 0]], objects.boxes[pairs[:, 1]]
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    sides = np.minimum(sides, math.exp(MAX_LOG_SCALE) * 2 * half)
    moved = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    height, width = objects.sizes[0]
    return metrics.best_overlaps([np.clip(moved, 0, [width, height] * 2)], [objects.boxes])


def _blocks(objects, each):
    """Yields the Objects in blocks with at most BLOCK overlaps, `each` of one object."""
    rows = max(1, BLOCK // each)
    return (objects.take(slice(i, i + rows)) for i in range(0, len(objects.boxes), rows))


def _best(objects, types, border):
    """Returns the best IoUs [n, T], their lengths along x and y, and the cells that count."""
    along, cells = [], []
    for axis in (0, 1):
        low, high = objects.boxes[:, axis, None], objects.boxes[:, axis + 2, None]
        half, stride = types.half[:, axis], types.stride
        first, last = 0, np.ceil(objects.canvases[:, 1 - axis, None] / stride) - 1
        if border >= 0:
            size = objects.sizes[:, 1 - axis, None]
            first = np.maximum(0, np.ceil((half - border) / stride))
            last = np.minimum(last, np.floor((size + border - half) / stride))
        nearest = np.minimum(np.maximum(np.rint((low + high) / 2 / stride), first), last)
        length = _length(low, high, nearest * stride, half)
        along.append(np.where(first <= last, length, 0))
        cells.append((first, last))
    areas = metrics.area(objects.boxes)[:, None], 4 * types.half.prod(axis=1)
    return _iou(*along, *areas), along, cells


def _best_clipped(objects, types):
    inside, sides = [], []  # [n, T, 6] of each axis
    for axis in (0, 1):
        low, high = objects.boxes[:, axis, None], objects.boxes[:, axis + 2, None]
        half, stride = types.half[:, axis], types.stride
        spots = np.stack([(low + high) / 2 + 0 * half, high - half, low + half], axis=2)
        cell = np.concatenate(
            [np.floor(spots / stride[:, None]), np.ceil(spots / stride[:, None])], 2
        )
        last = np.ceil(objects.canvases[:, 1 - axis, None] / stride) - 1
        centre = np.clip(cell, 0, last[..., None]) * stride[:, None]
        size, half = objects.sizes[:, 1 - axis, None, None], half[:, None]
        inside.append(_length(low[..., None], high[..., None], centre, half))
        sides.append(_length(0, size, centre, half))
    (x, y), (width, height) = inside, sides
    areas = metrics.area(objects.boxes)[:, None, None, None], width[..., None] * height[:, :, None]
    return _iou(x[..., None], y[:, :, None], *areas).max(axis=(1, 2, 3), initial=0)


def _length(low, high, centre, half):
    """Returns how much of the interval from low to high lies within `half` of a centre."""
    return np.maximum(np.minimum(high, centre + half) - np.maximum(low, centre - half), 0)


def _iou(x, y, area, anchor_area):
    """Returns IoUs of the lengths of an overlap and the areas of both boxes."""
    overlap = x * y
    return overlap / (area + anchor_area - overlap)


def _cells_between(columns, lines):
    """Returns (pair, column, line) of every cell within bounds ([p] first, [p] last) of pairs."""
    width, height = (
        np.maximum(last - first + 1, 0).astype(int) for first, last in (columns, lines)
    )
    counts = width * height
    pair = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(pair)) - (np.cumsum(counts) - counts)[pair]
    line, column = np.divmod(number, width[pair])
    return pair, columns[0][pair] + column, lines[0][pair] + line


def _mixed(position):
    """Returns weights [3] that make a number of each (type, row, column), no two alike."""
    _, height, width = position.max(axis=0, initial=0) + 1
    return np.array([height * width, width, 1])


def _boxes(position, types):
    """Returns the anchors [p, 4] at positions [p, 3], not clipped."""
    kind, line, column = position.T
    centre = np.stack([column, line], axis=1) * types.stride[kind, None]
    return np.concatenate([centre - types.half[kind], centre + types.half[kind]], axis=1)
