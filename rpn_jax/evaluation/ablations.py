"""Ablations: proposals with a network's scores or regression removed, or made perfect.

On the same anchors and through the same NMS as the proposals themselves:

    scores_alone   its scores, on anchors that are not moved: without regression
    random_order   its boxes in random order: without scores
    oracle_scores  its boxes, ranked by their best IoU with an object: with perfect scores
"""

import jax

from rpn_jax.data.records import OBJECT
from rpn_jax.ops import boxes as box
from rpn_jax.ops.anchors import boxes_of
from rpn_jax.ops.proposals import propose

ABLATIONS = ('scores_alone', 'random_order', 'oracle_scores')


def ablate(key, logits, deltas, anchors, gt_boxes, gt_kind, size, **proposals):
    """Returns {name of ABLATIONS: Proposals} of one image.

    logits [A], deltas [A, 4], anchors and size as in propose, whose keywords `proposals` are;
    gt_boxes [G, 4] and gt_kind [G] are the ground truth, of which objects (kind 1) count; key is
    for the random order.
    """
    decoded = box.clip(box.decode(deltas, boxes_of(anchors)), size)
    best = (box.iou(decoded, gt_boxes) * (gt_kind == OBJECT)[None]).max(axis=1)
    inputs = {
        'scores_alone': (logits, deltas * 0),
        'random_order': (jax.random.uniform(key, logits.shape), deltas),
        'oracle_scores': (best, deltas),
    }
    return {name: propose(*both, anchors, size, **proposals) for name, both in inputs.items()}
