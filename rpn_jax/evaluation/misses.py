"""Why objects were missed: each that the first proposals do not recall has exactly one reason.

A proposal begins as an anchor, is moved, clipped, ranked, thinned out by NMS and cut off at a rank.
The reason is the first of these steps that left nothing that could have recalled the object, in the
same logits and deltas that the proposals were made of. With several feature levels, pre_nms and NMS
are within each level, the last rank is over all of them.
"""

from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.data.records import OBJECT
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

    The best anchor, where none is near or positive; the best decoded box, where none reaches the
    IoU or clipping takes it away; else the best-ranked that reaches it, of those that NMS keeps if
    there is one.
    """

    box: np.ndarray  # [4]
    overlap: float  # its IoU with the object
    rank: int = -1  # by score in its level, or among what NMS keeps where it is; from 0, -1: none


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
    missed = rows[best < iou]
    if not len(missed):
        return []
    stages, misses = _Stages(prediction, negative_iou, **proposals), []
    for row, covered in zip(missed, best[best < iou], strict=True):
        reason, *lost = stages.reason(int(row), iou)
        reached = float(stages.overlaps['decoded'][:, row].max())
        misses.append(Miss(prediction.position, int(row), reason, float(covered), reached, *lost))
    return misses


def counts(misses):
    """Returns {reason: number} in the order of REASONS, zeros included."""
    return {reason: sum(miss.reason == reason for miss in misses) for reason in REASONS}


def removers(misses):
    """Returns the number of boxes removed by proposals on what: {one of REMOVERS: number}."""
    return {name: sum(miss.removed_by == name for miss in misses) for name in REMOVERS}


class _Stages:
    """An image's boxes at every step on their way to proposals, and their IoU with its objects."""

    def __init__(self, prediction, negative_iou, *, pre_nms, nms_iou, min_size=1e-3, post_nms=None):
        self._negative_iou, self._pre_nms, self._nms_iou = negative_iou, pre_nms, nms_iou
        self._positive = np.where(prediction.labels == FOREGROUND, prediction.matched, -1)
        logits = np.float64(prediction.logits)
        logits = np.where(np.isnan(logits), -np.inf, logits)
        self._order = np.argsort(-logits, kind='stable')
        self._rank = np.argsort(self._order)
        self._level = prediction.anchors.level
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
        # The IoU of all boxes with the image's objects [A, G]; 0 with other kinds.
        rows = np.flatnonzero(prediction.gt_kind == OBJECT)
        self.overlaps = {}
        for name, boxes in self._boxes.items():
            self.overlaps[name] = np.zeros((len(boxes), len(prediction.gt_kind)))
            self.overlaps[name][:, rows] = overlaps_of(boxes, prediction.gt_boxes[rows])

    def reason(self, row, iou):
        """Returns (reason, Lost), and the Remover where NMS is the reason, of an object."""
        if not np.any(self.overlaps['anchors'][:, row] >= self._negative_iou):
            return 'no_anchor', self._nearest('anchors', row)
        if not np.any(self._positive == row):
            return 'no_positive_anchor', self._nearest('anchors', row)
        if not np.any(self.overlaps['decoded'][:, row] >= iou):
            return 'no_decoded_box', self._nearest('decoded', row)
        reaching = np.flatnonzero((self.overlaps['clipped'][:, row] >= iou) & self._alive)
        if not len(reaching):
            return 'clipped', self._nearest('decoded', row)
        ranked = self._rank_in_level[reaching]
        if np.all(ranked >= self._pre_nms):
            first = reaching[ranked.argmin()]
            return 'below_pre_nms', self._lost('clipped', first, row, self._rank_in_level[first])
        survivors = self._survivors()
        kept = np.flatnonzero(np.isin(survivors, reaching))
        if len(kept):
            return 'beyond_limit', self._lost('clipped', survivors[kept[0]], row, kept[0])
        seen = reaching[ranked < self._pre_nms]
        first = seen[self._rank[seen].argmin()]
        lost = self._lost('clipped', first, row, self._rank_in_level[first])
        return 'suppressed', lost, self._remover(first, survivors)

    def _nearest(self, stage, row):
        """Returns the Lost of the box that covers an object best at a stage."""
        return self._lost(stage, self.overlaps[stage][:, row].argmax(), row, -1)

    def _lost(self, stage, index, row, rank):
        overlap = float(self.overlaps[stage][index, row])
        return Lost(self._boxes[stage][index], overlap, int(rank))

    def _survivors(self):
        """Returns the anchors that NMS keeps, were there no limit, best first."""
        if not hasattr(self, '_kept'):
            best = self._order[self._rank_in_level[self._order] < self._pre_nms]
            scores = np.where(self._alive[best], -np.arange(len(best), dtype=np.float32), -np.inf)
            candidates = self._boxes['clipped'][best], scores, self._level[best]
            kept, valid = jax.device_get(_thin_out(*candidates, np.float32(self._nms_iou)))
            self._kept = best[kept[valid]]
        return self._kept

    def _remover(self, index, survivors):
        """Returns the Remover of box `index`: the first that NMS kept and that is too near it."""
        rivals = self._level[survivors] == self._level[index]
        ranks = np.flatnonzero(rivals & (self._rank[survivors] < self._rank[index]))
        above, boxes = survivors[ranks], self._boxes['clipped']
        overlap = overlaps_of(boxes[[index]], boxes[above])[0]
        over = overlap > self._nms_iou
        # Where rounding hides the one that was over the threshold, it is the nearest.
        first = int(over.argmax() if over.any() else overlap.argmax())
        covered = self.overlaps['clipped'][above[first]]
        on_object = covered.max(initial=0) >= self._negative_iou
        row = int(covered.argmax()) if on_object else -1
        return Remover(int(ranks[first]), boxes[above[first]], row)


@jax.jit
def _thin_out(boxes, scores, level, threshold):
    return nms(boxes, scores, iou_threshold=threshold, limit=len(boxes), group=level)
