"""What anchors of each type learn and find, and how far they stretch: beside loops in NumPy."""

import json

import jax
import numpy as np
import pytest
from helpers import finished_run, lines_of, tiny_config

from rpn_jax.evaluation import anchor_coverage, metrics
from rpn_jax.ops import anchor_statistics
from rpn_jax.ops import anchors as anchor
from rpn_jax.ops.matching import match
from rpn_jax.ops.proposals import Proposals

pytestmark = pytest.mark.usefixtures('quick_compilation')
SIZE = np.float32([80, 96])
BOXES = np.float32(
    [[3, 5, 40, 44], [0, 0, 90, 70], [50, 30, 66, 58], [0, 0, 0, 0], [20, 8, 90, 76]]
)
KIND = np.int32([1, 2, 1, 0, 1])
SIZES, RATIOS = (8, 32), (0.5, 1, 2)
K = 6
ANCHORS = np.asarray(anchor.grid(anchor.base_anchors(SIZES, RATIOS), (5, 6), 16))
SIZE_OF = np.tile([0, 1], len(ANCHORS) // 2)  # all sizes of a ratio, then those of the next
CONFIG = tiny_config(anchors__sizes=SIZES, targets__positive_iou=0.5, loss__beta=0.25)


@pytest.fixture(scope='module')
def network():
    """Returns (proposals, logits, deltas): the first proposal is bad, the last is not valid."""
    random = np.random.default_rng(0)
    logits = np.float32(random.normal(0, 2, len(ANCHORS)))
    deltas = np.float32(random.normal(0, 0.3, (len(ANCHORS), 4)))
    places = np.float32([[0, 0, 9, 9], [4, 5, 41, 44], [3, 5, 40, 44], [22, 9, 90, 76], [0] * 4])
    index = np.int32([5, 6 * 3 + 1, 6 * 7 + 2, 6 * 2 + 2, 0])
    valid = np.arange(5) < 4
    return Proposals(places, np.linspace(1, 0, 5), valid, index), logits, deltas


@pytest.fixture(scope='module')
def matching():
    """Returns labels and matched of the scene."""
    rules = {key: CONFIG.targets[key] for key in ('positive_iou', 'negative_iou')}
    return jax.device_get(jax.jit(match)(ANCHORS, BOXES, KIND, **rules))


@pytest.fixture(scope='module')
def sums(network):
    return measure(network, BOXES, KIND)


def measure(network, boxes, kind, limit=3):
    inputs = (*network, ANCHORS, boxes, kind, SIZE)
    return anchor_coverage.measure(*inputs, iou=0.5, limit=limit, config=CONFIG)


def moved(deltas):
    """Returns decoded anchors, in float64."""
    side = (ANCHORS[:, 2:] - ANCHORS[:, :2]).astype(np.float64)
    centre = (ANCHORS[:, 2:] + ANCHORS[:, :2]) / 2 + deltas[:, :2] * side
    half = side * np.exp(deltas[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def test_all_labelled_anchors_count(network, matching, sums):
    (_, logits, deltas), (labels, matched) = network, matching
    expected = {name: np.zeros(K) for name in ('positives', 'labelled', 'loss_objectness')}
    expected |= {name: np.zeros(K) for name in (*anchor_statistics.IOUS, 'shift', 'scale')}
    boxes = moved(deltas)
    for i, (label, logit) in enumerate(zip(labels, np.float64(logits), strict=True)):
        if label >= 0:
            expected['labelled'][i % K] += 1
            loss = np.log1p(np.exp(-logit if label else logit))
            expected['loss_objectness'][i % K] += loss
        if label == 1:
            goal, own = np.float64(BOXES[matched[i]]), np.float64(ANCHORS[i])
            side, goal_side = own[2:] - own[:2], goal[2:] - goal[:2]
            shift = (goal[:2] + goal[2:] - own[:2] - own[2:]) / 2
            expected['positives'][i % K] += 1
            expected['shift'][i % K] += np.abs(shift / side).sum() / 2
            expected['scale'][i % K] += np.abs(np.log2(goal_side / side)).sum() / 2
            expected['iou_before'][i % K] += metrics.iou(own[None], goal[None])[0, 0]
            expected['iou_after'][i % K] += metrics.iou(boxes[[i]], goal[None])[0, 0]
    for name, values in expected.items():
        np.testing.assert_allclose(sums[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert (labels == -1).any() and expected['positives'].sum() >= 3


def test_stretch_is_over_anchors_whose_centre_lies_in_the_object(network, matching, sums):
    (_, _, deltas), (labels, matched) = network, matching
    expected, boxes = np.zeros((4, 2, anchor_coverage.BINS)), moved(deltas)
    for row in np.flatnonzero(KIND == 1):
        x0, y0, x1, y1 = BOXES[row]
        for i, own in enumerate(np.float64(ANCHORS)):
            x, y = (own[0] + own[2]) / 2, (own[1] + own[3]) / 2
            if x0 <= x < x1 and y0 <= y < y1:
                factor = np.sqrt((x1 - x0) * (y1 - y0) / ((own[2] - own[0]) * (own[3] - own[1])))
                octave = next(b for b in range(20) if factor < 2 ** ((b + 1) / 2 - 5))
                ious = (metrics.iou(b[None], BOXES[[row]])[0, 0] for b in (own, boxes[i]))
                positive = labels[i] == 1 and matched[i] == row
                expected[:, SIZE_OF[i], octave] += [1, positive, *ious]
    np.testing.assert_allclose(sums['stretch'], expected, rtol=1e-4, atol=1e-6)
    assert expected[0].sum() > 60 and 0 < expected[1].sum() < sums['positives'].sum() + 1


def test_an_object_goes_to_the_type_of_its_best_proposal(network, sums):
    # Of the first three proposals the third fits best; the fourth finds another object.
    assert sums['recalled'].tolist() == [0, 0, 1, 0, 0, 0]
    assert measure(network, BOXES, KIND, limit=2)['recalled'].tolist() == [0, 1, 0, 0, 0, 0]
    assert measure(network, BOXES, KIND, limit=9)['recalled'].tolist() == [0, 0, 2, 0, 0, 0]


def test_the_summary_is_of_sums_over_images(network, sums):
    nothing = measure(network, BOXES * 0, KIND * 0)
    found = anchor_coverage.summarise([sums, nothing, sums], CONFIG)
    assert found['positives'] == (2 * sums['positives']).tolist()
    assert found['recall_share'] == [0, 0, 1, 0, 0, 0]
    labelled = 2 * sums['labelled'] + nothing['labelled']
    loss = (2 * sums['loss_objectness'] + nothing['loss_objectness']) / labelled
    np.testing.assert_allclose(found['loss_objectness'], loss)
    for name in ('loss_box', 'iou_after', 'scale'):
        for value, total, count in zip(found[name], sums[name], sums['positives'], strict=True):
            assert value == (pytest.approx(total / count) if count else None)
    stretch = found['stretch']
    assert (
        np.shape(stretch['iou_after']) == np.shape(stretch['anchors']) == (2, anchor_coverage.BINS)
    )
    assert (
        len(stretch['octaves']) == anchor_coverage.BINS + 1 and stretch['iou_after'][0][0] is None
    )
    assert anchor_coverage.by_size(found, 'recalled').tolist() == [2, 0]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_split_without_objects_has_nothing_but_background(network):
    found = anchor_coverage.summarise([measure(network, BOXES * 0, KIND * 0)], CONFIG)
    assert set(found['positives']) == set(found['recalled']) == {0}
    assert set(found['recall_share']) == set(found['iou_after']) == {None}
    assert None not in found['loss_objectness'] and not np.any(found['stretch']['anchors'])


def test_what_anchors_learn_is_logged_and_measured():
    folder = finished_run().folder
    for line in lines_of(folder):
        types = line['anchors']
        assert all(len(values) == 6 for values in types.values()) and len(types) == 5
        for name in ('positives', 'loss_objectness', 'loss_box'):
            assert sum(types[name]) == pytest.approx(line[name], rel=1e-4)
        known = [value is not None for value in types['iou_after']]
        assert known == [value > 0 for value in types['positives']] and any(known)
    found = json.loads((folder / 'evaluation.json').read_text())['anchors']
    assert sum(found['positives']) > 0 and 'NaN' not in (folder / 'metrics.jsonl').read_text()
    assert 'Anchors by size and shape' in (folder / 'report.html').read_text()
