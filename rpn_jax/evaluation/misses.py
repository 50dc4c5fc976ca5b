"""Why objects were missed: each that the first proposals do not recall has exactly one reason.

A proposal begins as an anchor, is moved, clipped, ranked, thinned out by NMS and cut off at a rank.
The reason is the first of these steps that left nothing that could have recalled the object, in the
same logits and deltas that the proposals were made of. With several feature levels, pre_nms and NMS
are within each level, the last rank is over all of them.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.data.records import OBJECT
from rpn_jax.evaluation.anchor_coverage import name_of, types_of
from rpn_jax.evaluation.metrics import iou as overlaps_of
from rpn_jax.ops.matching import FOREGROUND
from rpn_jax.ops.nms import nms

REASONS = {  # in the order of the steps
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
    """The box that came nearest to recalling an object, where the reason says that it was lost.

    The best anchor, or decoded box; past clipping the best-ranked that reaches the IoU, of those
    that NMS keeps if there is one.
    """

    box: np.ndarray  # [4]
    overlap: float  # its IoU with the object
    rank: int  # by score in its level, or among what NMS keeps where it is; from 0, -1: none
    anchor: str  # of which it is made: '64 px', or 'level 1, 64 px' with several levels


class Miss(NamedTuple):
    """An object that was not recalled, and why."""

    position: int  # of its image in the split
    row: int  # of the image's ground truth
    reason: str
    best: float  # IoU with the best of the proposals that count
    reached: float  # IoU with the best of all decoded boxes
    lost: Lost  # what might have recalled it
    remover: Remover | None = None  # of what NMS removed

    @property
    def removed_by(self):
        """One of REMOVERS, None where NMS removed nothing."""
        if self.remover is None:
            return None
        row = self.remover.row
        return REMOVERS[2 if row < 0 else int(row != self.row)]


def find(prediction, *, iou, limit, negative_iou, proposals):
    """Returns the Misses of one image: of each object that no proposal covers with this IoU.

    prediction is a predict.Prediction, of whose proposals the first `limit` count; negative_iou is
    that of its matching, proposals are the keywords of propose that it was made with.
    """
    rows = np.flatnonzero(prediction.gt_kind == OBJECT)
    kept = prediction.proposals.boxes[prediction.proposals.valid]
    best = overlaps_of(prediction.gt_boxes[rows], kept[:limit]).max(axis=1, initial=0)
    if np.all(best >= iou):
        return []
    stages, misses = _Stages(prediction, rows, negative_iou, **proposals), []
    for number in np.flatnonzero(best < iou):
        reason, *lost = stages.reason(number, iou)
        reached = float(stages.overlaps['decoded'][:, number].max())
        miss = int(rows[number]), reason, float(best[number]), reached
        misses.append(Miss(prediction.position, *miss, *lost))
    return misses


def counts(misses):
    """Returns {reason: number} in the order of REASONS, zeros included."""
    return {reason: sum(miss.reason == reason for miss in misses) for reason in REASONS}


def removers(misses):
    """Returns the number of boxes removed by proposals on what: {one of REMOVERS: number}."""
    return {name: sum(miss.removed_by == name for miss in misses) for name in REMOVERS}


class _Stages:
    """An image's boxes at every step on their way to proposals, and their IoU with its objects.

    rows [objects] are those of the objects in the ground truth; an object is a number into them.
    """

    def __init__(
        self, prediction, rows, negative_iou, *, pre_nms, nms_iou, min_size=1e-3, post_nms=None
    ):
        self._rows, self._negative_iou = rows, negative_iou
        self._pre_nms, self._nms_iou = pre_nms, nms_iou
        self._matched = prediction.matched[prediction.labels == FOREGROUND]
        logits = np.float64(prediction.logits)
        logits = np.where(np.isnan(logits), -np.inf, logits)
        self._order = np.argsort(-logits, kind='stable')
        self._rank = np.argsort(self._order)
        self._level, self._type = prediction.anchors.level, prediction.anchors.type
        self._types = types_of(prediction.anchors)
        self._rank_in_level = np.zeros(len(logits), np.int64)
        for level, count in enumerate(prediction.anchors.levels):
            self._rank_in_level[self._order[self._level[self._order] == level]] = np.arange(count)
        sides = prediction.clipped[:, 2:] - prediction.clipped[:, :2]
        self._alive = np.all(sides >= min_size, axis=1) & (logits > -np.inf)
        self._boxes = {
            'anchors': prediction.anchors.boxes,
            'decoded': prediction.decoded,
            'clipped': prediction.clipped,
        }
        objects = prediction.gt_boxes[rows]
        self.overlaps = {name: overlaps_of(boxes, objects) for name, boxes in self._boxes.items()}

    def reason(self, number, iou):
        """Returns (reason, Lost), and the Remover where NMS is the reason, of an object."""
        reach = {name: overlaps[:, number] for name, overlaps in self.overlaps.items()}
        if not np.any(reach['anchors'] >= self._negative_iou):
            return 'no_anchor', self._lost('anchors', number)
        if self._rows[number] not in self._matched:
            return 'no_positive_anchor', self._lost('anchors', number)
        if not np.any(reach['decoded'] >= iou):
            return 'no_decoded_box', self._lost('decoded', number)
        reaching = np.flatnonzero((reach['clipped'] >= iou) & self._alive)
        if not len(reaching):
            return 'clipped', self._lost('decoded', number)
        seen = reaching[self._rank_in_level[reaching] < self._pre_nms]
        if not len(seen):
            first = reaching[self._rank_in_level[reaching].argmin()]
            return 'below_pre_nms', self._lost('clipped', number, first, self._rank_in_level[first])
        kept = np.flatnonzero(np.isin(self._survivors, reaching))
        if len(kept):
            return 'beyond_limit', self._lost('clipped', number, self._survivors[kept[0]], kept[0])
        first = seen[self._rank[seen].argmin()]
        lost = self._lost('clipped', number, first, self._rank_in_level[first])
        return 'suppressed', lost, self._remover(first)

    def _lost(self, stage, number, index=None, rank=-1):
        """Returns the Lost of a box at a stage, by default of that which covers an object best."""
        overlaps = self.overlaps[stage][:, number]
        index = overlaps.argmax() if index is None else index
        level, size, _ = self._types[self._type[index]]
        anchor = name_of(level, size, self._types)
        return Lost(self._boxes[stage][index], float(overlaps[index]), int(rank), anchor)

    @functools.cached_property
    def _survivors(self):
        """The anchors that NMS keeps, were there no limit, best first."""
        best = self._order[self._rank_in_level[self._order] < self._pre_nms]
        scores = np.where(self._alive[best], -np.arange(len(best), dtype=np.float32), -np.inf)
        candidates = self._boxes['clipped'][best], scores, self._level[best]
        kept, valid = jax.device_get(_thin_out(*candidates, np.float32(self._nms_iou)))
        return best[kept[valid]]

    def _remover(self, index):
        """Returns the Remover of box `index`: the first that NMS kept and that is too near it."""
        rivals = self._level[self._survivors] == self._level[index]
        ranks = np.flatnonzero(rivals & (self._rank[self._survivors] < self._rank[index]))
        above, boxes = self._survivors[ranks], self._boxes['clipped']
        overlap = overlaps_of(boxes[[index]], boxes[above])[0]
        over = overlap > self._nms_iou
        # Where rounding hides the one that was over the threshold, it is the nearest.
        first = int(over.argmax() if over.any() else overlap.argmax())
        covered = self.overlaps['clipped'][above[first]]
        on_object = covered.max(initial=0) >= self._negative_iou
        row = int(self._rows[covered.argmax()]) if on_object else -1
        return Remover(int(ranks[first]), boxes[above[first]], row)


@jax.jit
def _thin_out(boxes, scores, level, threshold):
    return nms(boxes, scores, iou_threshold=threshold, limit=len(boxes), group=level)
