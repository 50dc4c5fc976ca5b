"""Compute the recall of proposal results as each of the field's evaluators does.

A figure of one evaluator does not compare with that of another: docs/protocols.md has the rules of
each. `results` are a results.Results. A limit, the n of AR@n, is a number of proposals of each
image, any number in any protocol, by default those of limits_of. Thresholds are IoU 0.50:0.05:0.95
(voc: 0.5), in float64.
"""

import functools

import numpy as np

from rpn_jax.data.records import DIFFICULT, OBJECT
from rpn_jax.evaluation import bootstrap, metrics
from rpn_jax.evaluation.metrics import Tally
from rpn_jax.evaluation.results import areas_of

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # not rounded: equal to COCOeval's, bit for bit
EVERYTHING = {'all': (-np.inf, np.inf)}
# COCO's bounds, and those of its followers, hold at both ends; those of metrics are half open.
SIZES = {'all': (0, 1e10), 'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}
FINE_SIZES = {
    '96-128': (96**2, 128**2),
    '128-256': (128**2, 256**2),
    '256-512': (256**2, 512**2),
    '512-inf': (512**2, 1e10),
}
COLUMNS = tuple(name for name in metrics.COLUMNS if name.startswith(('AR@', 'recall@0.5/')))
UNSKIPPED = 'detectron2 unskipped'


def limits_of(results):
    """Returns those of metrics.LIMITS up to post_nms; where unknown, 1000 or what an image has."""
    most = results.post_nms
    if most is None:
        most = max([1000, *map(len, results.proposals)])
    return tuple(n for n in metrics.LIMITS if n <= most)


def rpn_jax(results, limits=None):
    """Returns the Tallies of metrics.summarise's figures, with sizes at every limit."""
    limits, images = _chosen(limits, results), list(_images(results))
    overlaps = metrics.measure(
        [proposals for proposals, *_ in images],
        [objects for _, objects, *_ in images],
        [metrics.area(objects) for _, objects, *_ in images],
    )
    return metrics.tallies(overlaps, limits, sized=limits)


def coco(results, limits=None):
    """Returns the Tallies of AR as pycocotools' COCOeval with useCats = 0 and maxDets = limits."""
    return _recalls(results, _by_score, limits, SIZES, COCO_THRESHOLDS)


def detectron2(results, limits=None, *, skip_empty=True):
    """Returns the Tallies of AR as detectron2's COCOEvaluator of box proposals.

    skip_empty: images without proposals are left out with their objects, which raises the AR.
    """
    return _recalls(results, _best_pair_first, limits, SIZES, skip_empty=skip_empty)


def detectron(results, limits=None, *, converted=True):
    """Returns the Tallies of AR as Detectron, maskrcnn-benchmark and py-faster-rcnn.

    Pixels are inclusive: a box of far corner x1 covers x1 too. converted: annotations are, as those
    programs do on reading; False takes the numbers as they are, a pixel larger.
    """
    compare = functools.partial(_pixel_iou, converted=converted)
    return _recalls(results, _best_pair_first, limits, SIZES | FINE_SIZES, compare=compare)


def mmdetection(results, limits=None):
    """Returns the Tallies of AR as mmdetection's `proposal_fast`; its `proposal` is coco."""
    return _recalls(results, _best_pair_first, limits)


def voc(results, limits=None, *, converted=True):
    """Returns the Tallies of recall at IoU 0.5 as the VOC devkit; `converted` as in detectron."""
    limits = _chosen(limits, results)
    sums = np.zeros((len(results.image_ids), len(limits), 1))
    counts = np.zeros(len(results.image_ids))
    for i, (proposals, objects, _, kinds) in enumerate(_images(results, (OBJECT, DIFFICULT))):
        counts[i] = np.sum(kinds == OBJECT)
        if len(objects) and len(proposals):
            overlaps = _pixel_iou(objects, proposals, converted)
            takes = np.where(overlaps.max(axis=0) >= 0.5, overlaps.argmax(axis=0), -1)
            taken = takes == np.flatnonzero(kinds == OBJECT)[:, None]
            ranks = np.where(taken.any(axis=1), taken.argmax(axis=1), np.inf)
            sums[i, :, 0] = [np.sum(ranks < n) for n in limits]
    return _recall_tallies(sums, counts, limits, [0.5])


PROTOCOLS = {
    'rpn_jax': rpn_jax,
    'coco': coco,
    'detectron2': detectron2,
    'detectron': detectron,
    'mmdetection': mmdetection,
    'voc': voc,
}


def table(results, names=tuple(PROTOCOLS), limits=None, resamples=1000, seed=0):
    """Returns the figures of each protocol: {row: {figure: Estimate}}, detectron2 in two rows.

    Raises ValueError for a name that is not one of PROTOCOLS.
    """
    if unknown := set(names) - PROTOCOLS.keys():
        raise ValueError(f'no protocols: {", ".join(sorted(unknown))}; there are {list(PROTOCOLS)}')
    rows = {name: PROTOCOLS[name] for name in names}
    if 'detectron2' in rows:
        rows[UNSKIPPED] = functools.partial(detectron2, skip_empty=False)
    return {
        name: bootstrap.estimates(rule(results, limits), resamples, seed)
        for name, rule in rows.items()
    }


def lines(results, estimates=None):
    """Returns the lines of a table: a row per protocol, each figure with half its 95 % interval.

    estimates: as table returns them; None: of all protocols.
    """
    estimates = table(results) if estimates is None else estimates
    columns = [c for c in COLUMNS if any(c in row for row in estimates.values())]
    widths = [max(len(column), len('0.123 ±0.456')) + 2 for column in columns]
    objects = sum(int(np.sum(np.asarray(kinds) == OBJECT)) for kinds in results.gt_kinds)
    images = f'{len(results.image_ids)} images, {objects} objects'
    printed = [f'{results.dataset}, step {results.step}: {images}']
    cells = {name: [_cell(row.get(c)) for c in columns] for name, row in estimates.items()}
    for name, row in {'': columns, **cells}.items():
        aligned = (f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True))
        printed.append(f'{name:<20}' + ''.join(aligned))
    area = 'of the box' if results.gt_areas is None else 'as annotated'
    printed.append(f'small, medium, large: the area {area}; in rpn_jax always of the box')
    return printed + _skipping(results, estimates)


def _cell(estimate):
    if estimate is None or estimate.value is None:
        return '-'
    return f'{estimate.value:.3f} ±{(estimate.high - estimate.low) / 2:.3f}'


def _skipping(results, estimates):
    """Returns a line on what detectron2's skipping of images without proposals changes."""
    if UNSKIPPED not in estimates:
        return []
    left = [len(objects) for proposals, objects, *_ in _images(results) if not len(proposals)]
    changes = [
        f'{figure} by {row.value - estimates[UNSKIPPED][figure].value:+.3f}'
        for figure, row in estimates['detectron2'].items()
        if figure in COLUMNS and figure.startswith('AR@') and '/' not in figure
        if row.value is not None
    ]
    what = f'detectron2 skips {len(left)} images without proposals ({sum(left)} objects)'
    return [f'{what}: ' + (', '.join(changes) or 'nothing is left to count')]


def _recalls(
    results,
    match,
    limits,
    sizes=EVERYTHING,
    thresholds=metrics.THRESHOLDS,
    *,
    compare=metrics.iou,
    skip_empty=False,
):
    """Returns the Tallies of AR@n, AR@n/size and recalls, matching each size by itself.

    match(overlaps [G, P], limits, thresholds) returns which objects are recalled, a bool array
    [limits, thresholds, G].
    """
    images, limits = len(results.image_ids), _chosen(limits, results)
    sums = {name: np.zeros((images, len(limits), len(thresholds))) for name in sizes}
    counts = {name: np.zeros(images) for name in sizes}
    for i, (proposals, objects, areas, _) in enumerate(_images(results)):
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


def _chosen(limits, results):
    return limits_of(results) if limits is None else limits


def _recall_tallies(sums, counts, limits, thresholds):
    """Returns the Tallies of recall at RECALLS, of sums [images, limits, thresholds]."""
    return {
        f'recall@{threshold}/{n}': Tally(sums[:, i, j], counts)
        for j, threshold in enumerate(np.round(thresholds, 2).tolist())
        for i, n in enumerate(limits)
        if threshold in metrics.RECALLS
    }


def _best_pair_first(overlaps, limits, thresholds):
    # Among all boxes and among more than there are the pairs are the same.
    reach = [min(n, overlaps.shape[1]) for n in limits]
    paired = {n: _pair_overlaps(overlaps[:, :n]) for n in set(reach)}
    return np.stack([paired[n] for n in reach])[:, None] >= thresholds[:, None]


def _pair_overlaps(overlaps):
    """Returns each object's IoU [G] where objects and boxes are paired, the best pair first."""
    overlaps = overlaps.copy()
    paired = np.zeros(len(overlaps))
    for _ in range(min(overlaps.shape)):
        row, column = divmod(int(overlaps.argmax()), overlaps.shape[1])
        paired[row] = overlaps[row, column]
        overlaps[row] = overlaps[:, column] = -1
    return paired


def _by_score(overlaps, limits, thresholds):
    """Matches as COCOeval does, where the first boxes' matches do not depend on later ones."""
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
    """Returns the IoU of boxes that include their last pixel, after conversion or as they are."""
    if converted:  # the pixel comes off and on again; an object has at least one
        near, far = objects[:, :2], objects[:, 2:]
        return metrics.iou(np.concatenate([near, np.maximum(far, near + 1)], axis=1), proposals)
    return metrics.iou(objects + [0, 0, 1, 1], proposals + [0, 0, 1, 1])


def _images(results, kinds=(OBJECT,)):
    """Yields (proposals, ground truth of these kinds, its areas, its kinds), boxes in float64."""
    columns = results.proposals, results.gt_boxes, areas_of(results), results.gt_kinds
    for boxes, objects, areas, kind in zip(*columns, strict=True):
        boxes, objects = (np.asarray(b, np.float64).reshape(-1, 4) for b in (boxes, objects))
        chosen = np.isin(kind, kinds)
        yield boxes, objects[chosen], areas[chosen], np.asarray(kind)[chosen]
