"""Every missed object has exactly one reason, and it is the first that holds."""

import collections

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies
from ml_collections import ConfigDict

from configs import default
from rpn_jax.evaluation import metrics, misses
from rpn_jax.ops import anchors as anchor
from rpn_jax.ops import boxes as box
from rpn_jax.ops import matching
from rpn_jax.ops.proposals import propose

SIZE = np.float32([64, 96])
ANCHORS = np.asarray(anchor.grid(anchor.base_anchors((16, 32), (0.5, 1, 2)), (4, 6), 16))
GOAL = {'iou': 0.5, 'limit': 5}
SHAPES = ('pre_nms', 'post_nms')
compiled = jax.jit(propose, static_argnames=SHAPES)
matched_by = jax.jit(matching.match)


def settings(**changes):
    """Returns a config of targets and proposals."""
    config = default.get_config()
    config.proposals.update(pre_nms=60, post_nms=20, nms_iou=0.5)
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return ConfigDict({'targets': config.targets, 'proposals': config.proposals})


def of_seed(seed):
    """Returns a config: every other one loses boxes to their size and to pre_nms."""
    changes = {'proposals__min_size': 12.0, 'proposals__pre_nms': 25} if seed % 2 else {}
    return settings(**changes)


def found_by(config, logits, deltas, boxes, **changes):
    """Returns the rows that proposals with other settings find, at any rank."""
    keywords = dict(config.proposals) | changes
    proposals = compiled(logits, deltas, ANCHORS, SIZE, **keywords)
    kept = np.asarray(proposals.boxes)[np.asarray(proposals.valid)]
    return metrics.iou(boxes, kept).max(axis=1, initial=0) >= GOAL['iou']


def explain(config, logits, deltas, boxes, kind):
    proposals = jax.device_get(compiled(logits, deltas, ANCHORS, SIZE, **config.proposals))
    return proposals, misses.find(
        7, proposals, logits, deltas, ANCHORS, boxes, kind, SIZE, **GOAL, config=config
    )


def expected(config, logits, deltas, boxes, kind, row):
    """Returns the reason by proposing again, with one limit after the other taken away."""
    labels, matched = matched_by(
        ANCHORS, boxes, kind, **{k: config.targets[k] for k in ('positive_iou', 'negative_iou')}
    )
    if metrics.iou(ANCHORS, boxes[[row]]).max() < config.targets.negative_iou:
        return 'no_anchor'
    if not np.any((np.asarray(labels) == 1) & (np.asarray(matched) == row)):
        return 'no_positive_anchor'
    if metrics.iou(box.decode(deltas, ANCHORS), boxes[[row]]).max() < GOAL['iou']:
        return 'no_decoded_box'
    everything = {'pre_nms': len(ANCHORS), 'post_nms': len(ANCHORS), 'nms_iou': 1.0}
    if not found_by(config, logits, deltas, boxes, **everything)[row]:
        return 'clipped'
    if not found_by(config, logits, deltas, boxes, nms_iou=1.0, post_nms=len(ANCHORS))[row]:
        return 'below_pre_nms'
    if not found_by(config, logits, deltas, boxes, post_nms=len(ANCHORS))[row]:
        return 'suppressed'
    return 'beyond_limit'


def scene(seed, spread):
    """Returns (logits, deltas, boxes, kind) of a random network and random objects."""
    random = np.random.default_rng(seed)
    low = random.uniform(0, 70, (6, 2)) * [1, 0.6]
    boxes = np.float32(np.concatenate([low, low + random.uniform(2, 50, (6, 2))], 1))
    boxes = np.clip(boxes, 0, [96, 64, 96, 64]).astype(np.float32)
    kind = np.int32(random.choice([1, 1, 1, 2, 3], 6))
    boxes[4], kind[3:] = boxes[3] + np.float32([0, 0, 0.5, 0.5]), (1, 1, 0)  # rivals for anchors
    logits = np.float32(random.normal(0, 1, len(ANCHORS)))
    deltas = np.float32(random.normal(0, spread, (len(ANCHORS), 4)))
    return logits, deltas, boxes, kind


@pytest.mark.parametrize('spread', [0.0, 0.2, 0.6])
@pytest.mark.parametrize('seed', range(8))
def test_the_reason_is_what_proposing_again_says(seed, spread):
    config, network = of_seed(seed), scene(seed, spread)
    proposals, found = explain(config, *network)
    for miss in found:
        assert miss.reason == expected(config, *network, miss.row)
        assert miss.position == 7 and miss.best < GOAL['iou']
        late = 'below_pre_nms', 'suppressed', 'beyond_limit'
        assert (miss.lost.rank >= 0) == (miss.reason in late)
        assert (miss.lost.overlap >= GOAL['iou']) == (miss.reason in (*late, 'clipped')) or (
            miss.reason in ('no_anchor', 'no_positive_anchor')
        )
        assert (miss.remover is not None) == (miss.reason == 'suppressed')
        fit = metrics.iou(miss.lost.box[None], network[2][[miss.row]])[0, 0]
        assert miss.lost.overlap == pytest.approx(fit)


def test_every_reason_occurs_in_these_scenes():
    seen = collections.Counter()
    for seed in range(8):
        for spread in (0.0, 0.2, 0.6):
            seen.update(miss.reason for miss in explain(of_seed(seed), *scene(seed, spread))[1])
    assert {*seen} == {*misses.REASONS} and seen.total() > 50


@hypothesis.settings(max_examples=25)
@hypothesis.given(strategies.integers(0, 10**6), strategies.sampled_from([0.0, 0.1, 0.4]))
def test_reasons_sum_to_the_misses(seed, spread):
    logits, deltas, boxes, kind = scene(seed, spread)
    proposals, found = explain(settings(), logits, deltas, boxes, kind)
    kept = proposals.boxes[proposals.valid][: GOAL['limit']]
    missed = metrics.iou(boxes, kept).max(axis=1, initial=0) < GOAL['iou']
    assert [miss.row for miss in found] == np.flatnonzero(missed & (kind == 1)).tolist()
    assert sum(misses.counts(found).values()) == len(found)
    assert list(misses.counts(found)) == list(misses.REASONS)


def logits_of(*ranked):
    """Returns logits that rank these anchors first."""
    logits = np.full(len(ANCHORS), -5, np.float32)
    logits[list(ranked)] = np.arange(len(ranked), 0, -1)
    return logits


def test_nms_names_the_object_whose_box_took_the_place():
    at = [int(metrics.iou(ANCHORS, b[None]).argmax()) for b in np.float32([[16, 16, 48, 48]])]
    target = ANCHORS[at[0]]
    neighbour = target + np.float32([6, 0, 6, 0])
    boxes, kind = np.float32([target, neighbour]), np.int32([1, 1])
    deltas = np.zeros((len(ANCHORS), 4), np.float32)
    near = int(np.argsort(-metrics.iou(ANCHORS, target[None])[:, 0])[1])
    deltas[near] = np.asarray(
        box.encode(neighbour[None] + np.float32([[4, 0, 4, 0]]), ANCHORS[[near]])
    )[0]
    config = settings(proposals__nms_iou=0.3)
    logits = logits_of(near, at[0])
    goal = {'iou': 0.75, 'limit': 5}
    proposals = jax.device_get(compiled(logits, deltas, ANCHORS, SIZE, **config.proposals))
    (miss,) = misses.find(
        0, proposals, logits, deltas, ANCHORS, boxes, kind, SIZE, **goal, config=config
    )
    assert (miss.row, miss.reason, miss.lost.rank, miss.lost.overlap) == (0, 'suppressed', 1, 1)
    np.testing.assert_array_equal(miss.lost.box, target)
    assert (miss.remover.rank, miss.remover.row, miss.removed_by) == (0, 1, 'another_object')
    np.testing.assert_allclose(miss.remover.box, neighbour + np.float32([4, 0, 4, 0]), atol=1e-4)
    assert misses.removers([miss]) == {'same_object': 0, 'another_object': 1, 'background': 0}


def suppressed(boxes, kind, *ranked, **changes):
    """Returns the Misses where anchors are moved onto boxes that NMS sees in this order.

    Before them ranks a box far away, which nothing removes.
    """
    places = np.float32([[70, 40, 96, 64], *ranked])
    indices = [20, 3, 9, 60][: len(places)]
    deltas = np.zeros((len(ANCHORS), 4), np.float32)
    deltas[indices] = np.asarray(box.encode(places, ANCHORS[indices]))
    logits = np.full(len(ANCHORS), -np.inf, np.float32)
    logits[indices] = np.arange(len(places), 0, -1)
    config = settings(targets__negative_iou=0.2, targets__positive_iou=0.3, **changes)
    inputs = logits, deltas, ANCHORS
    proposals = jax.device_get(compiled(*inputs, SIZE, **config.proposals))
    goal = {'iou': 0.5, 'limit': 5}
    return misses.find(0, proposals, *inputs, boxes, kind, SIZE, **goal, config=config)


OBJECT, SECOND = np.float32([8, 8, 40, 40]), np.float32([10, 8, 42, 40])


@pytest.mark.parametrize(
    ('first', 'others', 'place', 'row'),
    [
        ([8, 8, 23, 40], [], 'same_object', 0),  # IoU .47 with it: a worse box on the same object
        ([8, 8, 23, 40], [[8, 8, 22, 40]], 'another_object', 1),
        ([8, 8, 23, 40], [[0, 44, 30, 64]], 'same_object', 0),
        ([32, 8, 58, 40], [], 'background', -1),  # IoU .16 with it: less than negative_iou
    ],
)
def test_a_removed_box_comes_with_the_proposal_that_removed_it(first, others, place, row):
    boxes = np.float32([OBJECT, *others])
    found = suppressed(boxes, np.ones(len(boxes), int), first, SECOND, proposals__nms_iou=0.2)
    miss = next(miss for miss in found if miss.row == 0)
    assert (miss.reason, miss.lost.rank) == ('suppressed', 2)
    np.testing.assert_allclose(miss.lost.box, SECOND, atol=1e-3)
    assert (miss.remover.rank, miss.remover.row, miss.removed_by) == (1, row, place)
    np.testing.assert_allclose(miss.remover.box, first, atol=1e-3)


def test_the_remover_is_the_first_that_is_too_near_and_not_the_nearest():
    first, nearer = [8, 8, 23, 40], [24, 8, 42, 40]
    boxes, changes = OBJECT[None], {'proposals__nms_iou': 0.2}
    (miss,) = suppressed(boxes, np.int32([1]), first, nearer, SECOND, **changes)
    assert metrics.iou([first, nearer], SECOND[None])[:, 0].argmax() == 1
    np.testing.assert_allclose(miss.remover.box, first, atol=1e-3)
    assert (miss.reason, miss.lost.rank, miss.remover.rank) == ('suppressed', 3, 1)


def test_what_is_kept_too_low_has_its_rank_among_the_proposals():
    """Not that of its score: of the boxes before it NMS takes some away."""
    config, seen = settings(proposals__nms_iou=0.3), 0
    for seed in range(12):
        logits, deltas, boxes, kind = scene(seed, 0.2)
        proposals, found = explain(config, logits, deltas, boxes, kind)
        kept = proposals.boxes[proposals.valid]
        for miss in found:
            reaching = np.flatnonzero(metrics.iou(kept, boxes[[miss.row]])[:, 0] >= GOAL['iou'])
            if miss.reason == 'beyond_limit' and len(reaching):
                assert miss.lost.rank == reaching[0] >= GOAL['limit']
                np.testing.assert_allclose(miss.lost.box, kept[reaching[0]], atol=1e-4)
                by_score = np.argsort(-logits).tolist().index(proposals.index[reaching[0]])
                seen += by_score != reaching[0]
    assert seen


def test_a_box_that_clipping_takes_away_is_lost_to_it():
    inside = np.float32([[0, 20, 8, 40]])
    deltas = np.zeros((len(ANCHORS), 4), np.float32)
    index = int(metrics.iou(ANCHORS, inside).argmax())
    deltas[index] = np.asarray(box.encode(inside, ANCHORS[[index]]))[0]
    config = settings(proposals__min_size=9.0, targets__negative_iou=0.01)
    _, (miss,) = explain(config, logits_of(index), deltas, inside, np.int32([1]))
    assert miss.reason == 'clipped' and miss.reached > 0.9


def test_an_image_in_which_all_is_found_has_no_misses():
    boxes = ANCHORS[[30]]
    _, found = explain(
        settings(), logits_of(30), np.zeros((len(ANCHORS), 4), np.float32), boxes, [1]
    )
    assert found == []
