"""The objectness and box regression losses of an RPN, of the sampled anchors of one image.

Rows that are ignored are replaced before the arithmetic, not multiplied by zero afterwards: NaN or
infinity in them touches neither the value nor the gradient.
"""

import jax
import jax.numpy as jnp

from rpn_jax.ops.boxes import encode

LOSS = {'objectness_weight': 1.0, 'box_weight': 1.0, 'beta': 1 / 9}  # as in configs/default.py


def rpn_losses(logits, deltas, labels, anchors, gt_boxes, *, beta=1 / 9):
    """Returns the losses of each sampled anchor: {'objectness': [S], 'box': [S]}, 0 where ignored.

    logits [S], deltas [S, 4], labels [S] (1 foreground, 0 background, -1 ignored), anchors [S, 4]
    and the ground-truth boxes [S, 4] that they are matched to, in pixels. Only foreground has a box
    loss. Faster R-CNN, equation 1, before it is weighted and averaged; beta as in box_loss.
    """
    return {
        'objectness': _objectness(logits, labels),
        'box': _box(deltas, encode(gt_boxes, anchors), labels, beta),
    }


def weights_and_keywords(loss=None):
    """Splits a config's section `loss`: {name of a loss: its weight}, and keywords of rpn_losses.

    What is missing is as in LOSS.
    """
    keywords = LOSS | dict(loss or {})
    weights = {name: keywords.pop(f'{name}_weight') for name in ('objectness', 'box')}
    return weights, keywords


def objectness_loss(logits, labels):
    """Returns the summed binary cross entropy of logits [S] and labels [S] (1, 0; -1 ignored)."""
    return jnp.sum(_objectness(logits, labels))


def box_loss(deltas, target_deltas, labels, *, beta=1 / 9):
    """Returns the summed smooth L1 distance of deltas [S, 4] to target_deltas [S, 4].

    Only rows whose label [S] is 1 count. Quadratic below beta, linear above (Fast R-CNN, equation
    3, there with beta = 1); beta = 0 is L1.
    """
    return jnp.sum(_box(deltas, target_deltas, labels, beta))


def _objectness(logits, labels):
    used = labels >= 0
    x = jnp.where(used, logits, 0)
    losses = jax.nn.softplus(jnp.where(labels == 1, -x, x))  # -log sigmoid(x), -log sigmoid(-x)
    return jnp.where(used, losses, 0)


def _box(deltas, target_deltas, labels, beta):
    positive = (labels == 1)[:, None]
    difference = jnp.where(positive, deltas, 0) - jnp.where(positive, target_deltas, 0)
    error = jnp.maximum(difference, -difference)  # flat at 0, where the slope of jnp.abs is 1
    quadratic = 0.5 * error**2 / jnp.maximum(beta, 1e-12)
    return jnp.sum(jnp.where(error < beta, quadratic, error - 0.5 * beta), axis=1)
