"""Anchors: K boxes around the origin, repeated at every cell of a feature map."""

import math

import jax.numpy as jnp


def base_anchors(sizes, aspect_ratios):
    """Returns the anchors [K, 4] float32 of one cell, centred on the cell's corner, in pixels.

    An aspect ratio is height / width and keeps the area: size 32 and ratio 0.5 make a box 46 wide
    and 22 high. Ratio-major (all sizes of the first ratio come first), corners rounded half to
    even, as in torchvision's AnchorGenerator.
    """
    roots = [math.sqrt(ratio) for ratio in aspect_ratios]
    # In Python's own floats, so that no device or compiler rounds a corner the other way.
    halves = [(round(size / root / 2), round(size * root / 2)) for root in roots for size in sizes]
    return jnp.array([(-w, -h, w, h) for w, h in halves], jnp.float32)


def grid(base, shape, stride):
    """Returns the anchors [h * w * K, 4] of a feature map: base [K, 4] at every cell's corner.

    shape is (h, w) of the actual feature map, stride its nominal stride in pixels. Cell-major: the
    K anchors of a cell are contiguous and cells follow row by row, so that a head's output
    [h, w, K] needs no transpose.
    """
    h, w = shape
    x = jnp.arange(w, dtype=jnp.float32) * stride
    y = jnp.arange(h, dtype=jnp.float32) * stride
    y, x = jnp.meshgrid(y, x, indexing='ij')
    corner = jnp.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (corner + jnp.asarray(base, jnp.float32)[None]).reshape(-1, 4)
