"""What anchors of each type learn: sums over anchors by level, size and aspect ratio."""

import jax
import jax.numpy as jnp

from rpn_jax.ops import boxes as box

LOSSES, IOUS = ('loss_objectness', 'loss_box'), ('iou_before', 'iou_after')


def sums(losses, deltas, labels, anchors, gt_boxes, types, *, count):
    """Sums over N anchors of one image, by type: {name: [count] float32}; has no gradient.

    losses are those of losses.rpn_losses, [N] each; deltas [N, 4], labels [N] (1 foreground, 0
    background, -1 ignored), anchors [N, 4] and the ground-truth boxes [N, 4] that they are matched
    to, in pixels; types [N] int, each below count. `positives` counts foreground; `iou_before` and
    `iou_after` are the IoU of foreground anchors with their boxes, as they lie and as their deltas
    move them, before clipping.
    """
    losses, deltas = jax.lax.stop_gradient((losses, deltas))
    positive = labels == 1
    rows = {
        'positives': positive,
        'loss_objectness': losses['objectness'],
        'loss_box': losses['box'],
        'iou_before': jnp.where(positive, _pair_iou(anchors, gt_boxes), 0),
        'iou_after': jnp.where(positive, _pair_iou(box.decode(deltas, anchors), gt_boxes), 0),
    }
    # Chosen, not multiplied by 0 and 1: accelerators round the factors of a matrix product.
    own = types[None] == jnp.arange(count)[:, None]
    return {name: jnp.where(own, row[None], 0.0).sum(axis=1) for name, row in rows.items()}


def means(sums, images, sampled):
    """Turns sums over a step's images into means: {name: [count]}.

    Positives are per image, the losses per sampled anchor of any type, so that both add up to the
    step's; the IoUs are means over the type's positives, 0 where it has none.
    """
    figures = {'positives': sums['positives'] / images}
    figures |= {name: sums[name] / sampled for name in LOSSES}
    return figures | {name: sums[name] / jnp.maximum(sums['positives'], 1) for name in IOUS}


def _pair_iou(a, b):
    """Returns the IoU [N] of each of the boxes a [N, 4] with its own of b [N, 4]."""
    return jax.vmap(box.iou)(a[:, None], b[:, None])[:, 0, 0]
