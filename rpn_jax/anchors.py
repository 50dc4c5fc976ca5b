"""Anchors: K boxes around the origin, repeated at every cell of a feature map."""

import jax.numpy as jnp
import numpy as np


def base_anchors(sizes, aspect_ratios):
    """Returns the anchors [K, 4] float32 of one cell, centred on the cell's corner, in pixels.

    An aspect ratio is height / width and keeps the area: of sizes 32 px and ratio 0.5 comes a box of
    45 x 23. Ratio-major (all sizes of the first ratio come first), corners rounded half to even, as in
    torchvision's AnchorGenerator.
    """
    sizes = np.asarray(sizes, np.float32)
    ratios = np.sqrt(np.asarray(aspect_ratios, np.float32))
    widths = ((1 / ratios)[:, None] * sizes[None, :]).reshape(-1)
    heights = (ratios[:, None] * sizes[None, :]).reshape(-1)
    return jnp.asarray(np.round(np.stack([-widths, -heights, widths, heights], axis=1) / 2))


def grid(base, shape, stride):
    """Returns the anchors [h * w * K, 4] of a feature map: base [K, 4] moved to the corner of every cell.

    shape is (h, w) of the actual feature map, stride its nominal stride in pixels. Cell-major: the K
    anchors of a cell are contiguous and cells follow row by row, so that a head's output [h, w, K]
    needs no transpose.
    """
    h, w = shape
    x = jnp.arange(w, dtype=jnp.float32) * stride
    y = jnp.arange(h, dtype=jnp.float32) * stride
    y, x = jnp.meshgrid(y, x, indexing='ij')
    corner = jnp.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (corner + jnp.asarray(base, jnp.float32)[None]).reshape(-1, 4)
