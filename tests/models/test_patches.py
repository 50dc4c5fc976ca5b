"""Patches around cells, and convolutions on them, against loops over padded maps."""

import jax
import numpy as np
import pytest
from helpers import PYRAMIDS, assert_near, normal, numpy_convolution

from rpn_jax.models import patches

K = 3


def loop_cells(shapes):
    """Returns (level, row, column, slot) of every anchor, in the order of Anchors."""
    return [
        (level, y, x, slot)
        for level, (h, w) in enumerate(shapes)
        for y in range(h)
        for x in range(w)
        for slot in range(K)
    ]


@pytest.mark.parametrize('name', PYRAMIDS)
@pytest.mark.parametrize('radius', [1, 2])
def test_patches_are_cut_out_of_the_padded_map_of_their_level(name, radius):
    shapes, side = PYRAMIDS[name][0], 2 * radius + 1
    maps = [normal(2, *shape, 4, seed=seed) for seed, shape in enumerate(shapes)]
    every = loop_cells(shapes)
    index = np.stack([np.arange(len(every)), np.random.default_rng(0).permutation(len(every))])
    kernel, bias = normal(3, 3, 4, 5), normal(5)

    def cut(maps, index):
        cells, slot = patches.cells_of(index, shapes, K)
        found = patches.around(maps, cells, radius)
        return cells, slot, found, patches.convolve(found, kernel, bias, jax.nn.relu)

    cells, slot, found, convolved = jax.tree.map(np.asarray, jax.jit(cut)(maps, index))
    wide = ((0, 0), (radius, radius), (radius, radius), (0, 0))
    padded = [np.pad(x, wide) for x in maps]
    inside = [np.pad(np.ones_like(x[..., 0], bool), wide[:3]) for x in maps]
    dense = [np.maximum(numpy_convolution(x, kernel) + bias, 0) for x in maps]
    less = ((0, 0), (radius - 1, radius - 1), (radius - 1, radius - 1), (0, 0))
    dense = [np.pad(x, less) for x in dense]
    for image, row in np.ndindex(index.shape):
        level, y, x, own = every[index[image, row]]
        assert (*(c[image, row] for c in cells), slot[image, row]) == (level, y, x, own)
        at = image, slice(y, y + side), slice(x, x + side)
        np.testing.assert_array_equal(found.values[image, row], padded[level][at])
        np.testing.assert_array_equal(found.inside[image, row], inside[level][at])
        smaller = image, slice(y, y + side - 2), slice(x, x + side - 2)
        expected = dense[level][smaller]
        assert np.abs(convolved.values[image, row] - expected).max() <= 1e-4
    lone, _ = patches.cells_of(index, shapes, K)
    of_first = patches.around(maps[:1], lone, radius)
    is_other = np.asarray(lone.level) > 0
    assert not np.asarray(of_first.values)[is_other].any()
    assert not np.asarray(of_first.inside)[is_other].any()
    if len(shapes) > 1:
        rest = patches.around(maps[1:], lone, radius, first=1)
        assert_near(patches.merged(of_first, rest).values, found.values, 0)
