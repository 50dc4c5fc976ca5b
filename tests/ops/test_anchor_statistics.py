"""Sums by anchor type: those of a loop in NumPy, without a gradient, and nearly for nothing."""

import jax
import numpy as np
import pytest
from helpers import loop_decode, loop_iou

from rpn_jax.ops import anchor_statistics, losses
from rpn_jax.ops.anchors import Anchors

# Two levels of different types, the second of one cell.
ANCHORS = Anchors.of(((4, 5), (1, 1)), (16, 64), ((16, 32), (64,)), (0.5, 1, 2))
K, S, BETA = len(ANCHORS.types), 40, 0.25


@jax.jit
def sums(logits, deltas, labels, anchors, gt_boxes, types):
    rows = deltas, labels, anchors, gt_boxes
    each = losses.rpn_losses(logits, *rows, beta=BETA)
    return anchor_statistics.sums(each, *rows, types, count=K)


@pytest.fixture(scope='module')
def sampled():
    """Returns the rows of one image: some ignored, and no positive of the last type."""
    random = np.random.default_rng(0)
    index = random.integers(0, len(ANCHORS.boxes), S)
    index[-4:] = len(ANCHORS.boxes) - 1 - np.arange(4)
    labels = random.choice([1, 1, 0, -1], S)
    types = np.asarray(ANCHORS.type)[index]
    labels[(types == K - 1) & (labels == 1)] = 0
    anchors = np.asarray(ANCHORS.boxes)[index]
    boxes = anchors + random.uniform(-6, 6, (S, 4))
    logits, deltas = random.normal(0, 2, S), random.normal(0, 0.2, (S, 4))
    return np.float32(logits), np.float32(deltas), labels, anchors, np.float32(boxes), types


def test_sums_are_those_of_a_loop(sampled):
    logits, deltas, labels, anchors, boxes, types = sampled
    each = losses.rpn_losses(*sampled[:-1], beta=BETA)
    positive, pairs = labels == 1, list(zip(deltas, anchors, boxes, strict=True))
    rows = {
        'positives': positive,
        'loss_objectness': each['objectness'],
        'loss_box': each['box'],
        'iou_before': positive * [loop_iou(anchor, box) for _, anchor, box in pairs],
        'iou_after': positive * [loop_iou(loop_decode(d, anchor), box) for d, anchor, box in pairs],
    }
    ours, theirs = sums(*sampled), {name: np.bincount(types, row, K) for name, row in rows.items()}
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert theirs['positives'][-1] == 0 < theirs['positives'][:6].min()
    assert np.any(theirs['iou_after'] != theirs['iou_before'])


def test_ignored_rows_touch_nothing(sampled):
    ignored = sampled[2] == -1
    assert ignored.any()
    spoiled = [np.array(values) for values in sampled]
    for values in (spoiled[0], spoiled[1], spoiled[4]):
        values[ignored] = np.nan
    a, b = sums(*sampled), sums(*spoiled)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_sums_have_no_gradient(sampled):
    def total(logits, deltas):
        return sum(x.sum() for x in sums(logits, deltas, *sampled[2:]).values())

    gradients = jax.grad(total, (0, 1))(*sampled[:2])
    assert not any(np.any(gradient) for gradient in gradients)


def test_means_are_over_images_samples_and_positives(sampled):
    own = sums(*sampled)
    means = anchor_statistics.means(own, images=4, sampled=25)
    np.testing.assert_allclose(means['positives'], own['positives'] / 4, rtol=1e-6)
    np.testing.assert_allclose(means['loss_box'], own['loss_box'] / 25, rtol=1e-6)
    assert means['iou_after'][-1] == 0 and 0.3 < means['iou_before'][0] <= 1
    assert np.all(np.isfinite(list(means.values())))
