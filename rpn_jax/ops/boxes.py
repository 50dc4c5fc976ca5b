"""Boxes: area, IoU, and the deltas that move an anchor onto a box."""

import math

import jax.numpy as jnp

MAX_LOG_SCALE = math.log(1000 / 16)  # no anchor grows more than 62.5 times (Detectron)
TINY = 1e-6  # pixels; keeps logarithms and quotients of degenerate boxes finite


def area(boxes):
    """Returns the area of boxes [..., 4] in square pixels, 0 where a box is inverted."""
    width_height = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return width_height[..., 0] * width_height[..., 1]


def intersection(a, b):
    """Returns the intersection areas [N, M] of boxes a [N, 4] and b [M, 4] in square pixels."""
    # One coordinate at a time: pairs of them would stand between loops and vector instructions.
    x0, y0 = (jnp.maximum(a[:, None, i], b[None, :, i]) for i in (0, 1))
    x1, y1 = (jnp.minimum(a[:, None, i], b[None, :, i]) for i in (2, 3))
    return jnp.maximum(x1 - x0, 0) * jnp.maximum(y1 - y0, 0)


def iou(a, b):
    """Returns the intersection over union [N, M] of boxes a [N, 4] and b [M, 4]; 0/0 is 0."""
    overlap = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - overlap
    return jnp.where(union > 0, overlap / jnp.where(union > 0, union, 1), 0)


def encode(boxes, anchors):
    """Returns the deltas [..., 4] that carry anchors [..., 4] to boxes [..., 4].

    (dx, dy) move the centre in units of the anchor's side, (dw, dh) are log ratios of the sides
    (Faster R-CNN, equation 2). Finite for degenerate boxes: sides count as at least 1e-6 pixels.
    """
    anchor_sides, anchor_centres = _sides(anchors), _centres(anchors)
    shift = (_centres(boxes) - anchor_centres) / anchor_sides
    return jnp.concatenate([shift, jnp.log(_sides(boxes) / anchor_sides)], axis=-1)


def decode(deltas, anchors):
    """Returns the boxes [..., 4] to which deltas [..., 4] carry anchors [..., 4].

    dw and dh are clamped above at log(1000 / 16), as in Detectron and torchvision, so that no box
    overflows.
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + 0.5 * sides
    new_centres = deltas[..., :2] * sides + centres
    half = 0.5 * jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * sides
    return jnp.concatenate([new_centres - half, new_centres + half], axis=-1)


def clip(boxes, size):
    """Moves the corners of boxes [..., 4] into an image; size is (height, width) in pixels."""
    height, width = size[0], size[1]
    limit = jnp.stack([jnp.asarray(v, boxes.dtype) for v in (width, height, width, height)])
    limit = limit.reshape((1,) * (boxes.ndim - 1) + (4,))
    return jnp.minimum(jnp.maximum(boxes, 0), limit)


def _sides(boxes):
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], TINY)


def _centres(boxes):
    return boxes[..., :2] + 0.5 * (boxes[..., 2:] - boxes[..., :2])
