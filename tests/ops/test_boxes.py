"""Boxes against plain loops, and the laws of overlap, coding, clipping and mirroring."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import loop_area, loop_decode, loop_iou
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpn_jax.ops import boxes as box

iou, encode, decode = jax.jit(box.iou), jax.jit(box.encode), jax.jit(box.decode)
clip = jax.jit(box.clip)

few = settings(max_examples=25)
N = 6  # boxes in every example: one shape, one compilation

pixel = st.integers(0, 12)
quarter = st.integers(-400, 400).map(lambda n: n / 4)
place = st.floats(-500, 500, width=32)
side = st.floats(8, 500, width=32)  # any two differ by less than the clamp
sizes = st.tuples(st.integers(1, 60), st.integers(1, 90))


def rows(row):
    """Makes a strategy of float32 arrays [N, 4] out of one for a row."""
    return st.lists(row, min_size=N, max_size=N).map(lambda b: np.array(b, np.float32))


any_boxes = rows(st.tuples(pixel, pixel, pixel, pixel))  # inverted ones too
quarters = rows(st.tuples(quarter, quarter, quarter, quarter))
real_boxes = rows(
    st.tuples(place, place, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
)
delta = st.floats(-4, 4, width=32)

# A point, a line, an inverted box, one far away, an empty row of padding and an honest box.
DEGENERATE = np.array(
    [[3, 4, 3, 4], [3, 4, 9, 4], [9, 8, 3, 4], [1e4, 0, 1e4, 0], [0, 0, 0, 0], [2, 1, 5, 9]],
    np.float32,
)


def loop_encode(b, a):
    width, height = float(a[2]) - float(a[0]), float(a[3]) - float(a[1])
    return [
        ((float(b[0]) + float(b[2])) - (float(a[0]) + float(a[2]))) / 2 / width,
        ((float(b[1]) + float(b[3])) - (float(a[1]) + float(a[3]))) / 2 / height,
        math.log((float(b[2]) - float(b[0])) / width),
        math.log((float(b[3]) - float(b[1])) / height),
    ]


@few
@given(any_boxes)
def test_area_agrees_with_loops(boxes):
    np.testing.assert_array_equal(box.area(boxes), [loop_area(b) for b in boxes])
    np.testing.assert_array_equal(box.area(boxes.reshape(2, 3, 4)).reshape(-1), box.area(boxes))


def test_an_inverted_box_has_no_area():
    boxes = np.array([[0, 0, 3, 2], [3, 0, 0, 2], [0, 2, 3, 0], [3, 2, 0, 0]], np.float32)
    np.testing.assert_array_equal(box.area(boxes), [6, 0, 0, 0])


@few
@given(any_boxes, any_boxes)
def test_iou_agrees_with_loops(a, b):
    b = b[: N - 1]  # not square, so that swapped axes show
    loops = np.array([[loop_iou(x, y) for y in b] for x in a], np.float32)
    np.testing.assert_array_equal(iou(a, b), loops)


@few
@given(real_boxes, real_boxes)
def test_iou_agrees_with_loops_on_any_floats(a, b):
    loops = [[loop_iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(iou(a, b), loops, rtol=1e-5, atol=1e-7)


@few
@given(real_boxes, real_boxes)
@example(DEGENERATE, DEGENERATE)
def test_iou_is_symmetric_and_lies_between_0_and_1(a, b):
    overlaps = np.asarray(iou(a, b))
    assert np.all((overlaps >= 0) & (overlaps <= 1))
    np.testing.assert_allclose(overlaps, np.asarray(iou(b, a)).T, rtol=1e-6)


@few
@given(any_boxes)
def test_a_box_overlaps_itself_fully_unless_it_is_empty(boxes):
    np.testing.assert_array_equal(np.diag(iou(boxes, boxes)), np.asarray(box.area(boxes)) > 0)


def test_nothing_over_nothing_is_0():
    np.testing.assert_array_equal(iou(DEGENERATE[:5], DEGENERATE[:5]), np.zeros((5, 5)))


def test_vmap_maps_over_images():
    a, b = np.random.default_rng(0).integers(0, 12, (2, 3, N, 4)).astype(np.float32)
    for function in (box.iou, box.encode, box.decode):
        mapped = jax.jit(jax.vmap(function))(a, b)
        single = [jax.jit(function)(x, y) for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(mapped, single, rtol=1e-6)


@few
@given(real_boxes, real_boxes)
def test_encode_agrees_with_loops(boxes, anchors):
    loops = [loop_encode(b, a) for b, a in zip(boxes, anchors, strict=True)]
    np.testing.assert_allclose(encode(boxes, anchors), loops, rtol=1e-4, atol=1e-4)


@few
@given(rows(st.tuples(delta, delta, st.floats(-4, 9), st.floats(-4, 9))), real_boxes)
def test_decode_agrees_with_loops(deltas, anchors):
    loops = [loop_decode(d, a) for d, a in zip(deltas, anchors, strict=True)]
    np.testing.assert_allclose(decode(deltas, anchors), loops, rtol=1e-4, atol=2e-2)


@few
@given(real_boxes, real_boxes)
def test_decode_brings_back_what_encode_took(boxes, anchors):
    np.testing.assert_allclose(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3)


@few
@given(rows(st.tuples(delta, delta, delta, delta)), real_boxes)
def test_encode_brings_back_what_decode_took(deltas, anchors):
    # From a small box far away float32 does not get all digits back.
    np.testing.assert_allclose(encode(decode(deltas, anchors), anchors), deltas, atol=5e-3)


def test_no_deltas_leave_the_anchor():
    anchors = np.array([[-8, -16, 8, 16], [0, 0, 600, 1], [7, 7, 7, 7]], np.float32)
    np.testing.assert_array_equal(decode(np.zeros((3, 4), np.float32), anchors), anchors)


def test_leading_axes_are_kept():
    a, b = np.sort(np.random.default_rng(0).uniform(0, 99, (2, 2, 3, 2, 2)), axis=3)
    a, b = (v.reshape(2, 3, 4).astype(np.float32) for v in (a, b))
    cases = [
        (box.encode, (a, b), (a[1, 2], b[1, 2])),
        (box.decode, (a / 99, b), (a[1, 2] / 99, b[1, 2])),
        (box.clip, (a, (50, 70)), (a[1, 2], (50, 70))),
    ]
    for function, batch, single in cases:
        assert function(*batch).shape == (2, 3, 4)
        np.testing.assert_allclose(function(*batch)[1, 2], function(*single), rtol=1e-5)


@pytest.mark.parametrize('log_scale', [math.log(1000 / 16), 5.0, 80.0, 1e30, np.inf])
def test_growth_stops_at_1000_over_16(log_scale):
    anchor = np.array([[-8, -4, 8, 4]], np.float32)
    grown = decode(np.array([[0, 0, log_scale, log_scale]], np.float32), anchor)
    np.testing.assert_allclose(grown, [[-500, -250, 500, 250]], rtol=1e-6)


def test_shrinking_has_no_limit():
    anchor = np.array([[-8, -4, 8, 4]], np.float32)
    for log_scale in (-5.0, -80.0):
        shrunk = decode(np.array([[0, 0, log_scale, 0]], np.float32), anchor)
        np.testing.assert_allclose(shrunk[0, 2], 8 * math.exp(log_scale), rtol=1e-5)


@pytest.mark.parametrize('function', [box.area, box.iou, box.encode, box.decode])
def test_degenerate_boxes_have_finite_values_and_gradients(function):
    a, b = (np.repeat(DEGENERATE, N, 0), np.tile(DEGENERATE, (N, 1)))  # every pair

    def total(*pair):
        return jnp.sum(function(*pair))

    arguments = (a,) if function is box.area else (a, b)
    assert np.all(np.isfinite(function(*arguments)))
    gradients = jax.jit(jax.grad(total, tuple(range(len(arguments)))))(*arguments)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_the_gradient_of_a_target_is_that_of_the_formula():
    b, a = np.array([[2, 3, 10, 7]], np.float32), np.array([[0, 0, 4, 8]], np.float32)
    jacobian = jax.jit(jax.jacobian(lambda x: box.encode(x, a)[0]))(b)[:, 0]
    eighth = 1 / 8
    np.testing.assert_allclose(jacobian[0], [eighth, 0, eighth, 0])
    np.testing.assert_allclose(jacobian[1], [0, eighth / 2, 0, eighth / 2])
    np.testing.assert_allclose(jacobian[2], [-eighth, 0, eighth, 0])
    np.testing.assert_allclose(jacobian[3], [0, -eighth * 2, 0, eighth * 2])


@few
@given(quarters, sizes)
def test_clip_moves_every_corner_into_the_image(boxes, size):
    height, width = size
    loops = [
        [min(max(v, 0), limit) for v, limit in zip(b, (width, height) * 2, strict=True)]
        for b in boxes
    ]
    np.testing.assert_array_equal(clip(boxes, size), loops)
    np.testing.assert_array_equal(clip(boxes, np.array(size, np.float32)), loops)


@few
@given(quarters, sizes)
def test_clipping_twice_is_clipping_once(boxes, size):
    once = clip(boxes, size)
    np.testing.assert_array_equal(clip(once, size), once)


def mirrored(boxes, width):
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


@few
@given(any_boxes, any_boxes)
def test_a_mirror_and_a_move_keep_overlaps(a, b):
    overlaps = iou(a, b)
    np.testing.assert_array_equal(iou(mirrored(a, 12), mirrored(b, 12)), overlaps)
    np.testing.assert_array_equal(iou(a + 7, b + 7), overlaps)
