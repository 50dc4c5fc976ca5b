"""Anchors: their sides, their order and where they lie on the canvas."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rpn_jax.ops.anchors import Anchors, base_anchors, grid, per_level

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1, 2)


def test_the_first_anchors_are_those_of_torchvision():
    np.testing.assert_array_equal(
        base_anchors((32, 64), RATIOS),
        [
            *([-23, -11, 23, 11], [-45, -23, 45, 23]),  # wide
            *([-16, -16, 16, 16], [-32, -32, 32, 32]),
            *([-11, -23, 11, 23], [-23, -45, 23, 45]),  # tall
        ],
    )


@given(st.integers(4, 800), st.floats(0.1, 10))
@example(32, 0.5)
def test_an_anchor_keeps_its_area_and_ratio_but_for_rounding(size, ratio):
    x0, y0, x1, y1 = np.asarray(base_anchors((size,), (ratio,)), np.float64)[0]
    width, height = size / np.sqrt(ratio), size * np.sqrt(ratio)
    assert abs((x1 - x0) - width) <= 1 + 1e-9  # half a pixel at each corner
    assert abs((y1 - y0) - height) <= 1 + 1e-9
    assert abs((x1 - x0) * (y1 - y0) - size**2) <= width + height + 1 + 1e-6
    assert (x0 + x1, y0 + y1) == (0, 0)


def test_all_sizes_of_a_ratio_stand_together():
    base = np.asarray(base_anchors(SIZES, RATIOS))
    assert base.shape == (15, 4) and base.dtype == np.float32
    sides = base[:, 2:] - base[:, :2]
    np.testing.assert_allclose(np.sqrt(sides.prod(1)), SIZES * 3, rtol=0.02)
    np.testing.assert_allclose(sides[:, 1] / sides[:, 0], np.repeat(RATIOS, 5), rtol=0.05)


def test_corners_are_rounded_half_to_even():
    base = base_anchors((33, 35, 37, 39), (1,))
    np.testing.assert_array_equal(base[:, 2], [16, 18, 18, 20])
    np.testing.assert_array_equal(base[:, 0], [-16, -18, -18, -20])


@pytest.mark.parametrize('ratios', [RATIOS, (0.25, 1 / 3, 3, 4), (0.75, 1.25, 1.5)])
def test_float32_arithmetic_gives_the_same_corners(ratios):
    """What torchvision computes with."""
    sizes = np.arange(4, 801, dtype=np.float32)
    roots = np.sqrt(np.array(ratios, np.float32))[:, None]
    half = np.stack([1 / roots * sizes, roots * sizes], axis=-1).reshape(-1, 2) / 2
    base = base_anchors(sizes.tolist(), ratios)
    np.testing.assert_array_equal(base, np.round(np.concatenate([-half, half], axis=1)))


def loop_grid(base, shape, stride):
    anchors = []
    for row in range(shape[0]):
        for column in range(shape[1]):
            for x0, y0, x1, y1 in np.asarray(base).tolist():
                x, y = column * stride, row * stride
                anchors.append([x0 + x, y0 + y, x1 + x, y1 + y])
    return anchors


@pytest.mark.parametrize('transform', [lambda f: f, jax.jit])
@pytest.mark.parametrize(('shape', 'stride'), [((3, 5), 16), ((5, 2), 8), ((1, 1), 32)])
def test_the_grid_goes_cell_by_cell_and_row_by_row(transform, shape, stride):
    base = base_anchors((32, 64), RATIOS)
    anchors = transform(functools.partial(grid, shape=shape, stride=stride))(base)
    assert anchors.dtype == np.float32
    np.testing.assert_array_equal(anchors, loop_grid(base, shape, stride))


def test_vmap_maps_over_sets_of_anchors():
    bases = np.stack([base_anchors((32, 64), RATIOS), base_anchors((8, 16), RATIOS)])
    mapped = jax.jit(jax.vmap(functools.partial(grid, shape=(2, 3), stride=4)))(bases)
    np.testing.assert_array_equal(mapped, [loop_grid(base, (2, 3), 4) for base in bases])


@pytest.mark.parametrize('side', [1, 15, 16, 17, 600, 601, 607, 608, 1000])
def test_odd_canvases_are_covered_at_the_nominal_stride(side):
    cells = -(-side // 16)  # a feature map's side: the last cell may hang over
    centres = np.asarray(grid(base_anchors((32,), (1,)), (1, cells), 16))[:, [0, 2]].mean(1)
    np.testing.assert_array_equal(centres, 16 * np.arange(cells))
    assert 0 <= centres[-1] < side <= centres[-1] + 16


LEVELS = {  # shapes, strides, sizes, aspect ratios
    'one': (((3, 5),), (16,), ((32, 64),), RATIOS),
    'two': (((3, 5), (2, 3)), (16, 32), ((32, 64), (100, 128)), RATIOS),
    'five': (
        ((7, 9), (4, 5), (2, 3), (1, 2), (1, 1)),
        (4, 8, 16, 32, 64),
        ((32,), (64,), (128,), (256,), (512,)),
        RATIOS,
    ),
}


@pytest.mark.parametrize('levels', LEVELS)
def test_anchors_know_their_level_cell_and_type(levels):
    shapes, strides, sizes, ratios = LEVELS[levels]
    rows, types, counts = [], [], []
    for level, (h, w) in enumerate(shapes):
        own = [(size, ratio) for ratio in ratios for size in sizes[level]]
        base = base_anchors(sizes[level], ratios)
        boxes = loop_grid(base, (h, w), strides[level])
        cells = [cell for cell in range(h * w) for _ in own]
        kinds = [len(types) + k for _ in range(h * w) for k in range(len(own))]
        rows += list(zip(boxes, [level] * len(boxes), cells, kinds, strict=True))
        types += own
        counts.append(len(boxes))
    for make in (Anchors.of, jax.jit(Anchors.of, static_argnums=(0, 1, 2, 3))):
        anchors = make(shapes, strides, sizes, ratios)
        columns = anchors.boxes, anchors.level, anchors.cell, anchors.type
        for i, column in enumerate(columns):
            np.testing.assert_array_equal(column, [row[i] for row in rows])
        assert (anchors.types, anchors.levels) == (tuple(types), tuple(counts))
        assert [str(column.dtype) for column in columns] == ['float32', *['int32'] * 3]


def test_each_level_may_have_aspect_ratios_of_its_own():
    own = Anchors.of(((1, 2), (1, 1)), (8, 16), ((32,), (64,)), ((1.0, 2.0), (0.5,)))
    assert own.types == ((32, 1.0), (32, 2.0), (64, 0.5)) and own.levels == (4, 1)
    assert own.type.tolist() == [0, 1, 0, 1, 2]


def test_one_level_takes_plain_sizes_and_several_do_not():
    assert per_level((32, 64), 1, 'sizes') == per_level(((32, 64),), 1, 'sizes') == ((32, 64),)
    for sizes in ((32, 64), ((32,),), ((32,), 64), ((32,), (64,), (128,))):
        with pytest.raises(ValueError, match='sizes .* each of 2 levels'):
            Anchors.of(((2, 2), (1, 1)), (8, 16), sizes, RATIOS)
    with pytest.raises(ValueError, match='1 strides'):
        Anchors.of(((2, 2), (1, 1)), (8,), ((32,), (64,)), RATIOS)
