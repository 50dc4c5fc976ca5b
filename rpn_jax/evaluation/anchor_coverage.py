"""Which anchors learn and recall what: measured over a split, by level, size and aspect ratio.

What do the anchors of each type learn, and which objects do they recall? And how far do anchors
stretch: of every anchor whose centre lies inside an object, however much larger or smaller than the
anchor, how well does its box fit that object before and after regression?

NumPy on the host, of one image's predict.Prediction; sums of images add up to a split's.
"""

import functools

import jax
import numpy as np

from rpn_jax.data.records import OBJECT
from rpn_jax.evaluation.metrics import area
from rpn_jax.evaluation.metrics import iou as overlaps_of
from rpn_jax.ops import anchor_statistics
from rpn_jax.ops import boxes as box
from rpn_jax.ops.losses import rpn_losses, weights_and_keywords
from rpn_jax.ops.matching import FOREGROUND

# Where bins of stretch begin and end: octaves, log2 of sqrt(object's area / anchor's area).
EDGES = np.linspace(-5, 5, 21)
BINS = len(EDGES) - 1


def measure(prediction, *, iou, limit, loss=None):
    """Returns an image's sums by anchor type, {name: [types]}, and `stretch` [4, sizes, BINS].

    The first `limit` proposals count, and an object is recalled at this iou; loss has keywords of
    ops.losses.LOSS. Beside anchor_statistics.sums over ALL anchors: `labelled`, the foreground and
    background; `shift` and `scale`, the distance of foreground anchors from their objects;
    `recalled`, the objects whose best proposal began as an anchor of the type. stretch has the
    number of anchors and of foreground ones, and the sums of their IoU before and after.
    """
    anchors, labels = prediction.anchors, prediction.labels
    boxes = np.float64(anchors.boxes)
    matched = prediction.gt_boxes[prediction.matched]
    sampled = labels, anchors.boxes, matched, anchors.type
    maps = prediction.logits, prediction.deltas
    keywords = tuple(weights_and_keywords(loss)[1].items())
    losses = jax.device_get(_sums(*maps, *sampled, loss=keywords, count=len(anchors.types)))
    count = functools.partial(np.bincount, minlength=len(anchors.types))
    positive = np.flatnonzero(labels == FOREGROUND)
    types = anchors.type[positive]
    shift, scale = _distance(boxes[positive], np.float64(matched[positive]))
    return {name: np.float64(values) for name, values in losses.items()} | {
        'labelled': count(anchors.type[labels >= 0]),
        'shift': count(types, shift),
        'scale': count(types, scale),
        'recalled': count(anchors.type[_recalling(prediction, iou, limit)]),
        'stretch': _stretch(prediction, boxes),
    }


def types_of(anchors):
    """Returns [[level, size, aspect ratio], ..] of the types of Anchors."""
    level = np.zeros(len(anchors.types), int)
    level[np.asarray(anchors.type)] = np.asarray(anchors.level)
    return [[int(n), size, ratio] for n, (size, ratio) in zip(level, anchors.types, strict=True)]


def summarise(images, types):
    """Returns what evaluation.json holds of anchors, from the sums of a split's images.

    types as types_of returns them; lists are in their order, those of `stretch` by distinct (level,
    size) and bin. `loss_objectness` is the mean over labelled anchors, `loss_box`, the IoUs,
    `shift` (of the centre, in the anchor's sides) and `scale` (of the sides, in octaves) are means
    over foreground anchors; `recall_share` adds up to 1. None is a mean over nothing.
    """
    total = {name: sum(each[name] for each in images) for name in images[0]}
    anchors, positives, before, after = total['stretch']
    over_positives = 'loss_box', *anchor_statistics.IOUS, 'shift', 'scale'
    counted = {
        name: np.int64(total[name]).tolist() for name in ('labelled', 'positives', 'recalled')
    }
    return {
        'sizes': [size for _, size in _sizes(types)[0]],
        'aspect_ratios': list(dict.fromkeys(ratio for _, _, ratio in types)),
        'types': types,
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


def by_size(figures, name):
    """Returns a list of summarise's by type, added up over aspect ratios: {name of a size: sum}."""
    sizes, of_type = _sizes(figures['types'])
    sums = np.bincount(of_type, np.float64(figures[name]), len(sizes)).tolist()
    return {name_of(*own, figures['types']): each for own, each in zip(sizes, sums, strict=True)}


def name_of(level, size, types):
    """Returns the name of a size in pixels, with its level where the types have several."""
    several = len({level for level, *_ in types}) > 1
    return f'level {level}, {size:g} px' if several else f'{size:g} px'


def ratio(sums, counts):
    """Divides sums by counts, which broadcast: float64, NaN where they are over nothing."""
    counts = np.broadcast_to(counts, sums.shape)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


@functools.partial(jax.jit, static_argnames=('loss', 'count'))
def _sums(logits, deltas, labels, anchors, gt_boxes, types, *, loss, count):
    sampled = labels, anchors, gt_boxes
    losses = rpn_losses(logits, deltas, *sampled, **dict(loss))
    return anchor_statistics.sums(losses, deltas, *sampled, types, count=count)


def _distance(anchors, gt_boxes):
    """Returns how far anchors [N, 4] are from objects: in anchor sides, and in octaves."""
    sides, gt_sides = (np.maximum(b[:, 2:] - b[:, :2], box.TINY) for b in (anchors, gt_boxes))
    shift = (gt_boxes[:, :2] + gt_boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    return np.abs(shift / sides).mean(axis=1), np.abs(np.log2(gt_sides / sides)).mean(axis=1)


def _recalling(prediction, iou, limit):
    """Returns the anchor that each recalled object's best proposal came from."""
    valid = prediction.proposals.valid
    kept = prediction.proposals.boxes[valid][:limit]
    objects = prediction.gt_boxes[prediction.gt_kind == OBJECT]
    if not len(kept) or not len(objects):
        return np.zeros(0, np.int64)
    overlaps = overlaps_of(objects, kept)
    best = overlaps.argmax(axis=1)[overlaps.max(axis=1) >= iou]
    return prediction.proposals.index[valid][best]


def _stretch(prediction, anchors):
    """Returns the sums of stretch, [4, sizes, BINS], of anchors in float64."""
    sizes, of_type = _sizes(types_of(prediction.anchors))
    size, length = of_type[prediction.anchors.type], len(sizes) * BINS
    matched = np.where(prediction.labels == FOREGROUND, prediction.matched, -1)
    centres, sums = (anchors[:, :2] + anchors[:, 2:]) / 2, np.zeros((4, length))
    octaves = -np.log2(np.maximum(area(anchors), box.TINY)) / 2
    for row in np.flatnonzero(prediction.gt_kind == OBJECT):
        own = np.float64(prediction.gt_boxes[row])
        inside = np.flatnonzero(np.all((own[:2] <= centres) & (centres < own[2:]), axis=1))
        stretch = octaves[inside] + np.log2(np.maximum(area(own), box.TINY)) / 2
        bins = np.searchsorted(EDGES, stretch, side='right') - 1
        known = (bins >= 0) & (bins < BINS)
        inside, bins = inside[known], bins[known]
        values = (
            np.ones(len(inside)),
            matched[inside] == row,
            *(overlaps_of(b[inside], own[None])[:, 0] for b in (anchors, prediction.decoded)),
        )
        index = size[inside] * BINS + bins
        sums += [np.bincount(index, value, length) for value in values]
    return sums.reshape(4, len(sizes), BINS)


def _sizes(types):
    """Returns the distinct (level, size) of types, in their order, and which each type has."""
    sizes = list(dict.fromkeys((level, size) for level, size, _ in types))
    return sizes, np.array([sizes.index((level, size)) for level, size, _ in types])


def _ratios(sums, counts):
    """Returns sums over counts as nested lists, None where they are over nothing."""
    means = ratio(sums, counts)
    return np.where(np.isfinite(means), means.astype(object), None).tolist()
