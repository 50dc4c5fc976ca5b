"""Losses against NumPy float64, and what ignored rows must not do."""

import math

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rpn_jax.ops import boxes as box
from rpn_jax.ops import losses

S = 6
objectness = jax.jit(jax.value_and_grad(losses.objectness_loss))


@jax.jit
def regression(deltas, target_deltas, labels, beta):
    """Returns the box loss and its gradients for both kinds of deltas."""

    def loss(a, b):
        return losses.box_loss(a, b, labels, beta=beta)

    return jax.value_and_grad(loss, (0, 1))(deltas, target_deltas)


def floats(low, high, *shape):
    """Makes a strategy of float32 arrays; zeros are as common as everything else together."""
    count = math.prod(shape)
    number = st.just(0.0) | st.floats(low, high, width=32)
    rows = st.lists(number, min_size=count, max_size=count)
    return rows.map(lambda values: np.array(values, np.float32).reshape(shape))


some_labels = st.lists(st.sampled_from([-1, 0, 1]), min_size=S, max_size=S).map(np.int32)
betas = st.sampled_from([0.0, 1e-3, 1 / 9, 1.0])


@given(floats(-100, 100, S), some_labels)
def test_objectness_agrees_with_loops(logits, labels):
    total, slopes = 0.0, np.zeros(S)
    for i, (x, label) in enumerate(zip(logits.astype(np.float64), labels, strict=True)):
        if label >= 0:
            total += np.logaddexp(0, -x if label else x)
            slopes[i] = np.exp(-np.logaddexp(0, -x)) - label
    value, gradient = objectness(logits, labels)
    np.testing.assert_allclose(value, total, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=2e-7)


def test_objectness_keeps_small_losses_and_does_not_overflow():
    logits = np.float32([20, -20, 80, 1e4, 1e4, -1e4, 3e38, 0])
    labels = np.int32([1, 0, 1, 1, 0, 1, 1, 0])
    one_by_one = jax.vmap(jax.value_and_grad(losses.objectness_loss))
    values, gradients = one_by_one(logits[:, None], labels[:, None])
    small, tiny = math.log1p(math.exp(-20)), math.exp(-80)
    expected = [small, small, tiny, 0, 1e4, 1e4, 0, math.log(2)]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=0)
    np.testing.assert_allclose(gradients[3:, 0], [0, 1, -1, 0, 0.5], atol=1e-7)


@given(floats(-3, 3, S, 4), floats(-3, 3, S, 4), some_labels, betas)
@example(np.ones((S, 4), np.float32), np.zeros((S, 4), np.float32), np.ones(S, np.int32), 1.0)
def test_box_loss_agrees_with_loops(deltas, target_deltas, labels, beta):
    total, slopes = 0.0, np.zeros((S, 4))
    for i, j in np.ndindex(S, 4):
        error = float(deltas[i, j]) - float(target_deltas[i, j])
        if labels[i] == 1:
            near = abs(error) < beta
            total += error**2 / (2 * beta) if near else abs(error) - beta / 2
            slopes[i, j] = error / beta if near else np.sign(error)
    value, (gradient, mirrored) = regression(deltas, target_deltas, labels, beta)
    np.testing.assert_allclose(value, total, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-30)
    np.testing.assert_array_equal(mirrored, -np.asarray(gradient))


def test_without_a_beta_the_loss_is_the_distance():
    deltas = np.zeros((S, 4), np.float32)
    deltas[0] = [0, 1e-30, -2, 1e25]  # the square of the last is no float32
    value, (gradient, _) = regression(deltas, 0 * deltas, np.ones(S, np.int32), 0.0)
    np.testing.assert_allclose(value, 1e25, rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], [0, 1, -1, 1])
    np.testing.assert_array_equal(gradient[1:], 0)


def random_rows(*lead):
    """Returns logits, deltas, labels, anchors and gt_boxes of S rows."""
    rng = np.random.default_rng(0)
    labels = np.resize(np.int32([1, 0, -1]), (*lead, S))
    corner, side = rng.uniform(0, 50, (2, *lead, S, 2)), rng.uniform(4, 40, (2, *lead, S, 2))
    boxes = np.concatenate([corner, corner + side], axis=-1).astype(np.float32)
    logits, deltas = rng.normal(0, 2, (*lead, S)), rng.normal(0, 0.5, (*lead, S, 4))
    return np.float32(logits), np.float32(deltas), labels, *boxes


@jax.jit
def summed(logits, deltas, labels, anchors, gt_boxes, beta):
    """Returns the losses of each row, and the gradients of their weighted sum."""

    def total(logits, deltas):
        each = losses.rpn_losses(logits, deltas, labels, anchors, gt_boxes, beta=beta)
        return each['objectness'].sum() + 2 * each['box'].sum(), each

    return jax.value_and_grad(total, (0, 1), has_aux=True)(logits, deltas)


@pytest.mark.parametrize('beta', [0.0, 1 / 9])
def test_losses_of_rows_are_those_of_all_where_they_count(beta):
    rows = logits, deltas, labels, anchors, gt_boxes = random_rows()
    (_, each), gradients = summed(*rows, beta)
    of_objectness = objectness(logits, labels)
    of_boxes = regression(deltas, box.encode(gt_boxes, anchors), labels, beta)
    np.testing.assert_allclose(each['objectness'].sum(), of_objectness[0], rtol=1e-6)
    np.testing.assert_allclose(each['box'].sum(), of_boxes[0], rtol=1e-6)
    np.testing.assert_allclose(gradients[0], of_objectness[1], rtol=1e-5)
    np.testing.assert_allclose(gradients[1], 2 * of_boxes[1][0], rtol=1e-5)
    np.testing.assert_array_equal(each['objectness'] != 0, labels >= 0)
    np.testing.assert_array_equal(each['box'] != 0, labels == 1)


def test_vmap_maps_over_images():
    rows = random_rows(3)
    mapped = jax.jit(jax.vmap(losses.rpn_losses))(*rows)  # of the default beta
    for i in range(3):
        (_, one), _ = summed(*(x[i] for x in rows), 1 / 9)
        for name, values in one.items():
            np.testing.assert_allclose(mapped[name][i], values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('beta', [0.0, 1 / 9])
def test_ignored_rows_touch_neither_value_nor_gradient(poison, beta):
    logits, deltas, labels, anchors, gt_boxes = random_rows()
    targets, without_box = box.encode(gt_boxes, anchors), (labels != 1)[:, None]

    def spoilt(values):
        unused = without_box if values.ndim == 2 else labels < 0
        return np.float32(np.where(unused, poison, values))

    def of_rows(*arrays):
        return summed(*arrays[:2], labels, *arrays[2:], beta)

    for function, arrays, more in [
        (objectness, (logits,), (labels,)),
        (regression, (deltas, targets), (labels, beta)),
        (of_rows, (logits, deltas, anchors, gt_boxes), ()),
    ]:
        actual, expected = function(*map(spoilt, arrays), *more), function(*arrays, *more)
        for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.all(np.isfinite(x)) and np.any(x != 0)
