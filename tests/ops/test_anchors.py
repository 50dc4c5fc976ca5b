"""Anchors: their sides, their order, where they lie, and their level, cell and type."""

import functools

import jax
import numpy as np
import pytest
from helpers import PYRAMIDS, RATIOS

from rpn_jax.ops.anchors import Anchors, base_anchors, boxes_of, grid, per_level

SIZES = (32, 64, 128, 256, 512)


def test_the_first_anchors_are_those_of_torchvision():
    np.testing.assert_array_equal(
        base_anchors((32, 64), RATIOS),
        [
            *([-23, -11, 23, 11], [-45, -23, 45, 23]),  # wide
            *([-16, -16, 16, 16], [-32, -32, 32, 32]),
            *([-11, -23, 11, 23], [-23, -45, 23, 45]),  # tall
        ],
    )


def test_corners_are_rounded_half_to_even():
    base = base_anchors((33, 35, 37, 39), (1,))
    np.testing.assert_array_equal(base[:, 2], [16, 18, 18, 20])
    np.testing.assert_array_equal(base[:, 0], [-16, -18, -18, -20])


def test_float32_arithmetic_gives_the_same_corners():
    """What torchvision computes with."""
    sizes, ratios = np.arange(4, 801, dtype=np.float32), (*RATIOS, 0.25, 1 / 3, 3, 4, 0.75, 1.5)
    roots = np.sqrt(np.array(ratios, np.float32))[:, None]
    half = np.stack([1 / roots * sizes, roots * sizes], axis=-1).reshape(-1, 2) / 2
    base = base_anchors(sizes.tolist(), ratios)
    np.testing.assert_array_equal(base, np.round(np.concatenate([-half, half], axis=1)))


def loop_anchors(shapes, strides, sizes, ratios):
    """Returns (box, level, cell, type) of each anchor and (size, ratio) of each type."""
    rows, types = [], []
    for level, (height, width) in enumerate(shapes):
        own = ratios[level] if isinstance(ratios[0], tuple) else ratios
        own = [(size, ratio) for ratio in own for size in sizes[level]]
        for row in range(height):
            for column in range(width):
                for k, (size, ratio) in enumerate(own):
                    half = round(size / ratio**0.5 / 2), round(size * ratio**0.5 / 2)
                    x, y = column * strides[level], row * strides[level]
                    box = [x - half[0], y - half[1], x + half[0], y + half[1]]
                    rows.append((box, level, row * width + column, len(types) + k))
        types += own
    return rows, tuple(types)


@pytest.mark.parametrize('levels', PYRAMIDS.values(), ids=PYRAMIDS)
def test_anchors_are_those_of_a_loop(levels):
    anchors = jax.jit(functools.partial(Anchors.of, *levels))()
    rows, types = loop_anchors(*levels)
    columns = anchors.boxes, anchors.level, anchors.cell, anchors.type
    for ours, theirs in zip(columns, zip(*rows, strict=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [column.dtype for column in columns] == [np.float32, *[np.int32] * 3]
    assert anchors.types == types
    assert anchors.levels == tuple(np.bincount([level for _, level, _, _ in rows]))
    assert boxes_of(anchors) is anchors.boxes and boxes_of(anchors.boxes) is anchors.boxes


def test_anchors_of_one_level_are_its_grid():
    anchors = Anchors.of(((4, 3),), (8,), SIZES, RATIOS)  # sizes of one level may be flat
    np.testing.assert_array_equal(anchors.boxes, grid(base_anchors(SIZES, RATIOS), (4, 3), 8))
    assert anchors.levels == (180,) and len(anchors.types) == 15


def test_values_are_a_tuple_for_each_level():
    assert per_level([32, 64], 1, 'sizes') == per_level([[32, 64]], 1, 'sizes') == ((32, 64),)
    assert per_level(([1], (2, 3)), 2, 'sizes') == ((1,), (2, 3))
    for values, levels in [((32, 64), 2), (((32,), 64), 2), (((32,),), 2), (((1,), (2,)), 1)]:
        with pytest.raises(ValueError, match='^sizes .* of [12] levels$'):
            per_level(values, levels, 'sizes')


@pytest.mark.parametrize(
    'changes', [{'strides': (8,)}, {'aspect_ratios': ((1,),)}, {'sizes': (32, 64)}], ids=str
)
def test_numbers_of_levels_that_differ_are_an_error(changes):
    two = dict(shapes=((2, 2), (1, 1)), strides=(8, 16), sizes=((8,), (16,)), aspect_ratios=(1,))
    with pytest.raises(ValueError, match='levels'):
        Anchors.of(**two | changes)


def test_vmap_maps_over_sets_of_anchors():
    bases = np.stack([base_anchors((32, 64), RATIOS), base_anchors((8, 16), RATIOS)])
    mapped = jax.jit(jax.vmap(functools.partial(grid, shape=(2, 3), stride=4)))(bases)
    np.testing.assert_array_equal(mapped, [grid(base, (2, 3), 4) for base in bases])
