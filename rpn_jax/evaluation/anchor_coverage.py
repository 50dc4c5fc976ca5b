"""Which anchors bring what: measured over a split, by anchor size and aspect ratio.

Two questions. What does each of the K anchors of a cell learn and find? And how far do anchors
stretch: of every anchor whose centre lies inside an object, however much larger or smaller than the
anchor, how well does its box fit that object before and after regression?

NumPy on the host, on what the network said of one image; sums of images add up to a split's.
"""

import functools

import jax
import numpy as np

from rpn_jax.evaluation.metrics import iou as overlaps_of
from rpn_jax.ops import anchor_statistics
from rpn_jax.ops import boxes as box
from rpn_jax.ops.losses import rpn_losses
from rpn_jax.ops.matching import match

# Where bins of stretch begin and end: octaves, log2 of sqrt(object's area / anchor's area).
EDGES = np.linspace(-5, 5, 21)
BINS = len(EDGES) - 1


def measure(proposals, logits, deltas, anchors, boxes, kind, size, *, iou, limit, config):
    """Returns an image's sums by type {name: [K]}, and `stretch` [4, sizes, BINS].

    proposals are the image's Proposals, of which the first `limit` count; an object is recalled at
    this iou. logits [A], deltas [A, 4] and anchors [A, 4] are what they were made of; boxes [G, 4],
    kind [G] and size (height, width) are in the same pixels, objects are of kind 1. config has the
    sections anchors, targets and loss. Beside anchor_types.sums over ALL anchors: `labelled`, those
    that are object or background; `shift` and `scale`, how far positives have to go; `recalled`,
    the objects whose best proposal began as an anchor of the type. Stretch has the number of
    anchors and of positives, and the sums of their IoU before and after.
    """
    keys = 'positive_iou', 'negative_iou', 'crowd_overlap', 'border'
    rules = {key: float(config.targets[key]) for key in keys}
    count = len(config.anchors.sizes) * len(config.anchors.aspect_ratios)
    sums, labels, matched, decoded = jax.device_get(
        _look(
            *(logits, deltas, anchors, boxes, kind, np.float32(size), rules),
            **{'beta': float(config.loss.beta), 'count': count},
        )
    )
    rows = np.flatnonzero(np.asarray(kind) == 1)
    anchors, boxes = np.asarray(anchors, np.float64), np.asarray(boxes, np.float64)
    types, positive = np.arange(len(anchors)) % count, np.flatnonzero(labels == 1)
    shift, scale = _way(anchors[positive], boxes[matched[positive]])
    matched = np.where(labels == 1, matched, -1)
    best = _best(proposals, boxes[rows], iou, limit)
    return {name: np.float64(values) for name, values in sums.items()} | {
        'labelled': np.bincount(types[labels >= 0], minlength=count),
        'shift': np.bincount(types[positive], shift, count),
        'scale': np.bincount(types[positive], scale, count),
        'recalled': np.bincount(best % count, minlength=count),
        'stretch': _stretch(anchors, decoded, matched, boxes, rows, len(config.anchors.sizes)),
    }


def summarise(images, config):
    """Makes of the sums of a split's images what evaluation.json says of its anchors.

    Lists are by type, in the order of anchors.base_anchors (all sizes of the first aspect ratio
    first); those of `stretch` by size and bin. `loss_objectness` is the mean over the labelled
    anchors, `loss_box`, the IoUs, `shift` (of the centre, in the anchor's sides) and `scale` (of
    the sides, in octaves) are means over positives; `recall_share` adds up to 1. None is what is
    over nothing.
    """
    total = {name: sum(each[name] for each in images) for name in images[0]}
    anchors, positives, before, after = total['stretch']
    over_positives = 'loss_box', *anchor_statistics.IOUS, 'shift', 'scale'
    counted = {
        name: np.int64(total[name]).tolist() for name in ('labelled', 'positives', 'recalled')
    }
    return {
        'sizes': list(config.anchors.sizes),
        'aspect_ratios': list(config.anchors.aspect_ratios),
        **counted,
        'loss_objectness': _ratios(total['loss_objectness'], total['labelled']),
        **{name: _ratios(total[name], total['positives']) for name in over_positives},
        'recall_share': _ratios(total['recalled'], total['recalled'].sum()),
        'stretch': {
            'octaves': EDGES.tolist(),
            'anchors': np.int64(anchors).tolist(),
            'positives': np.int64(positives).tolist(),
            'iou_before': _ratios(before, anchors),
            'iou_after': _ratios(after, anchors),
        },
    }


def by_size(found, name):
    """Adds up a list by type, of those of summarise, over aspect ratios: [sizes] float64."""
    return np.float64(found[name]).reshape(-1, len(found['sizes'])).sum(axis=0)


def ratio(sums, counts):
    """Divides sums by counts, which broadcast: float64, NaN where they are over nothing."""
    counts = np.broadcast_to(counts, sums.shape)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


@functools.partial(jax.jit, static_argnames='count')
def _look(logits, deltas, anchors, boxes, kind, size, rules, *, beta, count):
    """Returns the sums by type, labels and matched [A], and the decoded boxes [A, 4]."""
    labels, matched = match(anchors, boxes, kind, size=size, **rules)
    types = np.arange(len(anchors)) % count
    sampled = labels, anchors, boxes[matched]
    losses = rpn_losses(logits, deltas, *sampled, beta=beta)
    own = anchor_statistics.sums(losses, deltas, *sampled, types, count=count)
    return own, labels, matched, box.decode(deltas, anchors)


def _way(anchors, objects):
    """Returns how far it is from anchors to objects [N, 4]: in anchor sides, and in octaves."""
    sides, goals = (np.maximum(b[:, 2:] - b[:, :2], box.TINY) for b in (anchors, objects))
    shift = (objects[:, :2] + objects[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    return np.abs(shift / sides).mean(axis=1), np.abs(np.log2(goals / sides)).mean(axis=1)


def _best(proposals, objects, iou, limit):
    """Returns the anchor that each recalled object's best proposal came from."""
    valid = np.asarray(proposals.valid)
    kept = np.asarray(proposals.boxes)[valid][:limit]
    if not len(kept) or not len(objects):
        return np.zeros(0, np.int64)
    overlaps = overlaps_of(objects, kept)
    best = overlaps.argmax(axis=1)[overlaps.max(axis=1) >= iou]
    return np.asarray(proposals.index, np.int64)[valid][best]


def _stretch(anchors, decoded, matched, boxes, rows, sizes):
    """Returns the sums of stretch, [4, sizes, BINS]; matched [A] is -1 for what is not positive."""
    centres, sums = (anchors[:, :2] + anchors[:, 2:]) / 2, np.zeros((4, sizes * BINS))
    octaves = -np.log2(np.maximum(_area(anchors), box.TINY)) / 2
    for row in rows:
        goal = boxes[row]
        inside = np.flatnonzero(np.all((goal[:2] <= centres) & (centres < goal[2:]), axis=1))
        stretch = octaves[inside] + np.log2(np.maximum(_area(goal), box.TINY)) / 2
        bins = np.searchsorted(EDGES, stretch, side='right') - 1
        known = (bins >= 0) & (bins < BINS)
        inside, bins = inside[known], bins[known]
        values = (
            np.ones(len(inside)),
            matched[inside] == row,
            *(overlaps_of(each[inside], goal[None])[:, 0] for each in (anchors, decoded)),
        )
        place = inside % sizes * BINS + bins
        sums += [np.bincount(place, value, sizes * BINS) for value in values]
    return sums.reshape(4, sizes, BINS)


def _area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _ratios(sums, counts):
    """Returns sums over counts as nested lists, None where they are over nothing."""
    means = ratio(sums, counts)
    return np.where(np.isfinite(means), means.astype(object), None).tolist()
