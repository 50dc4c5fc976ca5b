"""Why objects were missed: each that the first proposals do not find has exactly one reason.

A proposal begins as an anchor, is moved, clipped, ranked, thinned out by NMS and cut off at a rank.
The reason is the first of these steps after which nothing was left that could have found the
object. It is looked for in the same logits and deltas that the proposals were made of.
"""

from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.evaluation.metrics import iou as overlaps_of
from rpn_jax.ops import boxes as box
from rpn_jax.ops.matching import match
from rpn_jax.ops.nms import nms

REASONS = {  # in the order in which they are asked for
    'no_anchor': 'no anchor has an IoU of negative_iou with it',
    'no_positive_anchor': 'no positive anchor is matched to it',
    'no_decoded_box': 'no box, before clipping, reaches the IoU with it',
    'clipped': 'what reaches the IoU is lost to clipping or to the minimum size',
    'below_pre_nms': 'what reaches the IoU ranks below pre_nms',
    'suppressed': 'what reaches the IoU is removed by NMS',
    'beyond_limit': 'what reaches the IoU is kept, but ranks too low',
}
REMOVERS = ('same_object', 'another_object', 'background')  # what a box that removed one is on


class Remover(NamedTuple):
    """The proposal that removed a box."""

    rank: int  # among what NMS keeps, from 0
    box: np.ndarray  # [4]
    row: int  # of the object that it covers best, with negative_iou or more; -1: background


class Lost(NamedTuple):
    """The box that came nearest to finding an object, where the reason says that it was lost.

    The best anchor, where none is near or positive; the best decoded box, where none reaches it or
    clipping takes it away; else the first that reaches it, of those that NMS keeps if there is one.
    """

    box: np.ndarray  # [4]
    overlap: float  # its IoU with the object
    rank: int = -1  # by score, or, where NMS keeps it, among what NMS keeps; from 0, -1: none


class Miss(NamedTuple):
    """An object that was not found, and why."""

    position: int  # of its image in the split
    row: int  # of the image's boxes
    reason: str
    best: float  # IoU with the best of the proposals that count
    reached: float  # IoU with the best of all decoded boxes
    lost: Lost  # what might have found it
    remover: Remover | None = None  # of what NMS removed

    @property
    def removed_by(self):
        """One of REMOVERS, None where NMS removed nothing."""
        if self.remover is None:
            return None
        row = self.remover.row
        return REMOVERS[2 if row < 0 else int(row != self.row)]


def find(position, proposals, logits, deltas, anchors, boxes, kind, size, *, iou, limit, config):
    """Returns the Misses of one image: of each object that no proposal finds at this IoU.

    proposals are the image's Proposals, of which the first `limit` count; logits [A], deltas [A, 4]
    and anchors [A, 4] are what they were made of; boxes [G, 4], kind [G] and size (height, width)
    are in the same pixels, objects are of kind 1. config has the sections targets and proposals.
    """
    rows = np.flatnonzero(np.asarray(kind) == 1)
    kept = np.asarray(proposals.boxes)[np.asarray(proposals.valid)]
    best = overlaps_of(np.asarray(boxes)[rows], kept[:limit]).max(axis=1, initial=0)
    missed = rows[best < iou]
    if not len(missed):
        return []
    stages = _Stages(logits, deltas, anchors, boxes, kind, size, config)
    found = []
    for row, covered in zip(missed, best[best < iou], strict=True):
        reason, *lost = stages.reason(int(row), iou)
        reached = float(stages.decoded[:, row].max())
        found.append(Miss(position, int(row), reason, float(covered), reached, *lost))
    return found


class _Stages:
    """An image's boxes at every step on their way to proposals, and their IoU with its objects."""

    def __init__(self, logits, deltas, anchors, boxes, kind, size, config):
        self._targets, self._proposals = config.targets, config.proposals
        self._kind = np.asarray(kind)
        keys = 'positive_iou', 'negative_iou', 'crowd_overlap', 'border'
        rules = {key: float(config.targets[key]) for key in keys}
        labels, matched, decoded, clipped = jax.device_get(
            _follow(deltas, anchors, boxes, kind, np.float32(size), rules)
        )
        self._stages = {'anchors': np.asarray(anchors), 'decoded': decoded, 'clipped': clipped}
        overlaps = (self._overlaps(places, boxes) for places in self._stages.values())
        self.anchors, self.decoded, self.clipped = overlaps
        self._matched = np.where(labels == 1, matched, -1)
        logits = np.asarray(logits, np.float64)
        logits = np.where(np.isnan(logits), -np.inf, logits)
        self._order = np.argsort(-logits, kind='stable')
        self._rank = np.argsort(self._order)
        sides = clipped[:, 2:] - clipped[:, :2]
        self._alive = np.all(sides >= config.proposals.min_size, axis=1) & (logits > -np.inf)

    def _overlaps(self, places, boxes):
        """Returns the IoU of places with the image's objects [A, G]; 0 for other kinds."""
        overlaps, rows = np.zeros((len(places), len(self._kind))), np.flatnonzero(self._kind == 1)
        overlaps[:, rows] = overlaps_of(places, np.asarray(boxes)[rows])
        return overlaps

    def reason(self, row, iou):
        """Returns (reason, Lost), and the Remover where NMS is the reason, of an object."""
        if not np.any(self.anchors[:, row] >= self._targets.negative_iou):
            return 'no_anchor', self._nearest('anchors', row)
        if not np.any(self._matched == row):
            return 'no_positive_anchor', self._nearest('anchors', row)
        if not np.any(self.decoded[:, row] >= iou):
            return 'no_decoded_box', self._nearest('decoded', row)
        reaching = np.flatnonzero((self.clipped[:, row] >= iou) & self._alive)
        if not len(reaching):
            return 'clipped', self._nearest('decoded', row)
        first = reaching[self._rank[reaching].argmin()]
        lost = self._lost('clipped', first, row, self._rank[first])
        if lost.rank >= self._proposals.pre_nms:
            return 'below_pre_nms', lost
        survivors = self._survivors()
        kept = np.flatnonzero(np.isin(survivors, reaching))
        if not len(kept):
            return 'suppressed', lost, self._remover(first, survivors)
        return 'beyond_limit', self._lost('clipped', survivors[kept[0]], row, kept[0])

    def _nearest(self, stage, row):
        """Returns the Lost of the box that covers an object best at a stage."""
        return self._lost(stage, getattr(self, stage)[:, row].argmax(), row, -1)

    def _lost(self, stage, index, row, rank):
        overlap = float(getattr(self, stage)[index, row])
        return Lost(self._stages[stage][index], overlap, int(rank))

    def _survivors(self):
        """Returns the anchors that NMS keeps, were there no limit, best first."""
        if not hasattr(self, '_kept'):
            best = self._order[: self._proposals.pre_nms]
            scores = np.where(self._alive[best], -np.arange(len(best), dtype=np.float32), -np.inf)
            threshold = np.float32(self._proposals.nms_iou)
            kept, valid = jax.device_get(
                _thin_out(self._stages['clipped'][best], scores, threshold)
            )
            self._kept = best[kept[valid]]
        return self._kept

    def _remover(self, index, survivors):
        """Returns the Remover of box `index`: the first that NMS kept and that is too near it."""
        above = survivors[self._rank[survivors] < self._rank[index]]
        places = self._stages['clipped']
        overlap = overlaps_of(places[[index]], places[above])[0]
        over = overlap > self._proposals.nms_iou
        # Where rounding hides the one that was over the threshold, it is the nearest.
        rank = int(over.argmax() if over.any() else overlap.argmax())
        covered = self.clipped[above[rank]]
        on_object = covered.max(initial=0) >= self._targets.negative_iou
        return Remover(rank, places[above[rank]], int(covered.argmax()) if on_object else -1)


@jax.jit
def _follow(deltas, anchors, boxes, kind, size, rules):
    """Returns labels and matched [A] of the anchors, and their boxes moved, and clipped [A, 4]."""
    labels, matched = match(anchors, boxes, kind, size=size, **rules)
    decoded = box.decode(deltas, anchors)
    return labels, matched, decoded, box.clip(decoded, size)


@jax.jit
def _thin_out(boxes, scores, threshold):
    return nms(boxes, scores, iou_threshold=threshold, limit=len(boxes))


def counts(misses):
    """Returns {reason: number} in the order of REASONS, zeros included."""
    return {reason: sum(miss.reason == reason for miss in misses) for reason in REASONS}


def removers(misses):
    """Counts by what the proposals that removed boxes are on: {one of REMOVERS: number}."""
    return {name: sum(miss.removed_by == name for miss in misses) for name in REMOVERS}
