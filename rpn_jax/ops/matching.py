"""Label anchors as foreground, background or ignored, and sample a minibatch of them."""

import jax
import jax.numpy as jnp

from rpn_jax.ops import boxes as box
from rpn_jax.ops.anchors import boxes_of

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1
BLOCK = 8  # ground-truth boxes compared with all anchors at a time


def match(
    anchors,
    boxes,
    kind,
    *,
    positive_iou=0.7,
    negative_iou=0.3,
    crowd_overlap=0.5,
    size=None,
    border=-1,
):
    """Labels every anchor of one image: 1 foreground, 0 background, -1 ignored.

    anchors are Anchors or boxes [A, 4], boxes the ground truth [G, 4] in pixels, kind [G] (0
    padding, 1 object, 2 difficult, 3 crowd). Foreground at IoU >= positive_iou with an object, or
    where an anchor ties for an object's best IoU and that is > 0 (Faster R-CNN, section 3.1.2);
    background below negative_iou. Anchors at IoU >= negative_iou with a difficult box, or with at
    least crowd_overlap of their area inside a crowd, are ignored instead of background. With
    `border` >= 0 and `size` (height, width), anchors further than that many pixels outside the
    image are ignored and win no match; -1 leaves them in, as torchvision does.

    Blocks of boxes are compared with all anchors, so that memory grows with A and not with A * G.

    Returns labels [A] and matched [A] int32, the row of the object with which each anchor overlaps
    most (0 where there is none).
    """
    anchors = boxes_of(anchors)
    inside = jnp.ones(len(anchors), bool) if size is None else _inside(anchors, size, border)
    # Turned, so that each coordinate of all anchors lies in a row, and once, not in every block.
    columns, area = jax.lax.optimization_barrier((anchors.T, box.area(anchors)))

    def compare(state, block):
        best, matched, wins, near = state
        rows, boxes, kind = block
        is_object = kind == 1
        overlaps = _overlaps(boxes, kind, columns.T, area)
        # The barrier makes all that follows read the same numbers: recomputed in two fusions, equal
        # IoUs may differ in the last bit and a tie for the best anchor would be lost. Anchors that
        # are out and, later, other rows stand at -1, below every threshold: they win no match.
        overlaps = jax.lax.optimization_barrier(jnp.where(inside[None, :], overlaps, -1))
        of_crowd = jnp.where(kind == 3, crowd_overlap, jnp.inf)
        ignored_from = jnp.where(kind == 2, negative_iou, of_crowd)
        # Not of `objects`: on CPUs XLA has vector code only for the maximum of a plain array.
        best_of_object = jnp.max(overlaps, axis=1)
        touched = is_object & (best_of_object > 0)
        ties = overlaps == jnp.where(touched, best_of_object, jnp.inf)[:, None]
        objects = jnp.where(is_object[:, None], overlaps, -1)
        best_here = jnp.max(objects, axis=0)
        matched_here = rows[0] + jnp.argmax(objects, axis=0).astype(jnp.int32)
        state = (
            jnp.maximum(best, best_here),
            jnp.where(best_here > best, matched_here, matched),  # of equals the first
            wins | jnp.any(ties, axis=0),
            near | jnp.any(overlaps >= ignored_from[:, None], axis=0),
        )
        return state, None

    # Of each anchor its best IoU, the object that it is with, whether it is an object's best
    # anchor, and whether a difficult box or a crowd keeps it out of the background.
    none = jnp.zeros(len(anchors), bool)
    state = jnp.full(len(anchors), -1, jnp.float32), none.astype(jnp.int32), none, none
    rows = jnp.arange(len(boxes), dtype=jnp.int32), boxes, kind
    state, _ = jax.lax.scan(compare, state, [_blocks(values) for values in rows])
    best, matched, wins, near = state
    positive = (best >= positive_iou) | wins
    background = (best < negative_iou) & ~near
    labels = jnp.where(positive, FOREGROUND, jnp.where(background, BACKGROUND, IGNORED))
    return jnp.where(inside, labels, IGNORED).astype(jnp.int32), matched


def sample(key, labels, *, samples=256, positive_fraction=0.5):
    """Draws the anchors of one step at random, without replacement.

    labels [A]. At most int(samples * positive_fraction) are foreground; background fills the rest,
    further foreground never does (Faster R-CNN, section 3.1.3). Returns index [S] int32 into the
    anchors and labels [S]; foreground comes first, and empty slots have label -1 and index 0.
    """
    priority = jax.random.uniform(key, labels.shape)

    def draw(label, count):
        chosen = labels == label
        count = min(count, len(labels))
        drawn = jax.lax.top_k(jnp.where(chosen, priority, -1), count)[1]
        return drawn, jnp.minimum(jnp.sum(chosen), count)

    positives, positive_count = draw(FOREGROUND, int(samples * positive_fraction))
    negatives, negative_count = draw(BACKGROUND, samples)
    slot = jnp.arange(samples)
    is_positive = slot < positive_count
    is_negative = ~is_positive & (slot < positive_count + negative_count)
    drawn = jnp.concatenate([positives, negatives, jnp.zeros(1, jnp.int32)])
    negative = len(positives) + slot - positive_count
    row = jnp.where(is_positive, slot, jnp.where(is_negative, negative, len(drawn) - 1))
    labels = jnp.where(is_positive, FOREGROUND, jnp.where(is_negative, BACKGROUND, IGNORED))
    return drawn[row], labels.astype(jnp.int32)


def assign(key, anchors, boxes, kind, *, samples=256, positive_fraction=0.5, **rules):
    """Matches all anchors of one image and samples some: match, then sample.

    Takes the keywords of both; rules are those of match. Returns index [S], labels [S] and matched
    [S], the row of the object that each sampled anchor is matched to.
    """
    labels, matched = match(anchors, boxes, kind, **rules)
    index, sampled = sample(key, labels, samples=samples, positive_fraction=positive_fraction)
    return index, sampled, matched[index]


def _overlaps(boxes, kind, anchors, area):
    """Returns IoUs [G, A] as boxes.iou does, or of a crowd its share of each anchor; area [A]."""
    overlaps = box.intersection(boxes, anchors)
    union = box.area(boxes)[:, None] + area[None, :] - overlaps
    divisor = jnp.where((kind == 3)[:, None], jnp.maximum(area, box.TINY)[None, :], union)
    return jnp.where(divisor > 0, overlaps / jnp.where(divisor > 0, divisor, 1), 0)


def _blocks(rows):
    """Returns rows [G, ..] as [blocks, BLOCK, ..]; what fills the last block is zero: padding."""
    block = min(BLOCK, len(rows)) or 1
    missing = -len(rows) % block
    rows = jnp.pad(rows, ((0, missing),) + ((0, 0),) * (rows.ndim - 1))
    return rows.reshape(-1, block, *rows.shape[1:])


def _inside(anchors, size, border):
    height, width = size[0], size[1]
    low = jnp.all(anchors[:, :2] >= -border, axis=1)
    high = (anchors[:, 2] <= width + border) & (anchors[:, 3] <= height + border)
    return (low & high) | (jnp.asarray(border) < 0)
