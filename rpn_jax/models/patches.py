"""3x3 convolutions around a few cells of feature maps: the same numbers as those of whole maps.

Training needs the answers of some sampled anchors only. What these read, a patch of the map around
each anchor's cell, is cut out and convolved by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Cells(NamedTuple):
    """Cells of feature maps: the level, row and column of each, int32 [B, S]."""

    level: jax.Array
    row: jax.Array
    column: jax.Array


class Patches(NamedTuple):
    """Square patches of feature maps, around S cells of each image; zero outside of the map."""

    values: jax.Array  # [B, S, side, side, C]
    inside: jax.Array  # [B, S, side, side] bool: whether the map has such a cell


def cells_of(index, shapes, k):
    """Returns the Cells of anchors index [B, S], and the number of each within its cell [B, S].

    The anchors are those of feature maps of these shapes ((h, w), ..), k in each cell.
    """
    columns = []
    for level, (h, w) in enumerate(shapes):
        row, column, slot = np.indices((h, w, k), np.int32).reshape(3, -1)
        columns.append((np.full_like(row, level), row, column, slot))
    level, row, column, slot = jnp.asarray(np.concatenate(columns, axis=1))[:, index]
    return Cells(level, row, column), slot


def around(maps, cells, radius, first=0):
    """Returns the Patches of radius cells around each of the Cells.

    maps are those [B, h, w, C] of the levels from `first` on; cells of other levels are in none.
    """
    steps = jnp.arange(-radius, radius + 1, dtype=jnp.int32)
    row = cells.row[..., None, None] + steps[None, None, :, None]
    column = cells.column[..., None, None] + steps[None, None, None, :]
    values, found = 0, False
    for level, x in enumerate(maps, first):
        b, h, w, c = x.shape
        inside = (cells.level == level)[..., None, None]
        inside = inside & (row >= 0) & (row < h) & (column >= 0) & (column < w)
        index = jnp.where(inside, row * w + column, 0)
        # Whole rows: take_along_axis would look up every number of them by itself.
        rows = jax.vmap(lambda x, i: x.at[i].get(mode='promise_in_bounds'))
        values = jnp.where(inside[..., None], rows(x.reshape(b, h * w, c), index), values)
        found = inside | found
    return Patches(values, found)


def merged(patches, others):
    """Returns the Patches of two that have no cell in common."""
    return Patches(patches.values + others.values, patches.inside | others.inside)


def convolve(patches, kernel, bias, activation=lambda x: x):
    """Returns the Patches, a cell smaller on each side, of activation(3x3 convolution + bias)."""
    values = patches.values
    side, channels = values.shape[2] - 2, values.shape[-1]
    if side == 1:  # one window, which the patch is already
        windows = values.reshape(*values.shape[:2], 1, 1, 9 * channels)
    else:
        windows = [values[:, :, y : y + side, x : x + side] for y in range(3) for x in range(3)]
        windows = jnp.concatenate(windows, axis=-1)
    outputs = windows @ kernel.reshape(9 * channels, -1)
    inside = patches.inside[:, :, 1:-1, 1:-1]
    outputs = activation(outputs + bias[None, None, None, None])
    return Patches(jnp.where(inside[..., None], outputs, 0), inside)
