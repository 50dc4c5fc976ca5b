"""Targets: which anchors are objects, which are background, and from which of them to learn."""

import jax
import jax.numpy as jnp

from rpn_jax import boxes as box

OBJECT, BACKGROUND, UNUSED = 1, 0, -1


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
    """Labels every anchor of one image: 1 object, 0 background, -1 not used.

    anchors [A, 4], boxes [G, 4] in pixels, kind [G] (0 padding, 1 object, 2 difficult, 3 crowd).
    Positive at IoU >= positive_iou with an object, or where an anchor ties for an object's best IoU
    and that is > 0 (Faster R-CNN, section 3.1.2); background below negative_iou. Anchors at IoU >=
    negative_iou with a difficult box, or with at least crowd_overlap of their area inside a crowd,
    are no background. With `border` >= 0 and `size` (height, width), anchors further than that many
    pixels outside the image are out before matching; -1 leaves them in, as torchvision does.

    Returns labels [A] and matched [A] int32, the object with which each anchor overlaps most (0
    where there is none).
    """
    # The barrier makes both maxima below read the same numbers: recomputed in two fusions, equal
    # IoUs may differ in the last bit and a tie for the best anchor would be lost.
    overlaps = jax.lax.optimization_barrier(box.iou(anchors, boxes))
    inside = jnp.ones(len(anchors), bool) if size is None else _inside(anchors, size, border)
    # Padded rows and unused anchors stand at -1, below every threshold: they can never win a match.
    objects = jnp.where((kind == 1)[None, :] & inside[:, None], overlaps, -1)
    best_of_anchor = jnp.max(objects, axis=1, initial=-1)
    best_of_object = jnp.max(objects, axis=0, initial=-1)
    wins = (objects == best_of_object[None, :]) & (best_of_object > 0)[None, :]
    positive = (best_of_anchor >= positive_iou) | jnp.any(wins, axis=1)

    difficult = jnp.any((overlaps >= negative_iou) & (kind == 2)[None, :], axis=1)
    share = box.intersection(anchors, boxes) / jnp.maximum(box.area(anchors), box.TINY)[:, None]
    crowd = jnp.any((share >= crowd_overlap) & (kind == 3)[None, :], axis=1)
    background = (best_of_anchor < negative_iou) & ~difficult & ~crowd

    labels = jnp.where(positive, OBJECT, jnp.where(background, BACKGROUND, UNUSED))
    matched = jnp.argmax(objects, axis=1) if len(boxes) else jnp.zeros(len(anchors))
    return jnp.where(inside, labels, UNUSED).astype(jnp.int32), matched.astype(jnp.int32)


def sample(key, labels, *, samples=256, positive_fraction=0.5):
    """Draws the anchors of one step at random, without replacement.

    labels [A]. At most int(samples * positive_fraction) positives; background fills the rest,
    further positives never do (Faster R-CNN, section 3.1.3). Returns index [S] int32 into the
    anchors and labels [S]; positives come first, and unused slots have label -1 and index 0.
    """
    total = len(labels)
    limit = int(samples * positive_fraction)
    priority = jax.random.uniform(key, labels.shape)
    positives = _draw(priority, labels == OBJECT, min(limit, total))
    negatives = _draw(priority, labels == BACKGROUND, min(samples, total))

    slot = jnp.arange(samples)
    positive_count = jnp.minimum(jnp.sum(labels == OBJECT), len(positives))
    negative_count = jnp.minimum(jnp.sum(labels == BACKGROUND), samples - positive_count)
    is_positive = slot < positive_count
    is_negative = ~is_positive & (slot < positive_count + negative_count)
    index = jnp.where(is_positive, _take(positives, slot), 0)
    index = jnp.where(is_negative, _take(negatives, slot - positive_count), index)
    labels = jnp.where(is_positive, OBJECT, jnp.where(is_negative, BACKGROUND, UNUSED))
    return index.astype(jnp.int32), labels.astype(jnp.int32)


def assign(
    key,
    anchors,
    boxes,
    kind,
    *,
    positive_iou=0.7,
    negative_iou=0.3,
    crowd_overlap=0.5,
    size=None,
    border=-1,
    samples=256,
    positive_fraction=0.5,
):
    """Matches all anchors of one image and samples some: match, then sample.

    Takes the keywords of both. Returns index [S], labels [S] and matched [S], the object that each
    sampled anchor is matched to.
    """
    labels, matched = match(
        anchors,
        boxes,
        kind,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        crowd_overlap=crowd_overlap,
        size=size,
        border=border,
    )
    index, sampled = sample(key, labels, samples=samples, positive_fraction=positive_fraction)
    return index, sampled, matched[index]


def _inside(anchors, size, border):
    height, width = size[0], size[1]
    low = jnp.all(anchors[:, :2] >= -border, axis=1)
    high = (anchors[:, 2] <= width + border) & (anchors[:, 3] <= height + border)
    return (low & high) | (jnp.asarray(border) < 0)


def _draw(priority, chosen, count):
    return jax.lax.top_k(jnp.where(chosen, priority, -1), count)[1]


def _take(index, slot):
    if not len(index):
        return jnp.zeros_like(slot)
    return index[jnp.clip(slot, 0, len(index) - 1)]
