"""Computes the recall of stored proposals as each of the field's evaluators does.

A figure of one evaluator does not compare with that of another. `stored` is a stored.Stored.

    dialect      counts       difficult  crowd     IoU      matching           sizes, their area
    rpn_jax      kind 1       left out   left out  plain    best overlap       [low, high), box's
    coco         kind 1       left out   ignored   plain    by score, each t   [low, high], given
    detectron2   kind 1, (a)  left out   left out  plain    best pair first    [low, high], given
    detectron    kind 1       left out   left out  +1, (b)  best pair first    [low, high], given
    mmdetection  kind 1       left out   left out  plain    best pair first    none
    voc          kind 1       ignored    left out  +1, (b)  in order, IoU 0.5  none

Matching.
    best overlap: an object is found at every IoU up to its best; one box may find several objects.
    best pair first: the pair of the highest IoU in the image is matched, then the highest of the
      boxes and objects left; ties go to the first object, then to the first box.
    by score: at each threshold by itself, each box in its turn takes, of the objects left, that of
      the highest IoU, of equal ones the last. What is ignored, crowds and objects of other sizes,
      only gets boxes that match no object that counts: it changes precision and never recall.
    in order: each box in its turn looks only at its best object, of equal ones the first, difficult
      ones included; the first box that does so at IoU >= 0.5 finds it, and others are lost.
(a) detectron2 skips images without proposals, their objects with them (skip_empty).
(b) Those programs count pixels: a box of far corner x1 covers x1 too, so a width is x1 - x0 + 1.
    They make annotations so on reading (x1 = x0 + width - 1), which leaves the IoU plain but for
    sides below a pixel; converted=False takes the stored numbers as they are, a pixel larger.

Thresholds are IoU 0.50:0.05:0.95 (voc: 0.5), in COCOeval with its 0.8999999999999999 for 0.9, in
float64 where detectron2 and mmdetection compute in float32. A limit, the AR@n's n, is a number of
proposals of each image, in any dialect any number, by default those of limits_of; those that the
programs print are coco's 1, 10 and 100 (100, 300 and 1000 from mmdetection), detectron2's and
detectron's 100 and 1000, mmdetection's 100, 300 and 1000; voc has none. Sizes: small up to 32^2,
medium up to 96^2, large; detectron adds 96-128, 128-256, 256-512 and 512-inf, sides of squares.
"""

import functools
import math

import numpy as np

from rpn_jax.evaluation import metrics
from rpn_jax.evaluation.bootstrap import Estimate, Tally, intervals

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # not rounded: equal to COCOeval's, bit for bit
EVERYTHING = {'all': (-np.inf, np.inf)}
# Our bounds are half open, those of COCO and its followers hold at both ends.
OWN_SIZES = {name: (low, math.nextafter(high, 0)) for name, (low, high) in metrics.AREAS.items()}
SIZES = {'all': (0, 1e10), 'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}
FINE_SIZES = {
    '96-128': (96**2, 128**2),
    '128-256': (128**2, 256**2),
    '256-512': (256**2, 512**2),
    '512-inf': (512**2, 1e10),
}
COLUMNS = (
    *(f'AR@{n}' for n in metrics.LIMITS),
    *('AR@100/small', 'AR@100/medium', 'AR@100/large', 'recall@0.5/100'),
)
UNSKIPPED = 'detectron2 unskipped'


def limits_of(stored):
    """Returns those of metrics.LIMITS that an image can have: up to post_nms.

    Where that is not known, 1000, or more if an image has more.
    """
    most = stored.post_nms
    if most is None:
        most = max([1000, *map(len, stored.proposals)])
    return tuple(n for n in metrics.LIMITS if n <= most)


def rpn_jax(stored, limits=None):
    """Tallies the contract's own figures: those of metrics.summarise, and sizes at every limit."""
    stored, limits = stored._replace(areas=None), _chosen(limits, stored)
    figures = _recalls(stored, _best_overlap, limits, EVERYTHING | OWN_SIZES)
    images = len(stored.image_ids)
    best, top, counts = np.zeros((len(limits), images)), np.zeros(images), np.zeros(images)
    for i, (proposals, objects, *_) in enumerate(_images(stored)):
        counts[i] = len(objects)
        if len(objects) and len(proposals):
            overlaps = metrics.iou(objects, proposals)
            best[:, i] = [overlaps[:, :n].max(axis=1, initial=0).sum() for n in limits]
            top[i] = overlaps[:, :10].max(axis=0).mean()
    figures |= {f'ABO@{n}': Tally(row, counts) for n, row in zip(limits, best, strict=True)}
    return figures | {'top10_max_iou': Tally(top, (counts > 0).astype(np.float64))}


def coco(stored, limits=None):
    """Tallies AR as pycocotools' COCOeval with useCats = 0 and maxDets = limits."""
    return _recalls(stored, _by_score, limits, SIZES, COCO_THRESHOLDS)


def detectron2(stored, limits=None, *, skip_empty=True):
    """Tallies AR as detectron2's COCOEvaluator of box proposals.

    skip_empty: images without proposals do not count, nor do their objects, which raises the AR.
    """
    return _recalls(stored, _best_pair_first, limits, SIZES, skip_empty=skip_empty)


def detectron(stored, limits=None, *, converted=True):
    """Tallies AR as Detectron, maskrcnn-benchmark and py-faster-rcnn, with their eight sizes.

    converted: to inclusive pixels, as those programs do on reading; see the module's (b).
    """
    compare = functools.partial(_pixel_iou, converted=converted)
    return _recalls(stored, _best_pair_first, limits, SIZES | FINE_SIZES, compare=compare)


def mmdetection(stored, limits=None):
    """Tallies AR as mmdetection's `proposal_fast`; its `proposal` is the dialect coco."""
    return _recalls(stored, _best_pair_first, limits)


def voc(stored, limits=None, *, converted=True):
    """Tallies recall at IoU 0.5 as the Pascal VOC devkit matches, of one class.

    converted: to inclusive pixels, as in detectron.
    """
    limits = _chosen(limits, stored)
    sums = np.zeros((len(stored.image_ids), len(limits), 1))
    counts = np.zeros(len(stored.image_ids))
    for i, (proposals, objects, _, kinds) in enumerate(_images(stored, (1, 2))):
        counts[i] = np.sum(kinds == 1)
        if len(objects) and len(proposals):
            overlaps = _pixel_iou(objects, proposals, converted)
            takes = np.where(overlaps.max(axis=0) >= 0.5, overlaps.argmax(axis=0), -1)
            taken = takes == np.flatnonzero(kinds == 1)[:, None]
            ranks = np.where(taken.any(axis=1), taken.argmax(axis=1), np.inf)
            sums[i, :, 0] = [np.sum(ranks < n) for n in limits]
    return _recall_tallies(sums, counts, limits, [0.5])


DIALECTS = {
    'rpn_jax': rpn_jax,
    'coco': coco,
    'detectron2': detectron2,
    'detectron': detectron,
    'mmdetection': mmdetection,
    'voc': voc,
}


def table(stored, names=tuple(DIALECTS), limits=None, resamples=1000, seed=0):
    """Evaluates in each dialect: {row: {figure: Estimate}}, detectron2 also without its skipping.

    Raises ValueError for a name that is not one of DIALECTS.
    """
    if unknown := set(names) - DIALECTS.keys():
        raise ValueError(f'no dialects: {", ".join(sorted(unknown))}; there are {list(DIALECTS)}')
    rows = {name: DIALECTS[name] for name in names}
    if 'detectron2' in rows:
        rows[UNSKIPPED] = functools.partial(detectron2, skip_empty=False)
    estimates = {}
    for name, dialect in rows.items():
        tallies = dialect(stored, limits)
        bounds = intervals(tallies, resamples, seed)
        estimates[name] = {
            figure: Estimate(tally.value, *(bounds[figure] or (None, None)))
            for figure, tally in tallies.items()
        }
    return estimates


def lines(stored, estimates=None):
    """Returns the lines of a table: a row per dialect, each figure with half its 95 % interval.

    estimates: as table returns them; None: of all dialects.
    """
    estimates = table(stored) if estimates is None else estimates
    columns = [c for c in COLUMNS if any(c in row for row in estimates.values())]
    objects = sum(int(np.sum(np.asarray(kinds) == 1)) for kinds in stored.kinds)
    head = f'{stored.dataset}, step {stored.step}: {len(stored.image_ids)} images'
    widths = [max(len(column), len('0.123 ±0.456')) + 2 for column in columns]
    grid = [columns] + [[_cell(row.get(c)) for c in columns] for row in estimates.values()]
    names = ['', *estimates]
    printed = [f'{head}, {objects} objects'] + [
        f'{name:<20}' + ''.join(f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True))
        for name, row in zip(names, grid, strict=True)
    ]
    area = 'of the box' if stored.areas is None else 'as annotated'
    printed.append(f'small, medium, large: the area {area}; in rpn_jax always of the box')
    return printed + _skipping(stored, estimates)


def _cell(estimate):
    if estimate is None or estimate.value is None:
        return '-'
    return f'{estimate.value:.3f} ±{(estimate.high - estimate.low) / 2:.3f}'


def _skipping(stored, estimates):
    """Says in a line what detectron2's skipping of images without proposals changes."""
    if not {'detectron2', UNSKIPPED} <= estimates.keys():
        return []
    left = [len(objects) for proposals, objects, *_ in _images(stored) if not len(proposals)]
    changes = [
        f'{figure} by {row.value - estimates[UNSKIPPED][figure].value:+.3f}'
        for figure, row in estimates['detectron2'].items()
        if figure in COLUMNS and figure.startswith('AR@') and '/' not in figure
        if row.value is not None
    ]
    what = f'detectron2 skips {len(left)} images without proposals ({sum(left)} objects)'
    return [f'{what}: ' + (', '.join(changes) or 'nothing is left to count')]


def _recalls(
    stored,
    match,
    limits,
    sizes=EVERYTHING,
    thresholds=metrics.THRESHOLDS,
    *,
    compare=metrics.iou,
    skip_empty=False,
):
    """Tallies AR@n, AR@n/size and recalls: a match(overlaps [G, P], limits, thresholds) per size.

    What match returns, [limits, thresholds, G], says which objects are found.
    """
    images, limits = len(stored.image_ids), _chosen(limits, stored)
    sums = {name: np.zeros((images, len(limits), len(thresholds))) for name in sizes}
    counts = {name: np.zeros(images) for name in sizes}
    for i, (proposals, objects, areas, _) in enumerate(_images(stored)):
        if not len(objects) or not len(limits) or (skip_empty and not len(proposals)):
            continue
        overlaps = compare(objects, proposals)
        for name, (low, high) in sizes.items():
            inside = (low <= areas) & (areas <= high)
            if inside.any():
                counts[name][i] = inside.sum()
                sums[name][i] = match(overlaps[inside], limits, thresholds).sum(axis=-1)
    figures = _recall_tallies(sums['all'], counts['all'], limits, thresholds)
    for name in sizes:
        size = '' if name == 'all' else f'/{name}'
        for i, n in enumerate(limits):
            figures[f'AR@{n}{size}'] = Tally(sums[name][:, i].mean(axis=1), counts[name])
    return figures


def _chosen(limits, stored):
    return limits_of(stored) if limits is None else limits


def _recall_tallies(sums, counts, limits, thresholds):
    """Names the recalls at RECALLS, among thresholds, of sums [images, limits, thresholds]."""
    return {
        f'recall@{threshold}/{n}': Tally(sums[:, i, j], counts)
        for j, threshold in enumerate(np.round(thresholds, 2).tolist())
        for i, n in enumerate(limits)
        if threshold in metrics.RECALLS
    }


def _best_overlap(overlaps, limits, thresholds):
    best = np.stack([overlaps[:, :n].max(axis=1, initial=0) for n in limits])
    return best[:, None] >= thresholds[:, None]


def _best_pair_first(overlaps, limits, thresholds):
    # Among all boxes and among more than there are the pairs are the same.
    reach = [min(n, overlaps.shape[1]) for n in limits]
    found = {n: _pair_overlaps(overlaps[:, :n]) for n in set(reach)}
    return np.stack([found[n] for n in reach])[:, None] >= thresholds[:, None]


def _pair_overlaps(overlaps):
    """Pairs objects [G] with boxes [P] one to one, the best pair first: each object's IoU [G]."""
    overlaps = overlaps.copy()
    found = np.zeros(len(overlaps))
    for _ in range(min(overlaps.shape)):
        row, column = divmod(int(overlaps.argmax()), overlaps.shape[1])
        found[row] = overlaps[row, column]
        overlaps[row] = overlaps[:, column] = -1
    return found


def _by_score(overlaps, limits, thresholds):
    """Matches as COCOeval; what it gives to the first boxes does not depend on those after."""
    best = overlaps.max(axis=0, initial=0)
    ranks = np.full((len(thresholds), len(overlaps)), np.inf)
    for row, threshold in zip(ranks, thresholds, strict=True):
        free = list(range(len(overlaps)))
        candidates = np.flatnonzero(best >= threshold)
        columns = overlaps[:, candidates].T.tolist()
        for rank, column in zip(candidates, columns, strict=True):
            highest, taken = threshold, None
            for i in free:
                if column[i] >= highest:
                    highest, taken = column[i], i
            if taken is not None:
                row[taken] = rank
                free.remove(taken)
                if not free:
                    break
    return ranks < np.reshape(limits, (-1, 1, 1))


def _pixel_iou(objects, proposals, converted):
    """Compares boxes that hold their last pixel, once converted to it or as they stand."""
    if converted:  # the pixel comes off and on again; an object has at least one
        near, far = objects[:, :2], objects[:, 2:]
        return metrics.iou(np.concatenate([near, np.maximum(far, near + 1)], axis=1), proposals)
    return metrics.iou(objects + [0, 0, 1, 1], proposals + [0, 0, 1, 1])


def _images(stored, kinds=(1,)):
    """Yields (proposals, objects of these kinds, their areas, their kinds), boxes in float64."""
    areas = [None] * len(stored.kinds) if stored.areas is None else stored.areas
    parts = (stored.proposals, stored.objects, areas, stored.kinds)
    for boxes, objects, area, kind in zip(*parts, strict=True):
        objects = np.asarray(objects, np.float64).reshape(-1, 4)
        area = np.prod(objects[:, 2:] - objects[:, :2], axis=1) if area is None else area
        chosen = np.isin(kind, kinds)
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        yield boxes, objects[chosen], np.asarray(area)[chosen], np.asarray(kind)[chosen]
