"""Turn logits and deltas into proposals: top-k, decode, clip, minimum size, NMS, top-n."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rpn_jax.ops import boxes as box
from rpn_jax.ops.anchors import Anchors, boxes_of
from rpn_jax.ops.nms import ranked_nms


class Proposals(NamedTuple):
    """The proposals of one image, best first; rows that are not valid stand last and are zero."""

    boxes: jax.Array  # [P, 4] float32, pixels
    scores: jax.Array  # [P] float32, sigmoid of the logit
    valid: jax.Array  # [P] bool
    index: jax.Array  # [P] int32, the anchor each proposal comes from


def propose(
    logits, deltas, anchors, size, *, pre_nms, post_nms, nms_iou, min_size=1e-3, levels=None
):
    """Returns the Proposals, of post_nms rows, of one image: its best boxes after NMS.

    logits [A], deltas [A, 4], anchors as Anchors or boxes [A, 4], size (height, width) of the real
    image in pixels. Ranked by logit, lower index first on ties; a logit of -inf or NaN is no
    proposal. The best pre_nms and the NMS are per level, the best post_nms over all (torchvision);
    `levels`, the number of anchors of each level, is known of Anchors, and of boxes by default that
    of all. Boxes with a side below min_size pixels are dropped after clipping.
    """
    if levels is None and isinstance(anchors, Anchors):
        levels = anchors.levels
    anchors = boxes_of(anchors)
    if len(logits) == 0:  # one that is no proposal: nothing can be taken from nothing
        logits, deltas, anchors, levels = jnp.full(1, -jnp.inf), *jnp.zeros((2, 1, 4)), None
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits.astype(jnp.float32))
    logits = jnp.where(logits == 0, 0, logits)  # top_k would rank 0 above -0
    index, group = _candidates(logits, pre_nms, levels)
    candidates = box.clip(box.decode(deltas[index].astype(jnp.float32), anchors[index]), size)
    sides = candidates[:, 2:] - candidates[:, :2]
    alive = jnp.all(sides >= min_size, axis=1) & (logits[index] > -jnp.inf)
    kept, valid = ranked_nms(candidates, alive, iou_threshold=nms_iou, limit=post_nms, group=group)
    return Proposals(
        boxes=jnp.where(valid[:, None], candidates[kept], 0),
        scores=jnp.where(valid, jax.nn.sigmoid(logits[index[kept]]), 0),
        valid=valid,
        index=jnp.where(valid, index[kept], 0).astype(jnp.int32),
    )


def _candidates(logits, pre_nms, levels):
    """Returns the best pre_nms anchors of each level, ranked together, and their levels."""
    levels = (len(logits),) if levels is None else tuple(levels)
    assert sum(levels) == len(logits), f'levels {levels} do not add up to {len(logits)} anchors'
    chosen, start = [], 0
    for count in levels:
        best = jax.lax.top_k(logits[start : start + count], min(pre_nms, count))[1]
        chosen.append(start + best)
        start += count
    if len(levels) == 1:
        return chosen[0], None
    index = jnp.concatenate(chosen)
    group = jnp.concatenate([jnp.full(len(c), level) for level, c in enumerate(chosen)])
    order = jnp.argsort(logits[index], descending=True, stable=True)  # levels lie in index order
    return index[order], group[order]
