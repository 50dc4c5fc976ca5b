"""Every missed object has exactly one reason, and it is the first that holds, on any level."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest
from helpers import LEVEL_SIZE, LEVELS, level_anchors, loop_propose, random_maps

from rpn_jax.evaluation import metrics, misses
from rpn_jax.evaluation.predict import Prediction
from rpn_jax.ops import boxes as box
from rpn_jax.ops.proposals import Proposals, propose

ANCHORS = {levels: level_anchors(levels) for levels in LEVELS}
GOAL = {'iou': 0.5, 'limit': 5}
EVERYTHING = {'pre_nms': 1000, 'post_nms': 1000, 'nms_iou': 1.0}
TARGETS = {'positive_iou': 0.7, 'negative_iou': 0.3, 'samples': 64}


def predicted(maps, boxes, kind, settings, levels=1, targets=TARGETS):
    """Returns the Prediction of an image, with proposals as torchvision would make them."""
    image = ANCHORS[levels], np.float32(boxes), np.int32(kind), np.float32(LEVEL_SIZE)
    prediction = Prediction.of(7, None, maps, *image, targets)
    index = loop_propose(prediction, **settings)
    valid = np.ones(len(index), bool)
    proposals = Proposals(prediction.clipped[index], prediction.logits[index], valid, index)
    return prediction._replace(proposals=proposals)


def explain(prediction, settings, goal=GOAL, negative_iou=0.3):
    return misses.find(prediction, **goal, negative_iou=negative_iou, proposals=settings)


def settings_of(seed=0, **changes):
    """Returns the keywords of propose; of every other seed they lose boxes to size and pre_nms."""
    settings = {'pre_nms': 40, 'post_nms': 20, 'nms_iou': 0.5, 'min_size': 1e-3}
    return settings | ({'min_size': 16.0} if seed % 2 else {}) | changes


def scene(seed, spread, levels):
    """Returns (settings, Prediction) of a random network and random objects."""
    random = np.random.default_rng(seed)
    low = random.uniform(0, 70, (6, 2)) * [1, 0.6]
    boxes = np.float32(np.concatenate([low, low + random.uniform(2, 50, (6, 2))], 1))
    boxes = np.clip(boxes, 0, [96, 64, 96, 64]).astype(np.float32)
    kind = np.int32(random.choice([1, 1, 1, 2, 3], 6))
    boxes[4], kind[3:] = boxes[3] + np.float32([0, 0, 0.5, 0.5]), (1, 1, 0)  # rivals for anchors
    settings = settings_of(seed, nms_iou=(0.2, 0.5, 0.3)[seed % 3])
    maps = random_maps(ANCHORS[levels], seed, spread)
    return settings, predicted(maps, boxes, kind, settings, levels)


def expected(settings, prediction, row):
    """Returns the reason by proposing again, with one limit after the other taken away."""

    def recalled(**changes):
        index = loop_propose(prediction, **settings | changes)
        overlaps = metrics.iou(prediction.clipped[index], prediction.gt_boxes[[row]])
        return overlaps.max(initial=0) >= GOAL['iou']

    own = prediction.gt_boxes[[row]]
    if metrics.iou(prediction.anchors.boxes, own).max() < TARGETS['negative_iou']:
        return 'no_anchor'
    if not np.any((prediction.labels == 1) & (prediction.matched == row)):
        return 'no_positive_anchor'
    if metrics.iou(prediction.decoded, own).max() < GOAL['iou']:
        return 'no_decoded_box'
    if not recalled(**EVERYTHING):
        return 'clipped'
    if not recalled(**EVERYTHING | {'pre_nms': settings['pre_nms']}):
        return 'below_pre_nms'
    return 'beyond_limit' if recalled(post_nms=1000) else 'suppressed'


def check(miss, settings, prediction):
    """Checks a Miss of a random scene, and what it tells of the box that was lost."""
    own = prediction.gt_boxes[[miss.row]]
    assert miss.reason == expected(settings, prediction, miss.row)
    assert miss.position == 7 and miss.best < GOAL['iou']
    late = miss.reason in ('below_pre_nms', 'suppressed', 'beyond_limit')
    assert (miss.lost.rank >= 0) == late
    if miss.reason not in ('no_anchor', 'no_positive_anchor'):
        assert (miss.lost.overlap >= GOAL['iou']) == (late or miss.reason == 'clipped')
    fit = metrics.iou(miss.lost.box[None], own)[0, 0]
    assert miss.lost.overlap == pytest.approx(fit)
    assert (miss.remover is not None) == (miss.reason == 'suppressed')
    if miss.reason == 'beyond_limit':  # ranks among all that NMS keeps, of any level
        kept = prediction.clipped[loop_propose(prediction, **settings | {'post_nms': 1000})]
        reaching = np.flatnonzero(metrics.iou(kept, own)[:, 0] >= GOAL['iou'])
        assert miss.lost.rank == reaching[0] >= GOAL['limit']
        np.testing.assert_array_equal(miss.lost.box, kept[reaching[0]])


@pytest.mark.parametrize('levels', LEVELS)
def test_the_reason_is_what_proposing_again_shows(levels):
    seen = collections.Counter()
    for seed, spread in itertools.product(range(14), (0.0, 0.2, 0.6)):
        settings, prediction = scene(seed, spread, levels)
        boxes, kept = prediction.gt_boxes, prediction.proposals.boxes
        best = metrics.iou(boxes, kept[: GOAL['limit']]).max(axis=1, initial=0)
        missed = np.flatnonzero((best < GOAL['iou']) & (prediction.gt_kind == 1))
        explained = explain(prediction, settings)
        assert [miss.row for miss in explained] == missed.tolist()
        for miss in explained:
            check(miss, settings, prediction)
        seen.update(misses.counts(explained))
    assert min(seen.values()) > 0 and {*seen} == {*misses.REASONS}


def test_these_proposals_are_those_of_propose():
    settings, prediction = scene(0, 0.2, 5)
    maps = prediction.logits, prediction.deltas, prediction.anchors, prediction.size
    ours = jax.device_get(jax.jit(functools.partial(propose, **settings))(*maps))
    theirs = prediction.proposals
    np.testing.assert_array_equal(ours.index[ours.valid], theirs.index)
    np.testing.assert_allclose(ours.boxes[ours.valid], theirs.boxes, rtol=1e-5)


@pytest.mark.parametrize(('rank', 'reason'), [(0, 'beyond_limit'), (1, 'below_pre_nms')])
@pytest.mark.parametrize('levels', [2, 5])
def test_ranks_and_nms_are_within_the_level_of_an_anchor(levels, rank, reason):
    """An anchor of the last level ranks below all of the first, whose best box lies upon it."""
    boxes, level = ANCHORS[levels].boxes, ANCHORS[levels].level
    logits = -np.arange(len(boxes), dtype=np.float32)
    target = np.flatnonzero(level == levels - 1)[rank]
    goal, deltas = np.clip(boxes[target], 0, [96, 64, 96, 64]), np.zeros((len(boxes), 4))
    moved = np.float32([goal + [1, 1, 0, 0], goal])
    deltas[[0, target]] = box.encode(moved, boxes[[0, target]])
    settings = settings_of(pre_nms=1, nms_iou=0.5)
    prediction = predicted((logits, np.float32(deltas)), goal[None], [1], settings, levels)
    (miss,) = explain(prediction, settings, {'iou': 0.99, 'limit': 1}, negative_iou=0.1)
    assert metrics.iou(prediction.proposals.boxes[:1], goal[None]) > 0.5
    assert miss.reason == reason and miss.lost.rank == (rank or levels - 1)
    assert miss.lost.anchor.startswith(f'level {levels - 1}, ')
    np.testing.assert_allclose(miss.lost.box, goal, atol=1e-4)


def placed(ranked, boxes, **changes):
    """Returns the Misses of objects where anchors are moved onto boxes that rank in this order."""
    indices = [20, 3, 9, 60, 31][: len(ranked)]
    anchors = ANCHORS[1].boxes
    deltas = np.zeros((len(anchors), 4), np.float32)
    deltas[indices] = box.encode(np.float32(ranked), anchors[indices])
    logits = np.full(len(anchors), -np.inf, np.float32)
    logits[indices] = np.arange(len(ranked), 0, -1)
    rules, settings = {'negative_iou': 0.2, 'positive_iou': 0.3}, settings_of(**changes)
    kind = np.ones(len(boxes), np.int32)
    prediction = predicted((logits, deltas), boxes, kind, settings, targets=rules)
    return explain(prediction, settings, negative_iou=0.2)


FAR = [70, 40, 96, 64]  # ranks before all, and nothing removes it
OBJECT, SECOND = np.float32([8, 8, 40, 40]), np.float32([10, 8, 42, 40])


@pytest.mark.parametrize(
    ('ranked', 'others', 'on', 'row'),
    [
        ([[8, 8, 23, 40]], [], 'same_object', 0),  # IoU .47 with it: a worse box on the same object
        ([[8, 8, 23, 40]], [[8, 8, 22, 40]], 'another_object', 1),
        ([[32, 8, 58, 40]], [], 'background', -1),  # IoU .16 with it: less than negative_iou
        ([[8, 8, 23, 40], [24, 8, 42, 40]], [], 'same_object', 0),  # the second would be nearer
    ],
)
def test_a_removed_box_comes_with_the_first_proposal_that_is_too_near(ranked, others, on, row):
    explained = placed([FAR, *ranked, SECOND], [OBJECT, *others], nms_iou=0.2)
    miss = next(miss for miss in explained if miss.row == 0)
    assert (miss.reason, miss.lost.rank) == ('suppressed', 1 + len(ranked))
    np.testing.assert_allclose(miss.lost.box, SECOND, atol=1e-3)
    assert (miss.remover.rank, miss.remover.row, miss.removed_by) == (1, row, on)
    np.testing.assert_allclose(miss.remover.box, ranked[0], atol=1e-3)
    assert misses.removers([miss]) == {name: int(name == on) for name in misses.REMOVERS}


def test_a_box_below_the_minimum_size_is_lost_to_clipping():
    inside = [0, 20, 8, 40]
    (miss,) = placed([inside], [inside], min_size=9.0)
    assert miss.reason == 'clipped' and miss.reached > 0.9


def test_an_image_whose_objects_are_all_recalled_has_no_misses():
    assert placed([OBJECT, SECOND], [OBJECT, SECOND], nms_iou=0.95) == []
