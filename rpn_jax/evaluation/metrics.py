"""Measure proposals against the ground truth: recall, average recall, best overlap, top-k IoU.

NumPy float64 on the host; boxes are [..., 4] (x0, y0, x1, y1), half open. Every function takes ONE
image (proposals [P, 4] ranked best first, gt_boxes [G, 4]) or a split (two sequences of such
arrays, an entry per image, [0, 4] where there is nothing). The ground truth is what counts: the
caller leaves out difficult, crowd and padded rows. A figure is over the objects of the whole split,
not a mean over images; over no objects it is None, never NaN.

An object is recalled at a threshold if its best IoU is >= the threshold, without a tolerance: in
float64 a box that covers 7 of an object's 10 pixels is recalled at 0.7. A NaN box overlaps nothing.

    overlaps = measure(proposals, gt_boxes, areas)     # the only pass over the boxes
    summarise(overlaps), curves(overlaps, counts)      # any number of proposals is a lookup
    tallies(overlaps)                                  # the same figures as sums over images
    summarise(bound(best_overlaps(anchors, gt_boxes), areas))   # no rank: one value at all numbers
"""

from typing import NamedTuple

import numpy as np

# IoU 0.50:0.05:0.95 as in COCO and Hosang et al., "What makes for effective detection proposals?"
# (arXiv:1502.05082); rounded, because linspace makes 0.8999999999999999 of 0.9.
THRESHOLDS = np.linspace(0.5, 0.95, 10).round(2)
RECALLS = (0.5, 0.7)  # the IoUs whose recalls are reported by themselves
LIMITS = (10, 100, 300, 1000, 2000)
COUNTS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000)  # where curves have points
# COCO's bounds in square pixels. Here they hold for a box's area, in COCO for its mask's.
AREAS = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, np.inf)}
SIZES = tuple(f'AR@100/{size}' for size in AREAS)
COLUMNS = (  # of all tables, which leave out what they do not have
    *(f'AR@{n}' for n in LIMITS),
    *SIZES,
    *(f'recall@{threshold}/100' for threshold in RECALLS),
    *('ABO@100', 'top10_max_iou'),
)


class Overlaps(NamedTuple):
    """The overlaps of a split's proposals with its ground truth, from which figures are read."""

    running: np.ndarray  # [P + 1, objects]; row n: the best IoU among the first n proposals
    areas: np.ndarray  # [objects] square pixels of the original image
    counts: np.ndarray  # [images] number of objects of each image
    tops: np.ndarray | None  # [images] top_iou of each image, 0 without objects; None: no rank


class Tally(NamedTuple):
    """What each image adds to the two sums whose ratio is a figure."""

    numerator: np.ndarray  # [images]
    denominator: np.ndarray  # [images]

    @property
    def value(self):
        """The figure: a ratio of sums, None where the denominator is 0."""
        below = self.denominator.sum()
        return float(self.numerator.sum() / below) if below else None


def area(boxes):
    """Returns the areas [N] float64 of boxes [N, 4]."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return (x1 - x0) * (y1 - y0)


def iou(a, b):
    """Returns the intersection over union [N, M] of boxes a [N, 4] and b [M, 4]; 0/0 is 0."""
    ax0, ay0, ax1, ay1 = np.asarray(a, np.float64).T[:, :, None]
    bx0, by0, bx1, by1 = np.asarray(b, np.float64).T
    width = np.maximum(np.minimum(ax1, bx1) - np.maximum(ax0, bx0), 0)
    height = np.maximum(np.minimum(ay1, by1) - np.maximum(ay0, by0), 0)
    intersection = width * height
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def best_overlaps(proposals, gt_boxes, limit=None):
    """Returns each object's best IoU among its image's first `limit` proposals: [objects].

    Objects stand image after image; limit None means all proposals; without any the best IoU is 0.
    Raises ValueError if limit is negative or if the numbers of images differ.
    """
    if limit is not None and limit < 0:
        raise ValueError(f'limit is a number of proposals, not {limit}')
    # Objects first: the long axis, the proposals', is then the contiguous one, which is faster.
    best = [iou(o, p[:limit]).max(axis=1, initial=0) for p, o in _images(proposals, gt_boxes)]
    return np.concatenate([np.zeros(0), *best])


def recall(proposals, gt_boxes, iou, limit=None):
    """Returns the share of objects that the first `limit` proposals overlap with IoU >= iou > 0."""
    return _mean(best_overlaps(proposals, gt_boxes, limit) >= iou)


def average_recall(proposals, gt_boxes, limit=None):
    """Returns the recall of the first `limit` proposals, averaged over IoU 0.50:0.05:0.95."""
    return _average_recall(best_overlaps(proposals, gt_boxes, limit))


def average_best_overlap(proposals, gt_boxes, limit=None):
    """Returns the best IoU among the first `limit` proposals, averaged over objects."""
    return _mean(best_overlaps(proposals, gt_boxes, limit))


def top_iou(proposals, gt_boxes, count=10):
    """Returns how well the `count` best proposals fit objects, averaged over images with objects.

    Of an image: the mean over those proposals (all, if there are fewer) of the best IoU with an
    object; 0 if it has objects but no proposals.
    """
    images = _images(proposals, gt_boxes)
    return _mean(_tops(images, count)[[len(o) > 0 for _, o in images]])


def measure(proposals, gt_boxes, areas):
    """Returns the Overlaps of ranked proposals with the ground truth.

    areas: of the objects in square pixels of the ORIGINAL image, [objects] or a sequence of [G], an
    entry per image. Raises ValueError if there is not one per object.
    """
    images = _images(proposals, gt_boxes)
    running, counts = _running(images), np.array([len(o) for _, o in images], int)
    return Overlaps(running, _areas(areas, running), counts, _tops(images, 10))


def bound(best, areas):
    """Returns the Overlaps of boxes without a rank: the same figures at every number of them.

    best [objects] as best_overlaps returns it; areas as in measure, [objects] being one image.
    """
    running = np.stack([np.zeros(len(best)), np.asarray(best, np.float64)])
    counts = [len(a) for a in areas] if np.ndim(next(iter(areas), 0)) else [len(areas)]
    return Overlaps(running, _areas(areas, running), np.array(counts, int), None)


def summarise(overlaps, limits=LIMITS, post_nms=None):
    """Returns the figures of a split by their names in evaluation.json: {name: float or None}.

    limits above post_nms, the most proposals that an image can have, are left out.
    """
    figures = {
        name: _mean(values if inside is None else values[inside])
        for name, values, inside in _by_object(overlaps, limits, post_nms)
    }
    top = None if overlaps.tops is None else _mean(overlaps.tops[overlaps.counts > 0])
    return figures | {'top10_max_iou': top}


def tallies(overlaps, limits=LIMITS, post_nms=None, sized=(100,)):
    """Returns the figures of summarise as sums over images: {name: Tally}.

    sized: the numbers of proposals at which small, medium and large objects have figures.
    """
    images = len(overlaps.counts)
    of = np.repeat(np.arange(images), overlaps.counts)  # the image of each object
    sums = {}
    for name, values, inside in _by_object(overlaps, limits, post_nms, sized):
        inside = np.ones(len(of)) if inside is None else inside
        values = values.mean(axis=tuple(range(1, values.ndim))) * inside
        sums[name] = Tally(*(np.bincount(of, each, images) for each in (values, inside)))
    top = np.zeros(images), np.zeros(images)
    if overlaps.tops is not None:
        top = overlaps.tops, (overlaps.counts > 0).astype(np.float64)
    return sums | {'top10_max_iou': Tally(*top)}


def curves(overlaps, counts, post_nms=np.inf):
    """Returns recall over IoU and over the number of proposals: {name: list}.

    'iou' is the axis of recall@100/iou and recall@1000/iou (at post_nms, the most proposals of an
    image, where that is fewer); 'count', the numbers of proposals in counts, that of
    recall@0.5/count, recall@0.7/count and AR/count.
    """
    lines = {'iou': THRESHOLDS.tolist()}
    for n in sorted({min(n, post_nms) for n in (100, 1000)}):
        best = _first(overlaps, n)
        lines[f'recall@{n}/iou'] = [_mean(best >= threshold) for threshold in THRESHOLDS]
    lines['count'] = [int(n) for n in counts]
    best = [_first(overlaps, n) for n in lines['count']]
    for threshold in RECALLS:
        lines[f'recall@{threshold}/count'] = [_mean(row >= threshold) for row in best]
    return lines | {'AR/count': [_average_recall(row) for row in best]}


def columns(figures, sizes=True):
    """Returns those of COLUMNS that figures have; without sizes, those over objects of any size."""
    return [name for name in COLUMNS if name in figures and (sizes or name not in SIZES)]


def _by_object(overlaps, limits, post_nms, sized=(100,)):
    """Yields (figure, values [objects, ..], which objects count [objects], None for all)."""
    best = {n: _first(overlaps, n) for n in limits if post_nms is None or n <= post_nms}
    for n in best:
        yield f'AR@{n}', best[n][:, None] >= THRESHOLDS, None
    for n in (n for n in best if n in sized):
        for name, (low, high) in AREAS.items():
            inside = (low <= overlaps.areas) & (overlaps.areas < high)
            yield f'AR@{n}/{name}', best[n][:, None] >= THRESHOLDS, inside
    for threshold in RECALLS:
        for n in best:
            yield f'recall@{threshold}/{n}', best[n] >= threshold, None
    for n in best:
        yield f'ABO@{n}', best[n], None


def _running(images):
    """Returns Overlaps.running, P being the most proposals that an image has."""
    most = max((len(p) for p, _ in images), default=0)
    running = np.zeros((most + 1, sum(len(o) for _, o in images)))
    start = 0
    for p, o in images:
        columns = running[:, start : start + len(o)]
        columns[1 : len(p) + 1] = np.maximum.accumulate(iou(o, p), axis=1).T
        columns[len(p) + 1 :] = columns[len(p)]
        start += len(o)
    return running


def _first(overlaps, n):
    """Returns the best IoUs [objects] among the first n proposals, or all if they are fewer."""
    return overlaps.running[min(n, len(overlaps.running) - 1)]


def _average_recall(best):
    return _mean(best[:, None] >= THRESHOLDS)


def _mean(values):
    return float(values.mean()) if values.size else None


def _tops(images, count):
    """Returns the mean best IoU of each image's `count` best proposals: [images]."""
    tops = [
        iou(o, p[:count]).max(axis=0).mean() if len(o) and len(p[:count]) else 0 for p, o in images
    ]
    return np.array(tops, np.float64)


def _areas(areas, running):
    areas = np.concatenate([np.zeros(0), *(np.ravel(a) for a in areas)])
    if len(areas) != running.shape[1]:
        raise ValueError(f'{len(areas)} areas for {running.shape[1]} objects')
    return areas


def _images(proposals, gt_boxes):
    """Returns each image's proposals and ground truth, float64 [., 4]; one image is a split."""
    if _is_image(proposals) or _is_image(gt_boxes):
        proposals, gt_boxes = [proposals], [gt_boxes]
    if len(proposals) != len(gt_boxes):
        raise ValueError(f'proposals of {len(proposals)} images, objects of {len(gt_boxes)}')
    return [(_boxes(p), _boxes(o)) for p, o in zip(proposals, gt_boxes, strict=True)]


def _is_image(boxes):
    return getattr(boxes, 'ndim', None) == 2 or (len(boxes) > 0 and np.shape(boxes[0]) == (4,))


def _boxes(boxes):
    boxes = np.asarray(boxes, np.float64)
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f'the boxes of an image are [N, 4], not {list(boxes.shape)}')
    return boxes.reshape(-1, 4)
