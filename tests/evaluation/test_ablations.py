"""Ablations: what regression, scores and better scores are worth, on one level and on several."""

import functools

import jax
import numpy as np
import pytest
from helpers import level_anchors

from rpn_jax.evaluation import metrics
from rpn_jax.evaluation.ablations import ABLATIONS, ablate
from rpn_jax.ops.proposals import propose

SETTINGS = {'pre_nms': 100, 'post_nms': 40, 'nms_iou': 0.7, 'min_size': 1e-3}
SIZE = np.float32([64, 96])
KIND = np.int32([1, 2, 1, 0])
BOXES = np.float32([[10, 10, 50, 50], [0, 0, 90, 60], [60, 20, 90, 60], [0, 0, 0, 0]])
make = jax.jit(functools.partial(ablate, **SETTINGS))
plainly = jax.jit(functools.partial(propose, **SETTINGS))


@pytest.fixture(scope='module', params=[1, 5])
def ablated(request):
    """Returns a network's (logits, deltas, anchors), which knows a little, and its ablations."""
    random, anchors = np.random.default_rng(0), level_anchors(request.param)
    best = metrics.iou(anchors.boxes, BOXES[[0, 2]]).max(axis=1)
    logits = np.float32(4 * best + random.normal(0, 0.5, len(best)))
    network = logits, np.float32(random.normal(0, 0.15, (len(best), 4))), anchors
    return network, jax.device_get(make(jax.random.key(3), *network, BOXES, KIND, SIZE))


def test_scores_alone_are_the_proposals_of_unmoved_anchors(ablated):
    (logits, deltas, anchors), proposals = ablated
    unmoved = plainly(logits, np.zeros_like(deltas), anchors, SIZE)
    for a, b in zip(proposals['scores_alone'], unmoved, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_random_order_has_moved_boxes_and_ranks_that_know_nothing(ablated):
    (logits, deltas, anchors), proposals = ablated
    own = proposals['random_order']
    plain = jax.device_get(plainly(logits, deltas, anchors, SIZE))
    assert not np.array_equal(own.index, plain.index)
    order = np.corrcoef(logits[own.index[own.valid]], np.arange(own.valid.sum()))[0, 1]
    assert abs(order) < 0.5
    other = make(jax.random.key(4), logits, deltas, anchors, BOXES, KIND, SIZE)
    assert not np.array_equal(own.index, other['random_order'].index)


def test_oracle_scores_rank_by_the_overlap_with_objects_only(ablated):
    own, objects = ablated[1]['oracle_scores'], BOXES[KIND == 1]
    best = metrics.iou(own.boxes[own.valid], objects).max(axis=1)
    assert np.all(np.diff(best) <= 1e-6) and best[0] > 0.5
    recalls = {
        name: metrics.recall([each.boxes[each.valid]], [objects], 0.5, 10)
        for name, each in ablated[1].items()
    }
    assert recalls['oracle_scores'] == max(recalls.values()) >= 0.5


def test_an_image_without_objects_has_ablations_too(ablated):
    nothing = np.zeros((4, 4), np.float32), np.zeros(4, np.int32)
    own = make(jax.random.key(0), *ablated[0], *nothing, SIZE)
    assert own.keys() == set(ABLATIONS) and all(each.valid.any() for each in own.values())
