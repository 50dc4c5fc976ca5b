"""Sums by anchor type: those of a loop in NumPy, without a gradient, and nearly for nothing."""

import functools

import jax
import numpy as np
import pytest
from helpers import config_of, shape_of

from rpn_jax.evaluation.metrics import iou
from rpn_jax.models import resnet
from rpn_jax.ops import anchor_statistics
from rpn_jax.ops import losses as loss
from rpn_jax.ops.anchors import Anchors
from rpn_jax.training import loop
from rpn_jax.training.step import init_state

SLOTS, BETA = 60, 0.25
ANCHORS = Anchors.of(((4, 5), (2, 2)), (16, 32), ((16, 32), (64, 80)), (0.5, 1, 2))
K = len(ANCHORS.types)


@jax.jit
def compiled(logits, deltas, labels, anchors, gt_boxes, types):
    losses = loss.rpn_losses(logits, deltas, labels, anchors, gt_boxes, beta=BETA)
    return anchor_statistics.sums(losses, deltas, labels, anchors, gt_boxes, types, count=K)


@pytest.fixture(scope='module')
def sampled():
    """Returns the rows of one image: some ignored, and no foreground of the last type."""
    random = np.random.default_rng(0)
    index = random.integers(0, len(ANCHORS.boxes), SLOTS)
    labels = random.choice([1, 1, 0, -1], SLOTS)
    labels[(np.asarray(ANCHORS.type)[index] == K - 1) & (labels == 1)] = 0
    index[labels == -1] = 0  # as sample leaves them
    anchors, types = np.asarray(ANCHORS.boxes)[index], np.asarray(ANCHORS.type)[index]
    gt_boxes = anchors + random.uniform(-6, 6, (SLOTS, 4))
    deltas, logits = random.normal(0, 0.2, (SLOTS, 4)), random.normal(0, 2, SLOTS)
    return np.float32(logits), np.float32(deltas), labels, anchors, np.float32(gt_boxes), types


def decoded(delta, anchor):
    """Moves one anchor, in float64."""
    side = anchor[2:] - anchor[:2]
    centre = (anchor[2:] + anchor[:2]) / 2 + delta[:2] * side
    half = side * np.exp(delta[2:]) / 2
    return np.concatenate([centre - half, centre + half])


def encoded(goal, anchor):
    """Returns the deltas of one object, in float64."""
    side, goal_side = anchor[2:] - anchor[:2], goal[2:] - goal[:2]
    shift = (goal[:2] + goal[2:] - anchor[:2] - anchor[2:]) / 2 / side
    return np.concatenate([shift, np.log(goal_side / side)])


def by_hand(logits, deltas, labels, anchors, objects, types):
    """Returns the sums, an anchor after the other."""
    found = {
        name: np.zeros(K)
        for name in ('positives', *anchor_statistics.LOSSES, *anchor_statistics.IOUS)
    }
    rows = zip(*map(np.float64, (logits, deltas, labels, anchors, objects)), types, strict=True)
    for logit, delta, label, box, goal, own in rows:
        if label < 0:
            continue
        found['loss_objectness'][own] += np.log1p(np.exp(-logit if label == 1 else logit))
        if label == 1:
            error = np.abs(delta - encoded(goal, box))
            smooth = np.where(error < BETA, error**2 / (2 * BETA), error - BETA / 2)
            found['positives'][own] += 1
            found['loss_box'][own] += smooth.sum()
            found['iou_before'][own] += iou(box[None], goal[None])[0, 0]
            found['iou_after'][own] += iou(decoded(delta, box)[None], goal[None])[0, 0]
    return found


def test_sums_are_those_of_a_loop(sampled):
    sums, expected = compiled(*sampled), by_hand(*sampled)
    assert sums.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(sums[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert expected['positives'][-1] == 0 < expected['positives'][0]
    assert np.any(expected['iou_after'] != expected['iou_before'])


def test_types_add_up_to_the_losses(sampled):
    logits, deltas, labels, anchors, gt_boxes, _ = sampled
    targets = anchor_statistics.box.encode(gt_boxes, anchors)
    totals = {
        'positives': (labels == 1).sum(),
        'loss_objectness': loss.objectness_loss(logits, labels),
        'loss_box': loss.box_loss(deltas, targets, labels, beta=BETA),
    }
    for name, total in totals.items():
        np.testing.assert_allclose(compiled(*sampled)[name].sum(), total, rtol=1e-5, err_msg=name)


def test_unused_slots_touch_nothing(sampled):
    unused = sampled[2] == -1
    assert unused.any()
    spoiled = [np.array(values) for values in sampled]
    for values in (spoiled[0], spoiled[1], spoiled[4]):
        values[unused] = np.nan
    a, b = compiled(*sampled), compiled(*spoiled)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_sums_have_no_gradient(sampled):
    def total(logits, deltas):
        return sum(x.sum() for x in compiled(logits, deltas, *sampled[2:]).values())

    gradients = jax.grad(total, (0, 1))(*sampled[:2])
    assert not any(np.any(gradient) for gradient in gradients)


def test_means_are_over_images_samples_and_positives(sampled):
    found = compiled(*sampled)
    means = anchor_statistics.means(found, images=4, sampled=25)
    np.testing.assert_allclose(means['positives'], found['positives'] / 4, rtol=1e-6)
    np.testing.assert_allclose(means['loss_box'], found['loss_box'] / 25, rtol=1e-6)
    assert means['iou_after'][-1] == 0 and 0.3 < means['iou_before'][0] <= 1
    assert np.all(np.isfinite(list(means.values())))


@pytest.mark.xla
def test_the_update_costs_hardly_more(monkeypatch):
    """Of a network of a quarter of ResNet-50's blocks: of a real one the share is smaller yet."""
    monkeypatch.setitem(resnet.BLOCKS, 14, (1, 1, 1, 1))
    config = config_of(depth=14, width=64)
    config.anchors.sizes = (32, 64, 128, 256, 512)
    model, optimizer, _ = loop.build(config)
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, 0))
    image = {'image': shape_of(1, 2, 320, 320, 3, dtype=np.uint8), 'size': shape_of(1, 2, 2)}
    boxes = {'boxes': shape_of(1, 2, 100, 4), 'kind': shape_of(1, 2, 100, dtype=np.int32)}
    batch = {**image, **boxes, 'index': shape_of(1, 2, dtype=np.int32)}
    names = ('positives', *anchor_statistics.LOSSES, *anchor_statistics.IOUS)

    def nothing(*rows, count):
        return {name: np.zeros(count) for name in names}

    flops = []
    for sums in (anchor_statistics.sums, nothing):
        monkeypatch.setattr(anchor_statistics, 'sums', sums)
        update = loop.update_of(config, model, optimizer, jax.local_devices()[:1])
        flops.append(update.mapped.lower(state, batch).cost_analysis()['flops'])
    logged, silent = flops
    assert silent < logged < 1.02 * silent
