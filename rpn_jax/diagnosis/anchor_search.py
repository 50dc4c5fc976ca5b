"""Searches sizes and aspect ratios of anchors that fit objects, for as many anchors per cell.

The start are clusters of the objects' widths and heights (k-means, the distance being 1 - IoU) and
the present anchors; from both, one value after the other is moved while the score on the real grid
grows. Sizes are whole pixels and grow from level to level, ratios have two decimals.
"""

import functools

import numpy as np

from rpn_jax.diagnosis.anchor_grid import Layout, best_overlaps, types_of

SEARCHED = 20_000  # objects at most that the search looks at; all decide whether it is better
ROUNDS = 30
STEPS = tuple(sign * 2.0**-k for k in (1, 2, 3, 4, 5) for sign in (-1, 1))  # octaves
LEAST_GAIN = 1e-4  # of a move, in score: less is noise
POOR = 0.5  # IoU below which a regression is hard, and the recall at 0.5 is lost without one
# What the score loses where the share of objects below negative_iou, or POOR, grows.
LOST_COST, POOR_COST = 100, 3


def score(best, present, *, positive_iou, negative_iou):
    """Returns what the search maximises, of the best IoUs [n] of objects, now and at present.

    It is the mean, and the share at positive_iou or more. Objects below negative_iou, and below
    POOR, must not become more: that costs much.
    """
    gain = np.mean(best) + np.mean(best >= positive_iou)
    for iou, cost in ((negative_iou, LOST_COST), (POOR, POOR_COST)):
        gain -= cost * max(0, np.mean(best < iou) - np.mean(present < iou))
    return float(gain)


def suggest(objects, layout, *, positive_iou=0.7, negative_iou=0.3, border=-1, seed=0):
    """Returns the Layout with as many sizes of each level, and ratios, that fits Objects best.

    That is the present one where none that was tried has a better score over all the objects, of
    which there is at least one.
    """
    rows = np.arange(len(objects.boxes))
    if len(rows) > SEARCHED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, SEARCHED, replace=False))
    drawn = objects.take(rows)
    starts = [_arranged(layout, np.ravel(layout.sizes), layout.aspect_ratios)]
    starts += _from_clusters(drawn, layout)
    present = best_overlaps(objects, types_of(layout), border).max(axis=1)
    rule = functools.partial(score, positive_iou=positive_iou, negative_iou=negative_iou)
    own = functools.partial(rule, present=present[rows])
    found = [layout, *(_improved(drawn, start, own, border) for start in starts)]

    def value(each):
        return rule(best_overlaps(objects, types_of(each), border).max(axis=1), present)

    return max(found, key=value)  # of equals the present one


def clusters(sides, count):
    """Returns the means [count, 2] and sizes [count] of clusters of widths and heights [n, 2].

    k-means with 1 - IoU of two boxes on one centre as the distance, from evenly spaced areas.
    """
    order = np.argsort(sides.prod(axis=1), kind='stable')
    means = sides[order[((np.arange(count) + 0.5) / count * len(sides)).astype(int)]]
    own = None
    for _ in range(ROUNDS):
        overlap = np.minimum(sides[:, None], means).prod(axis=2)
        union = sides.prod(axis=1)[:, None] + means.prod(axis=1) - overlap
        before, own = own, (overlap / union).argmax(axis=1)
        if before is not None and np.array_equal(before, own):
            break
        sums = np.stack([np.bincount(own, each, count) for each in sides.T], axis=1)
        sizes = np.bincount(own, minlength=count)
        means = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], means)
    return means, np.bincount(own, minlength=count)


def _from_clusters(objects, layout):
    """Returns a list of the Layout that k-means makes, empty where there are too few objects.

    As many clusters as there are pairs of a size and a ratio; neighbours in size share a size,
    neighbours in ratio a ratio.
    """
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    sizes, ratios = np.size(layout.sizes), len(layout.aspect_ratios)
    if len(np.unique(sides.round(1), axis=0)) < sizes * ratios:
        return []
    means, counts = clusters(sides, sizes * ratios)

    def grouped(values, groups):
        order, weights = np.argsort(values), np.maximum(counts, 1e-3)
        parts = zip(*(np.split(each[order], groups) for each in (values, weights)), strict=True)
        return [2 ** np.average(own, weights=weight) for own, weight in parts]

    width, height = np.log2(means).T
    return [
        _arranged(layout, grouped((width + height) / 2, sizes), grouped(height - width, ratios))
    ]


def _arranged(layout, sizes, ratios):
    """Returns a Layout of these values, rounded, sizes growing from level to level."""
    sizes = sorted(max(1, round(float(size))) for size in sizes)
    for i in range(1, len(sizes)):
        sizes[i] = max(sizes[i], sizes[i - 1] + 1)
    each = len(layout.sizes[0])
    levels = [tuple(sizes[i : i + each]) for i in range(0, len(sizes), each)]
    ratios = sorted(max(0.01, round(float(ratio), 2)) for ratio in ratios)
    return Layout(layout.strides, tuple(levels), tuple(ratios))


def _improved(objects, layout, value_of, border):
    """Returns a Layout from which no move of one value leads to a better value_of(best [n])."""
    levels = np.repeat(np.arange(len(layout.sizes)), len(layout.sizes[0]))
    values = [np.ravel(layout.sizes).tolist(), list(layout.aspect_ratios)]

    def overlaps(sizes, ratios):  # [n, sizes, ratios]; sizes are positions
        columns = [
            best_overlaps(
                objects,
                types_of(Layout((layout.strides[levels[i]],), ((values[0][i],),), ratios)),
                border,
            )
            for i in sizes
        ]
        return np.stack(columns, axis=1)

    table = overlaps(range(len(levels)), values[1])
    current = value_of(table.max(axis=(1, 2)))
    for _ in range(ROUNDS):
        before = current
        for kind in (0, 1):  # sizes, ratios
            for i, value in enumerate(values[kind]):
                rest = np.delete(table, i, axis=1 + kind).max(axis=(1, 2), initial=0)
                for candidate in _moves(values[kind], i, digits=0 if kind == 0 else 2):
                    values[kind][i] = candidate
                    if kind == 0:
                        own = overlaps([i], values[1])
                    else:
                        own = overlaps(range(len(levels)), [candidate])
                    new = value_of(np.maximum(rest, own.max(axis=(1, 2))))
                    if new > current + LEAST_GAIN:
                        current, value = new, candidate
                        np.moveaxis(table, 1 + kind, 0)[i] = own.squeeze(1 + kind)
                values[kind][i] = value
        if current <= before + LEAST_GAIN:
            break
    return _arranged(layout, *values)


def _moves(values, i, digits):
    """Returns what the value at i of an ascending list may become, between its neighbours."""
    low = values[i - 1] if i else 0
    high = values[i + 1] if i + 1 < len(values) else np.inf
    moved = {round(values[i] * 2**step, digits) for step in STEPS}
    return sorted(value for value in moved if low < value < high and value >= 10**-digits)
