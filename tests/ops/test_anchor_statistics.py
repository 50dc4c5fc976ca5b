"""Sums by anchor type: those of a loop in NumPy, without a gradient, and nearly for nothing."""

import jax
import numpy as np
import pytest

from rpn_jax.evaluation.metrics import iou
from rpn_jax.ops import anchor_statistics, losses
from rpn_jax.ops.anchors import Anchors

# Two levels of different types, the second of one cell.
ANCHORS = Anchors.of(((4, 5), (1, 1)), (16, 64), ((16, 32), (64,)), (0.5, 1, 2))
K, S, BETA = len(ANCHORS.types), 40, 0.25
NAMES = 'positives', *anchor_statistics.LOSSES, *anchor_statistics.IOUS


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


def decoded(delta, anchor):
    side, middle = anchor[2:] - anchor[:2], (anchor[2:] + anchor[:2]) / 2
    centre, half = middle + delta[:2] * side, side * np.exp(delta[2:]) / 2
    return np.concatenate([centre - half, centre + half])


def encoded(target, anchor):
    side, target_side = anchor[2:] - anchor[:2], target[2:] - target[:2]
    shift = (target[:2] + target[2:] - anchor[:2] - anchor[2:]) / 2 / side
    return np.concatenate([shift, np.log(target_side / side)])


def loop_sums(*rows):
    """Returns the sums, an anchor after the other, in float64."""
    totals = {name: np.zeros(K) for name in NAMES}
    rows = zip(*map(np.float64, rows[:-1]), rows[-1], strict=True)
    for logit, delta, label, anchor, target, own in rows:
        if label < 0:
            continue
        totals['loss_objectness'][own] += np.log1p(np.exp(-logit if label == 1 else logit))
        if label == 1:
            error = np.abs(delta - encoded(target, anchor))
            smooth = np.where(error < BETA, error**2 / (2 * BETA), error - BETA / 2)
            totals['positives'][own] += 1
            totals['loss_box'][own] += smooth.sum()
            totals['iou_before'][own] += iou(anchor[None], target[None])[0, 0]
            totals['iou_after'][own] += iou(decoded(delta, anchor)[None], target[None])[0, 0]
    return totals


def test_sums_are_those_of_a_loop_and_add_up_to_the_whole(sampled):
    ours, theirs = sums(*sampled), loop_sums(*sampled)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert theirs['positives'][-1] == 0 < theirs['positives'].min(initial=9, where=np.arange(K) < 6)
    assert np.any(theirs['iou_after'] != theirs['iou_before'])
    each = losses.rpn_losses(*sampled[:-1], beta=BETA)
    totals = {'loss_objectness': each['objectness'], 'loss_box': each['box']}
    for name, values in (totals | {'positives': sampled[2] == 1}).items():
        np.testing.assert_allclose(ours[name].sum(), values.sum(), rtol=1e-5, err_msg=name)


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
