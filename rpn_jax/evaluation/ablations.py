"""What each part of a network contributes: proposals with one part taken away, or made perfect.

Beside the proposals themselves, on the same anchors and through the same NMS:

    scores_alone   its scores, on anchors that are not moved: what regression adds shows in the rest
    random_order   its boxes in random order: what the scores add
    oracle_scores  its boxes, ranked by their best IoU with an object: what better scores could add
"""

import jax

from rpn_jax.ops import boxes as box
from rpn_jax.ops.proposals import propose

PARTS = ('scores_alone', 'random_order', 'oracle_scores')


def propose_parts(key, logits, deltas, anchors, boxes, kind, size, **settings):
    """Returns {name of PARTS: Proposals} of one image.

    logits [A], deltas [A, 4] and anchors [A, 4] as in propose, whose keywords settings are; boxes
    [G, 4] and kind [G] are the image's objects, of which kind 1 counts; key is for the order.
    """
    decoded = box.clip(box.decode(deltas, anchors), size)
    best = (box.iou(decoded, boxes) * (kind == 1)[None]).max(axis=1)
    inputs = {
        'scores_alone': (logits, deltas * 0),
        'random_order': (jax.random.uniform(key, logits.shape), deltas),
        'oracle_scores': (best, deltas),
    }
    return {name: propose(*both, anchors, size, **settings) for name, both in inputs.items()}
