"""Losses against NumPy float64, and what rows without a use must not do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpn_jax.ops import boxes as box
from rpn_jax.ops import losses, matching

S = 6
few = settings(max_examples=25)
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


some_labels = st.lists(st.sampled_from([-1, 0, 1]), min_size=S, max_size=S).map(
    lambda values: np.array(values, np.int32)
)
betas = st.sampled_from([0.0, 1e-3, 1 / 9, 1.0])


def loop_objectness(logits, labels):
    total, gradient = 0.0, np.zeros(len(logits))
    for i, (x, label) in enumerate(zip(logits.astype(np.float64), labels, strict=True)):
        if label >= 0:
            total += np.logaddexp(0, -x if label else x)
            gradient[i] = np.exp(-np.logaddexp(0, -x)) - label
    return total, gradient


def loop_regression(deltas, target_deltas, labels, beta):
    total, gradient = 0.0, np.zeros(deltas.shape)
    for i in np.flatnonzero(labels == 1):
        for j in range(4):
            error = float(deltas[i, j]) - float(target_deltas[i, j])
            if abs(error) < beta:
                total += error**2 / (2 * beta)
                gradient[i, j] = error / beta
            else:
                total += abs(error) - beta / 2
                gradient[i, j] = np.sign(error)
    return total, gradient


@few
@given(floats(-100, 100, S), some_labels)
def test_objectness_agrees_with_loops(logits, labels):
    value, gradient = objectness(logits, labels)
    total, slopes = loop_objectness(logits, labels)
    np.testing.assert_allclose(value, total, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=2e-7)


def test_objectness_keeps_small_losses_and_does_not_overflow():
    logits = np.array([20, -20, 80, 1e4, 1e4, -1e4, 3e38, 0], np.float32)
    labels = np.array([1, 0, 1, 1, 0, 1, 1, 0], np.int32)
    alone = jax.vmap(jax.value_and_grad(losses.objectness_loss))
    values, gradients = alone(logits[:, None], labels[:, None])
    small, tiny = math.log1p(math.exp(-20)), math.exp(-80)
    expected = [small, small, tiny, 0, 1e4, 1e4, 0, math.log(2)]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=0)
    np.testing.assert_allclose(gradients[3:, 0], [0, 1, -1, 0, 0.5], atol=1e-7)


@few
@given(floats(-3, 3, S, 4), floats(-3, 3, S, 4), some_labels, betas)
@example(np.ones((S, 4), np.float32), np.zeros((S, 4), np.float32), np.ones(S, np.int32), 1.0)
def test_box_loss_agrees_with_loops(deltas, target_deltas, labels, beta):
    value, (gradient, mirrored) = regression(deltas, target_deltas, labels, beta)
    total, slopes = loop_regression(deltas, target_deltas, labels, beta)
    np.testing.assert_allclose(value, total, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-30)
    np.testing.assert_array_equal(mirrored, -np.asarray(gradient))


def test_the_default_beta_is_a_ninth():
    deltas, zeros, labels = np.full((1, 4), 0.1, np.float32), np.zeros((1, 4)), np.ones(1, int)
    np.testing.assert_allclose(losses.box_loss(deltas, zeros, labels), 4 * 0.01 * 9 / 2, rtol=1e-6)


def test_without_a_beta_the_loss_is_the_distance():
    deltas = np.zeros((S, 4), np.float32)
    deltas[0] = [0, 1e-30, -2, 1e25]  # the square of the last is no float32
    value, (gradient, _) = regression(deltas, 0 * deltas, np.ones(S, np.int32), 0.0)
    np.testing.assert_allclose(value, 1e25, rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], [0, 1, -1, 1])
    np.testing.assert_array_equal(gradient[1:], 0)


@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf])
def test_rows_without_a_use_touch_neither_value_nor_gradient(poison):
    rng = np.random.default_rng(0)
    labels = np.array([-1, 0, 1] * 2, np.int32)
    logits = rng.standard_normal(S).astype(np.float32)
    a, b = rng.standard_normal((2, S, 4)).astype(np.float32)
    spoilt_logits = np.where(labels < 0, poison, logits).astype(np.float32)
    spoilt = [np.where(labels[:, None] == 1, v, poison).astype(np.float32) for v in (a, b)]
    cases = [(objectness(spoilt_logits, labels), objectness(logits, labels))]
    for beta in (0.0, 1 / 9):
        cases.append((regression(*spoilt, labels, beta), regression(a, b, labels, beta)))
    for actual, expected in cases:
        for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.all(np.isfinite(x)) and np.any(x != 0)


@pytest.mark.parametrize('transform', [lambda f: f, lambda f: jax.jit(jax.vmap(f))])
def test_losses_of_each_anchor_add_up_to_both(transform):
    """rpn_losses are 0 where ignored, whatever stands there; only foreground has a box loss."""
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 0, 1], (2, 20)).astype(np.int32)
    logits, deltas = rng.normal(0, 3, (2, 20)), rng.normal(0, 0.5, (2, 20, 4))
    corner = rng.uniform(0, 50, (2, 2, 20, 2))
    anchors, gt_boxes = np.concatenate([corner, corner + rng.uniform(5, 30, corner.shape)], -1)
    rows = [np.float32(x) for x in (logits, deltas, anchors, gt_boxes)]
    rows[0][labels < 0] = np.nan
    rows[1][labels < 1] = np.inf
    logits, deltas, anchors, gt_boxes = rows
    each = transform(losses.rpn_losses)
    if transform(losses.rpn_losses) is losses.rpn_losses:  # one image
        logits, deltas, labels, anchors, gt_boxes = (
            x[0] for x in (logits, deltas, labels, anchors, gt_boxes)
        )
    each_loss = each(logits, deltas, labels, anchors, gt_boxes)
    assert {name: value.shape for name, value in each_loss.items()} == dict.fromkeys(
        ('objectness', 'box'), labels.shape
    )
    assert np.all((each_loss['objectness'] > 0) == (labels >= 0))
    assert np.all((each_loss['box'] > 0) == (labels == 1))
    targets = box.encode(gt_boxes, anchors)
    rows = labels.reshape(-1, 20), logits.reshape(-1, 20), deltas.reshape(-1, 20, 4)
    for i, (own, logit, delta) in enumerate(zip(*rows, strict=True)):
        sums = {name: value.reshape(-1, 20)[i].sum() for name, value in each_loss.items()}
        target = targets.reshape(-1, 20, 4)[i]
        np.testing.assert_allclose(
            sums['objectness'], losses.objectness_loss(logit, own), rtol=1e-6
        )
        np.testing.assert_allclose(sums['box'], losses.box_loss(delta, target, own), rtol=1e-6)


def test_vmap_maps_over_images():
    rng = np.random.default_rng(2)
    labels = rng.integers(-1, 2, (3, S)).astype(np.int32)
    logits = rng.standard_normal((3, S)).astype(np.float32)
    a, b = rng.standard_normal((2, 3, S, 4)).astype(np.float32)
    many = jax.jit(jax.vmap(losses.objectness_loss))(logits, labels)
    one = [objectness(x, y)[0] for x, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(many, one, rtol=1e-6)
    many = jax.jit(jax.vmap(losses.box_loss))(a, b, labels)
    one = [regression(*rows, 1 / 9)[0] for rows in zip(a, b, labels, strict=True)]
    np.testing.assert_allclose(many, one, rtol=1e-6)


def test_degenerate_objects_have_finite_losses_and_gradients():
    """All the way from boxes without area, padded, difficult or crowds, to both losses."""
    anchors = np.array([[0, 0, 8, 8], [4, 4, 4, 4], [9, 9, 3, 3]], np.float32)
    boxes = np.array([[0, 0, 0, 0], [2, 2, 2, 9], [7, 7, 1, 1], [1e4, 0, 1e4, 1]], np.float32)

    @jax.jit
    @jax.value_and_grad
    def total(prediction, kind):
        logits, deltas, anchors, boxes = prediction
        index, labels, matched = matching.assign(
            jax.random.key(0), anchors, boxes, kind, samples=S, positive_iou=0, negative_iou=0
        )
        goals = box.encode(boxes[matched], anchors[index])
        reached = box.decode(deltas[index], anchors[index])
        regression = losses.box_loss(deltas[index], goals, labels)
        return losses.objectness_loss(logits[index], labels) + regression + 1e-3 * reached.sum()

    prediction = (jnp.zeros(3), jnp.ones((3, 4)), anchors, boxes)
    for kind in ([0] * 4, [1] * 4, [2] * 4, [3] * 4, [0, 1, 2, 3]):
        value, gradients = total(prediction, np.array(kind))
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
