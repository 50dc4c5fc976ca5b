"""What each of the K anchors of a cell learns: sums over anchors by size and aspect ratio.

An anchor's type is its index modulo K, in the order of anchors.base_anchors.
"""

import functools

import jax
import jax.numpy as jnp

from rpn_jax.ops import boxes as box
from rpn_jax.ops import losses

LOSSES, IOUS = ('loss_objectness', 'loss_box'), ('iou_before', 'iou_after')


def sums(logits, deltas, labels, anchors, objects, types, *, count, beta=1 / 9):
    """Sums over N anchors of one image, by type: {name: [count] float32}; has no gradient.

    logits [N], deltas [N, 4], labels [N] (1 object, 0 background, -1 not used), anchors [N, 4] and
    the objects [N, 4] that they are matched to, in pixels; types [N] int, each below count; beta is
    that of losses.box_loss. Over the types, `positives` adds up to the labels that are 1 and
    `loss_objectness` and `loss_box` to what rpn_jax.losses says of all N. `iou_before` and
    `iou_after` are the IoU of positive anchors with their objects, as they lie and as their deltas
    move them, before clipping.
    """
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    positive = labels == 1
    one, goals = labels[:, None], box.encode(objects, anchors)
    regression = functools.partial(losses.box_loss, beta=beta)
    rows = {
        'positives': positive,
        'loss_objectness': jax.vmap(losses.objectness_loss)(logits[:, None], one),
        'loss_box': jax.vmap(regression)(deltas[:, None], goals[:, None], one),
        'iou_before': jnp.where(positive, _pair_iou(anchors, objects), 0),
        'iou_after': jnp.where(positive, _pair_iou(box.decode(deltas, anchors), objects), 0),
    }
    # Chosen, not multiplied by 0 and 1: accelerators round the factors of a matrix product.
    own = types[None] == jnp.arange(count)[:, None]
    return {name: jnp.where(own, row[None], 0.0).sum(axis=1) for name, row in rows.items()}


def means(sums, images, sampled):
    """Turns sums over a step's images into figures: {name: [K]}.

    Positives are per image, the losses per sampled anchor of any type, so that both add up to the
    step's; the IoUs are means over the type's positives, 0 where it has none.
    """
    found = {'positives': sums['positives'] / images}
    found |= {name: sums[name] / sampled for name in LOSSES}
    return found | {name: sums[name] / jnp.maximum(sums['positives'], 1) for name in IOUS}


def _pair_iou(a, b):
    """Returns the IoU [N] of each of the boxes a [N, 4] with its own of b [N, 4]."""
    return jax.vmap(box.iou)(a[:, None], b[:, None])[:, 0, 0]
