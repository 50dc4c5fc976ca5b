"""Boxes against plain loops, and the laws of overlap, coding and clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import loop_area, loop_decode, loop_iou
from hypothesis import example, given
from hypothesis import strategies as st

from rpn_jax.ops import boxes as box

iou, encode, decode = jax.jit(box.iou), jax.jit(box.encode), jax.jit(box.decode)
clip = jax.jit(box.clip)
N = 6  # boxes in every example: one shape, one compilation

pixel = st.integers(0, 12)
quarter = st.integers(-400, 400).map(lambda n: n / 4)
corner = st.floats(-500, 500, width=32)
side = st.floats(8, 500, width=32)  # any two differ by less than the clamp
delta = st.floats(-4, 4, width=32)
sizes = st.tuples(st.integers(1, 60), st.integers(1, 90))


def rows(*row):
    """Makes a strategy of float32 arrays [N, 4] out of those of a row."""
    rows = st.lists(st.tuples(*row), min_size=N, max_size=N)
    return rows.map(lambda values: np.array(values, np.float32))


any_boxes = rows(pixel, pixel, pixel, pixel)  # inverted ones too
quarters = rows(quarter, quarter, quarter, quarter)
real_boxes = rows(corner, corner, side, side).map(lambda b: b + b[:, [0, 1, 0, 1]] * [0, 0, 1, 1])
real_boxes = real_boxes.map(np.float32)

# A point, a line, an inverted box, one far away, an empty row of padding and an honest box.
DEGENERATE = np.float32(
    [[3, 4, 3, 4], [3, 4, 9, 4], [9, 8, 3, 4], [1e4, 0, 1e4, 0], [0, 0, 0, 0], [2, 1, 5, 9]]
)


def loop_encode(b, a):
    b, a = [float(v) for v in b], [float(v) for v in a]
    width, height = a[2] - a[0], a[3] - a[1]
    shift = ((b[0] + b[2]) - (a[0] + a[2])) / 2, ((b[1] + b[3]) - (a[1] + a[3])) / 2
    growth = math.log((b[2] - b[0]) / width), math.log((b[3] - b[1]) / height)
    return [shift[0] / width, shift[1] / height, *growth]


@given(any_boxes, any_boxes, real_boxes, real_boxes)
@example(DEGENERATE, DEGENERATE, DEGENERATE, DEGENERATE)
def test_areas_and_overlaps_agree_with_loops(a, b, c, d):
    b = b[: N - 1]  # not square, so that swapped axes show
    np.testing.assert_array_equal(box.area(a), [loop_area(x) for x in a])
    np.testing.assert_array_equal(iou(a, b), np.float32([[loop_iou(x, y) for y in b] for x in a]))
    loops = [[loop_iou(x, y) for y in d] for x in c]  # of any floats
    np.testing.assert_allclose(iou(c, d), loops, rtol=1e-5, atol=1e-7)


@given(real_boxes, real_boxes)
def test_encode_agrees_with_loops_and_decode_undoes_it(boxes, anchors):
    deltas = encode(boxes, anchors)
    loops = [loop_encode(b, a) for b, a in zip(boxes, anchors, strict=True)]
    np.testing.assert_allclose(deltas, loops, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decode(deltas, anchors), boxes, atol=1e-3)


@given(rows(delta, delta, st.floats(-4, 9), st.floats(-4, 9)), real_boxes)
def test_decode_agrees_with_loops(deltas, anchors):
    loops = [loop_decode(d, a) for d, a in zip(deltas, anchors, strict=True)]
    np.testing.assert_allclose(decode(deltas, anchors), loops, rtol=1e-4, atol=2e-2)


def test_leading_axes_are_those_of_vmap():
    a, b = np.sort(np.random.default_rng(0).uniform(0, 99, (2, 2, 3, 2, 2)), axis=3)
    a, b = (v.reshape(2, 3, 4).astype(np.float32) for v in (a, b))
    for function, batch in [
        (box.area, (a,)),
        (box.encode, (a, b)),
        (box.decode, (a / 99, b)),
        (lambda x: box.clip(x, (50, 70)), (a,)),
    ]:
        mapped = jax.jit(jax.vmap(function))(*batch)
        np.testing.assert_allclose(function(*batch), mapped, rtol=1e-5)
    for i, overlaps in enumerate(jax.vmap(box.iou)(a, b)):
        np.testing.assert_allclose(overlaps, iou(a[i], b[i]), rtol=1e-6)


def test_growth_stops_at_1000_over_16_and_shrinking_nowhere():
    anchor = np.float32([[-8, -4, 8, 4]])
    for log_scale in (math.log(1000 / 16), 5.0, 80.0, 1e30, np.inf):
        grown = decode(np.float32([[0, 0, log_scale, log_scale]]), anchor)
        np.testing.assert_allclose(grown, [[-500, -250, 500, 250]], rtol=1e-6)
        shrunk = decode(np.float32([[0, 0, -log_scale, 0]]), anchor)
        np.testing.assert_allclose(shrunk[0, 2], 8 * math.exp(-log_scale), rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize('function', [box.area, box.iou, box.encode, box.decode])
def test_degenerate_boxes_have_finite_values_and_gradients(function):
    pairs = np.repeat(DEGENERATE, N, 0), np.tile(DEGENERATE, (N, 1))
    arguments = pairs[:1] if function is box.area else pairs
    assert np.all(np.isfinite(function(*arguments)))
    total = jax.grad(lambda *pair: jnp.sum(function(*pair)), tuple(range(len(arguments))))
    assert all(np.all(np.isfinite(gradient)) for gradient in jax.jit(total)(*arguments))


def test_the_gradient_of_a_target_is_that_of_the_formula():
    b, a = np.float32([[2, 3, 10, 7]]), np.float32([[0, 0, 4, 8]])
    jacobian = jax.jit(jax.jacobian(lambda x: box.encode(x, a)[0]))(b)[:, 0]
    expected = [[1, 0, 1, 0], [0, 0.5, 0, 0.5], [-1, 0, 1, 0], [0, -2, 0, 2]]
    np.testing.assert_allclose(jacobian, np.array(expected) / 8)


@given(quarters, sizes)
def test_clip_moves_every_corner_into_the_image(boxes, size):
    limits = (*size[::-1], *size[::-1])
    loops = [[min(max(v, 0), limit) for v, limit in zip(b, limits, strict=True)] for b in boxes]
    once = clip(boxes, size)
    np.testing.assert_array_equal(once, loops)
    np.testing.assert_array_equal(clip(boxes, np.float32(size)), loops)
    np.testing.assert_array_equal(clip(once, size), once)
