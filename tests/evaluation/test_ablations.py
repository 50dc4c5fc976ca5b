"""The parts of a network, each alone: what regression, scores and better scores are worth."""

import jax
import numpy as np
import pytest
from helpers import BLIND, FakePredict, large_images, run_evaluation, tiny_config

from rpn_jax.evaluation import evaluate, metrics
from rpn_jax.evaluation.ablations import ABLATIONS, ablate
from rpn_jax.ops import anchors as anchor
from rpn_jax.ops.proposals import propose

pytestmark = pytest.mark.usefixtures('quick_compilation')
SETTINGS = {'pre_nms': 150, 'post_nms': 40, 'nms_iou': 0.7, 'min_size': 1e-3}
SIZE = np.float32([96, 128])
KIND = np.int32([1, 2, 1, 0])
BOXES = np.float32([[10, 10, 50, 60], [0, 0, 90, 90], [60, 20, 120, 80], [0, 0, 0, 0]])


make = jax.jit(lambda key, *inputs: ablate(key, *inputs, **SETTINGS))
plainly = jax.jit(lambda *inputs: propose(*inputs, **SETTINGS))


@pytest.fixture(scope='module')
def network():
    """Returns (logits, deltas, anchors) of a network that knows a little."""
    random = np.random.default_rng(0)
    grid = np.asarray(anchor.grid(anchor.base_anchors((32, 64), (0.5, 1, 2)), (6, 8), 16))
    best = metrics.iou(grid, BOXES[[0, 2]]).max(axis=1)
    logits = np.float32(4 * best + random.normal(0, 0.5, len(grid)))
    return logits, random.normal(0, 0.15, (len(grid), 4)).astype(np.float32), grid


@pytest.fixture(scope='module')
def parts(network):
    return jax.device_get(make(jax.random.key(3), *network, BOXES, KIND, SIZE))


def test_scores_alone_are_the_proposals_of_unmoved_anchors(network, parts):
    logits, deltas, anchors = network
    alone = plainly(logits, np.zeros_like(deltas), anchors, SIZE)
    for a, b in zip(parts['scores_alone'], alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_random_order_has_moved_boxes_and_ranks_that_know_nothing(network, parts):
    logits, deltas, anchors = network
    found = parts['random_order']
    plain = jax.device_get(plainly(logits, deltas, anchors, SIZE))
    assert not np.array_equal(found.index, plain.index)
    order = np.corrcoef(logits[found.index[found.valid]], np.arange(found.valid.sum()))[0, 1]
    assert abs(order) < 0.5
    other = make(jax.random.key(4), *network, BOXES, KIND, SIZE)
    assert not np.array_equal(found.index, other['random_order'].index)


def test_oracle_scores_rank_by_the_overlap_with_objects_alone(network, parts):
    found = parts['oracle_scores']
    best = metrics.iou(found.boxes[found.valid], BOXES[KIND == 1]).max(axis=1)
    assert np.all(np.diff(best) <= 1e-6) and best[0] > 0.5
    objects = [BOXES[KIND == 1]]
    recalls = {
        name: metrics.recall([part.boxes[part.valid]], objects, 0.5, 10)
        for name, part in parts.items()
    }
    assert recalls['oracle_scores'] == max(recalls.values()) == 1


def test_an_image_without_objects_has_parts_too(network):
    nothing = np.zeros((4, 4), np.float32), np.zeros(4, np.int32)
    found = make(jax.random.key(0), *network, *nothing, SIZE)
    assert found.keys() == set(ABLATIONS) and all(part.valid.any() for part in found.values())


def test_the_random_order_is_another_one_in_each_image(monkeypatch):
    """The maps of a Fake are zero, so that its boxes are the same anchors in every image."""
    monkeypatch.setattr(evaluate, 'make_predict', FakePredict(100).make)
    measured, plainly = [], metrics.measure

    def measure(boxes, *rest):
        measured.append(boxes)
        return plainly(boxes, *rest)

    monkeypatch.setattr(evaluate.metrics, 'measure', measure)
    large_images(monkeypatch)
    run_evaluation(tiny_config(proposals__post_nms=100, proposals__nms_iou=1.0))
    order = 1 + len(BLIND) + ABLATIONS.index('random_order')
    assert len(measured) == 1 + len(BLIND) + len(ABLATIONS)
    firsts = {boxes[0].tobytes() for boxes in measured[order]}
    assert len(measured[order]) == 4 and len(firsts) > 1
    assert len({boxes.tobytes() for boxes in measured[order]}) == 4
