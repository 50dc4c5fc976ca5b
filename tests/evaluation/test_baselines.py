"""Baselines: where their boxes lie, how they are spread, and what perfect regression reaches."""

import json

import jax
import numpy as np
import pytest
from helpers import LEVEL_SIZE, LEVELS, level_anchors
from hypothesis import given, settings
from hypothesis import strategies as st

from rpn_jax.data.records import Record
from rpn_jax.errors import InputError
from rpn_jax.evaluation import baselines
from rpn_jax.ops import matching
from rpn_jax.ops.anchors import base_anchors, grid

match = jax.jit(matching.match)
SIZE = (120, 200)  # height, width: not square, so that swapped axes show
ANCHORS = np.asarray(grid(base_anchors((32, 64), (0.5, 1, 2)), (8, 13), 16))
FITTED = baselines.Gaussian(
    mean=np.array([0.5, 0.6, np.log(0.3), np.log(0.4)]),
    covariance=np.diag([0.02, 0.01, 0.3, 0.2]),
)


def record(boxes, size):
    return Record('', size, np.reshape(boxes, (-1, 4)), np.ones(len(boxes), int))


def draw(name, seed=0, image_index=0, count=40, size=SIZE):
    return baselines.draw(name, seed, image_index, count, size, ANCHORS, FITTED)


@pytest.mark.parametrize('name', baselines.BLIND)
@settings(max_examples=15)
@given(st.integers(0, 5000), st.integers(0, 60), st.tuples(*[st.integers(1, 900)] * 2))
def test_boxes_lie_inside_the_image(name, image_index, count, size):
    drawn = draw(name, 0, image_index, count, size)
    assert drawn.shape == (count, 4) and drawn.dtype == np.float64
    height, width = size
    x0, y0, x1, y1 = drawn.T
    assert np.all((0 <= x0) & (x0 <= x1) & (x1 <= width))
    assert np.all((0 <= y0) & (y0 <= y1) & (y1 <= height))


@pytest.mark.parametrize('name', baselines.BLIND)
def test_boxes_are_a_function_of_seed_and_image(name):
    needs = {'random_anchors': (ANCHORS, SIZE), 'gaussian_boxes': (SIZE, FITTED)}
    rng = np.random.default_rng((5, 9, baselines.BLIND.index(name)))
    expected = getattr(baselines, name)(rng, 30, *needs.get(name, (SIZE,)))
    assert np.array_equal(draw(name, 5, 9, 30), expected)
    # Neither does one seed's second image repeat the next seed's first.
    others = draw(name), draw(name, seed=1), draw(name, image_index=1)
    assert len({drawn.tobytes() for drawn in others}) == 3
    with pytest.raises(ValueError):
        draw('clairvoyant')


def test_corners_of_random_boxes_are_uniform():
    """The lower of two uniform numbers has mean 1/3, the higher 2/3, both variance 1/18."""
    drawn = baselines.random_boxes(np.random.default_rng(0), 20000, SIZE) / (200, 120, 200, 120)
    np.testing.assert_allclose(drawn.mean(axis=0), [1 / 3, 1 / 3, 2 / 3, 2 / 3], atol=0.01)
    np.testing.assert_allclose(drawn.var(axis=0), 1 / 18, atol=0.003)
    correlation = np.corrcoef(drawn.T)
    assert abs(correlation[0, 2] - 0.5) < 0.02  # x0 with x1
    assert abs(correlation[0, 1]) < 0.03 and abs(correlation[2, 3]) < 0.03  # x with y


@pytest.mark.parametrize('levels', LEVELS)
def test_random_anchors_are_clipped_anchors_of_all_levels_without_repeats(levels):
    anchors = level_anchors(levels)
    drawn = baselines.random_anchors(np.random.default_rng(0), 10**6, anchors, LEVEL_SIZE)
    clipped = np.clip(np.float64(anchors.boxes), 0, [96, 64, 96, 64])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, clipped))
    some = baselines.random_anchors(np.random.default_rng(0), 30, anchors.boxes, LEVEL_SIZE)
    assert {*map(tuple, some)} < {*map(tuple, clipped)} and len(some) == 30


def test_gaussian_boxes_repeat_the_distribution_they_were_fitted_on():
    rng = np.random.default_rng(0)
    mean = np.array([0.4, 0.6, np.log(0.1), np.log(0.2)])
    factor = np.array([[0.04, 0, 0, 0], [0, 0.03, 0, 0], [0.05, 0, 0.1, 0], [0, 0.1, 0.2, 0.1]])
    sample = mean + rng.normal(size=(20000, 4)) @ factor.T
    centre, half = sample[:, :2], np.exp(sample[:, 2:]) / 2
    relative = np.concatenate([centre - half, centre + half], axis=1)
    sizes = [(100, 300)] * 100 + [(500, 250)] * 100  # of images: what counts is relative to them
    train = [
        record(own * (width, height, width, height), (height, width))
        for own, (height, width) in zip(np.split(relative, 200), sizes, strict=True)
    ]
    fitted = baselines.fit_gaussian(train)
    np.testing.assert_allclose(fitted.mean, mean, atol=0.01)
    np.testing.assert_allclose(fitted.covariance, factor @ factor.T, atol=0.003)
    drawn = baselines.gaussian_boxes(np.random.default_rng(1), 20000, SIZE, fitted)
    again = baselines.fit_gaussian([record(drawn, SIZE)])
    np.testing.assert_allclose(again.mean, fitted.mean, atol=0.01)
    np.testing.assert_allclose(again.covariance, fitted.covariance, atol=0.003)


def test_a_gaussian_is_fitted_on_objects_with_an_area():
    good = [[10, 20, 60, 100]]
    difficult = record([[0, 0, 9, 9]], (10, 10))._replace(kind=np.array([2]))
    flat, empty = record([[5, 5, 5, 9]], (10, 10)), record([], (10, 10))
    fitted = baselines.fit_gaussian([record(good, (200, 100)), flat, empty, difficult])
    np.testing.assert_allclose(fitted.mean, [0.35, 0.3, np.log(0.5), np.log(0.4)])
    np.testing.assert_array_equal(fitted.covariance, np.zeros((4, 4)))
    drawn = baselines.gaussian_boxes(np.random.default_rng(0), 3, (200, 100), fitted)
    np.testing.assert_allclose(drawn, good * 3)
    with pytest.raises(InputError, match='no training image has an object'):
        baselines.fit_gaussian([flat, empty, difficult])


def test_a_gaussian_survives_json_to_the_last_bit():
    content = json.loads(json.dumps(baselines.gaussian_to_json(FITTED)))
    for before, after in zip(FITTED, baselines.gaussian_from_json(content), strict=True):
        assert before.tobytes() == after.tobytes() and before.shape == after.shape
    for mean in ([0, 0, 0], [0, 0, 0, 'a'], [0, 0, 0, float('nan')], [0, 0, 0, 900], [3, 0, 0, 0]):
        with pytest.raises(ValueError, match='not a mean'):
            baselines.gaussian_from_json(content | {'mean': mean})
    for wrong in ([], content | {'covariance': (-np.eye(4)).tolist()}):
        with pytest.raises(ValueError, match='not a mean'):
            baselines.gaussian_from_json(wrong)


def test_quadrants_take_turns():
    drawn = baselines.quadrants(np.random.default_rng(0), 4000, SIZE)
    for turn, corner in enumerate(np.array([[0, 0], [100, 0], [0, 60], [100, 60]])):
        inside = drawn[turn::4] - np.tile(corner, 2)
        assert np.all(inside >= 0) and np.all(inside <= [100, 60, 100, 60])
        # A side is uniform in (0, 1) of the quadrant's and its place uniform in what is left.
        side = (inside[:, 2:] - inside[:, :2]) / (100, 60)
        for uniform in (side, inside[:, :2] / (100, 60) / (1 - side)):
            np.testing.assert_allclose(uniform.mean(axis=0), 0.5, atol=0.04)
            np.testing.assert_allclose(uniform.var(axis=0), 1 / 12, atol=0.01)


def padded(objects, kind, rows=6):
    """Returns gt_boxes and gt_kind of so many rows."""
    missing = rows - len(kind)
    objects = np.float32(objects).reshape(-1, 4)
    return np.pad(objects, ((0, missing), (0, 0))), np.array([*kind, *[0] * missing])


@pytest.mark.parametrize('levels', LEVELS)
def test_the_oracle_moves_exactly_the_positive_anchors(levels):
    anchors, size = level_anchors(levels), np.float32(LEVEL_SIZE)
    objects, kind = padded([[20, 20, 36, 36], [10, 5, 42, 37], [4, 4, 30, 30]], [1, 1, 2])
    section = {'positive_iou': 0.5, 'negative_iou': 0.3, 'crowd_overlap': 0.5, 'border': 0}
    for border in (-1, 0):
        rules = section | {'border': border}
        more = {'samples': 4, 'positive_fraction': 0.5}  # the whole section of targets is taken
        moved = baselines.oracle(anchors, objects, kind, LEVEL_SIZE, **rules, **more)
        labels, matched = jax.device_get(match(anchors, objects, kind, size=size, **rules))
        expected = objects[matched[labels == 1]]
        assert len(expected) > 1 and moved.dtype == np.float64
        np.testing.assert_allclose(moved, expected, atol=1e-3)
    with pytest.raises(TypeError, match='positive_uoi'):
        baselines.oracle(anchors, objects, kind, LEVEL_SIZE, positive_uoi=0.6)


@pytest.mark.parametrize(
    ('object', 'expected'),
    [
        ([0, 0, 190, 10], [95 - 62.5, 0, 95 + 62.5, 10]),  # 95 times as wide, at most 62.5
        ([0, -3, 60, 10], [0, 0, 60, 10]),
    ],
)
def test_the_oracle_clamps_and_clips_as_the_network_does(object, expected):
    moved = baselines.oracle(np.float32([[4, 4, 6, 6]]), *padded([object], [1]), SIZE)
    np.testing.assert_allclose(moved, [expected], atol=1e-3)


@pytest.mark.parametrize('rows', [0, 6])
def test_the_oracle_of_no_objects_is_empty(rows):
    assert baselines.oracle(ANCHORS, *padded([], [], rows), SIZE).shape == (0, 4)
