"""Winograd's minimal filtering of wide 3x3 convolutions, and both of its gradients."""

import math

import jax.numpy as jnp
import numpy as np

WIDE = 64  # channels from which on the filtering pays: of 32 it takes as long as XLA

# Winograd's transforms along a side, B^T, G and A^T; those of both sides are Kronecker products.
OF_INPUTS, OF_KERNEL, OF_OUTPUTS = (
    np.kron(matrix, matrix).astype(np.float32)
    for matrix in (
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    )
)


def pays(x, kernel, dilation=1):
    """Says whether the filtering saves a third of the products of a wide float32 map [B, h, w, C].

    Tiles may reach far beyond it, and the kernel's transform costs as much as nine of them.
    """
    covered = math.prod(2 * dilation * _tile_count(n, dilation) for n in x.shape[1:3])
    enough = 4 * covered + 16 * 9 <= 2 / 3 * 9 * math.prod(x.shape[1:3])
    return x.dtype == jnp.float32 and enough and min(kernel.shape[2:]) >= WIDE


def convolve(x, kernel, dilation=1):
    """Convolves [B, h, w, C] with [3, 3, C, F] by F(2x2, 3x3) of Lavin and Gray 2016, section 4.1.

    Each tile of 4x4 inputs makes 2x2 outputs with 16 multiplications instead of 36, all of it
    matrix products: the transforms of the inputs and of the kernel, 16 products of all tiles, and
    the transform of the outputs. A dilated map is one of dilation^2 interleaved maps. Holds four
    times the inputs twice and four times the outputs for a while; a number that is not finite
    spoils its tiles.
    """
    return _filtered('tpc,tcf->tpf', OF_KERNEL, x, kernel, dilation)


def of_input(gradient, kernel, dilation=1):
    """Returns the gradient [B, h, w, C] of the input, of [B, h, w, F] and the kernel [3, 3, C, F].

    It is a convolution with the kernel turned by 180 degrees, its channels exchanged.
    """
    return _filtered('tpf,tcf->tpc', OF_KERNEL[:, ::-1], gradient, kernel, dilation)


def _filtered(equation, kernel_transform, x, kernel, dilation):
    tiles = jnp.tensordot(OF_INPUTS, _tiles(x, dilation, 4), 1)
    weights = jnp.tensordot(kernel_transform, kernel.reshape(9, *kernel.shape[2:]), 1)
    products = jnp.einsum(equation, tiles, weights)
    return _whole(jnp.tensordot(OF_OUTPUTS, products, 1), x.shape, dilation)


def of_kernel(x, gradient, dilation=1):
    """Returns the gradient [3, 3, C, F] of a kernel that made [B, h, w, F] of [B, h, w, C]."""
    tiles = jnp.tensordot(OF_INPUTS, _tiles(x, dilation, 4), 1)
    outputs = jnp.tensordot(OF_OUTPUTS.T, _tiles(gradient, dilation, 2), 1)
    products = jnp.einsum('tpc,tpf->tcf', tiles, outputs)
    return jnp.tensordot(OF_KERNEL.T, products, 1).reshape(3, 3, *products.shape[1:])


def _tiles(x, dilation, side):
    """Returns the pixels [side * side, tiles, C] of the tiles of [B, h, w, C].

    Within an interleaved map they begin 2 pixels apart; those of 4 x 4 one pixel before the map.
    """
    batch, h, w, channels = x.shape
    margin = dilation * (side // 2 - 1)
    down, across = (_tile_count(n, dilation) for n in (h, w))
    height, width = (2 * dilation * n + 2 * margin for n in (down, across))
    x = jnp.pad(x, ((0, 0), (margin, height - margin - h), (margin, width - margin - w), (0, 0)))
    rows, columns = (_positions(n, dilation, side) for n in (down, across))
    pixels = rows[:, None, None, :, None] * width + columns[None, :, None, None, :]
    pixels = pixels + height * width * jnp.arange(batch)[None, None, :, None, None]
    # Whole rows of channels, side by side: XLA would take slices apart number by number.
    rows = x.reshape(-1, channels).at[pixels.reshape(-1)].get(mode='promise_in_bounds')
    return rows.reshape(side * side, -1, channels)


def _whole(tiles, shape, dilation):
    """Returns the map [B, h, w, F] of the 2x2 outputs [4, tiles, F] of its tiles."""
    batch, h, w, _ = shape
    down, across = (_tile_count(n, dilation) for n in (h, w))
    tiles = tiles.reshape(2, 2, batch, down, dilation, across, dilation, -1)
    tiles = tiles.transpose(2, 3, 0, 4, 5, 1, 6, 7)
    tiles = tiles.reshape(batch, 2 * down * dilation, 2 * across * dilation, -1)
    return tiles[:, :h, :w]


def _tile_count(length, dilation):
    """Returns how many tiles cover a side of each of the interleaved maps."""
    return -(-length // (2 * dilation))


def _positions(count, dilation, side):
    """Returns the coordinates [side, count * dilation] of the tiles' pixels along a side."""
    first = 2 * dilation * jnp.arange(count)[:, None] + jnp.arange(dilation)[None, :]
    return dilation * jnp.arange(side)[:, None] + first.reshape(1, -1)
