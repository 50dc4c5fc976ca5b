"""The two losses of an RPN, each the sum over the sampled anchors of one image.

Rows whose label is not used are replaced before the arithmetic, not multiplied by zero afterwards:
NaN or infinity in them touches neither the value nor the gradient.
"""

import jax
import jax.numpy as jnp


def objectness_loss(logits, labels):
    """Returns the summed binary cross entropy of logits [S] and labels [S] (1, 0; -1 not used)."""
    used = labels >= 0
    x = jnp.where(used, logits, 0)
    losses = jax.nn.softplus(jnp.where(labels == 1, -x, x))  # -log sigmoid(x), -log sigmoid(-x)
    return jnp.sum(jnp.where(used, losses, 0))


def box_loss(deltas, target_deltas, labels, *, beta=1 / 9):
    """Returns the summed smooth L1 distance of deltas [S, 4] to target_deltas [S, 4].

    Only rows whose label [S] is 1 count. Quadratic below beta, linear above (Fast R-CNN, equation
    3, there with beta = 1); beta = 0 is L1.
    """
    positive = (labels == 1)[:, None]
    difference = jnp.where(positive, deltas, 0) - jnp.where(positive, target_deltas, 0)
    error = jnp.maximum(difference, -difference)  # flat at 0, where the slope of jnp.abs is 1
    quadratic = 0.5 * error**2 / jnp.maximum(beta, 1e-12)
    return jnp.sum(jnp.where(error < beta, quadratic, error - 0.5 * beta))
