"""What anchors of each type learn and recall, and how far they stretch: beside loops in NumPy."""

import json

import numpy as np
import pytest
from helpers import LEVELS, level_anchors, random_maps

from rpn_jax.evaluation import anchor_coverage, metrics
from rpn_jax.evaluation.predict import Prediction
from rpn_jax.ops.proposals import Proposals

SIZE = np.float32([64, 96])
BOXES = np.float32(
    [[3, 5, 40, 44], [0, 0, 90, 60], [50, 30, 66, 58], [0, 0, 0, 0], [20, 8, 90, 60]]
)
KIND = np.int32([1, 2, 1, 0, 1])
BEST = [14, 100]  # anchors whose proposals fit the first and the last object best


def predicted(levels, boxes=BOXES, kind=KIND):
    """Returns a Prediction: the first proposal is bad, the last is not valid."""
    anchors = level_anchors(levels)
    places = np.float32([[0, 0, 9, 9], [4, 5, 41, 44], [3, 5, 40, 44], [22, 9, 90, 60], [0] * 4])
    index, valid = np.int32([5, 19, *BEST, 0]), np.arange(5) < 4
    proposals = Proposals(places, np.linspace(1, 0, 5), valid, index)
    maps = random_maps(anchors, 0, 0.3)
    return Prediction.of(0, proposals, maps, anchors, boxes, kind, SIZE, {'positive_iou': 0.5})


def measure(prediction, limit=3):
    return anchor_coverage.measure(prediction, iou=0.5, limit=limit, loss={'beta': 0.25})


@pytest.fixture(scope='module', params=LEVELS)
def measured(request):
    prediction = predicted(request.param)
    return prediction, measure(prediction)


def test_all_labelled_anchors_count(measured):
    prediction, sums = measured
    names = 'positives', 'labelled', 'loss_objectness', 'loss_box'
    names += 'iou_before', 'iou_after', 'shift', 'scale'
    expected = {name: np.zeros(len(prediction.anchors.types)) for name in names}
    for i, (label, kind) in enumerate(zip(prediction.labels, prediction.anchors.type, strict=True)):
        logit = np.float64(prediction.logits[i])
        if label >= 0:
            expected['labelled'][kind] += 1
            expected['loss_objectness'][kind] += np.log1p(np.exp(-logit if label else logit))
        if label == 1:
            own, goal = np.float64([prediction.anchors.boxes[i], BOXES[prediction.matched[i]]])
            side, goal_side = own[2:] - own[:2], goal[2:] - goal[:2]
            shift = (goal[:2] + goal[2:] - own[:2] - own[2:]) / 2 / side
            delta = np.abs(prediction.deltas[i] - [*shift, *np.log(goal_side / side)])
            loss = np.where(delta < 0.25, delta**2 / 0.5, delta - 0.125).sum()
            ious = (metrics.iou([b], [goal])[0, 0] for b in (own, prediction.decoded[i]))
            far = np.abs(shift).mean(), np.abs(np.log2(goal_side / side)).mean()
            values = dict(zip(names, (1, 0, 0, loss, *ious, *far), strict=True))
            for name, value in values.items():
                expected[name][kind] += value
    for name, values in expected.items():
        np.testing.assert_allclose(sums[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (prediction.labels == -1).any() and expected['positives'].sum() >= 3


def test_stretch_is_over_anchors_whose_centre_lies_in_the_object(measured):
    prediction, sums = measured
    anchors, types = prediction.anchors, anchor_coverage.types_of(prediction.anchors)
    sizes = sorted({(level, size) for level, size, _ in types})
    expected = np.zeros((4, len(sizes), anchor_coverage.BINS))
    for row in np.flatnonzero(KIND == 1):
        x0, y0, x1, y1 = BOXES[row]
        for i, own in enumerate(np.float64(anchors.boxes)):
            x, y = (own[0] + own[2]) / 2, (own[1] + own[3]) / 2
            if x0 <= x < x1 and y0 <= y < y1:
                factor = np.sqrt((x1 - x0) * (y1 - y0) / ((own[2] - own[0]) * (own[3] - own[1])))
                octave = next(b for b in range(20) if factor < 2 ** ((b + 1) / 2 - 5))
                ious = (metrics.iou([b], BOXES[[row]])[0, 0] for b in (own, prediction.decoded[i]))
                positive = prediction.labels[i] == 1 and prediction.matched[i] == row
                size = sizes.index((anchors.level[i], types[anchors.type[i]][1]))
                expected[:, size, octave] += [1, positive, *ious]
    np.testing.assert_allclose(sums['stretch'], expected, rtol=1e-4, atol=1e-6)
    assert expected[0].sum() > 60 and 0 < expected[1].sum() < sums['positives'].sum() + 1


def test_an_object_is_recalled_by_the_type_of_its_best_proposal(measured):
    # Of the first three proposals the third fits best; the fourth recalls another object.
    prediction, sums = measured
    first, last = prediction.anchors.type[BEST]
    assert np.flatnonzero(sums['recalled']) == [first] and sums['recalled'].sum() == 1
    earlier = measure(prediction, limit=2)['recalled']
    assert np.flatnonzero(earlier) == prediction.anchors.type[19] and earlier.sum() == 1
    both = np.bincount([first, last], minlength=len(prediction.anchors.types))
    assert measure(prediction, limit=9)['recalled'].tolist() == both.tolist()


def test_the_summary_is_of_sums_over_images(measured):
    prediction, sums = measured
    types = anchor_coverage.types_of(prediction.anchors)
    nothing = measure(predicted(len(prediction.anchors.levels), BOXES * 0, KIND * 0))
    summary = anchor_coverage.summarise([sums, nothing, sums], types)
    assert summary['positives'] == (2 * sums['positives']).tolist()
    assert sum(summary['recall_share']) == 1
    labelled = 2 * sums['labelled'] + nothing['labelled']
    loss = (2 * sums['loss_objectness'] + nothing['loss_objectness']) / labelled
    np.testing.assert_allclose(summary['loss_objectness'], loss)
    for name in ('loss_box', 'iou_after', 'scale'):
        for value, total, count in zip(summary[name], sums[name], sums['positives'], strict=True):
            assert value == (pytest.approx(total / count) if count else None)
    stretch, sizes = summary['stretch'], len(summary['sizes'])
    shape = sizes, anchor_coverage.BINS
    assert np.shape(stretch['iou_after']) == np.shape(stretch['anchors']) == shape
    assert len(stretch['octaves']) == shape[1] + 1 and stretch['iou_after'][0][0] is None
    by_size = anchor_coverage.by_size(summary, 'labelled')
    assert len(by_size) == sizes and sum(by_size.values()) == labelled.sum()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary

    empty = anchor_coverage.summarise([nothing], types)
    assert set(empty['positives']) == set(empty['recalled']) == {0}
    assert set(empty['recall_share']) == set(empty['iou_after']) == {None}
    assert None not in empty['loss_objectness'] and not np.any(empty['stretch']['anchors'])


def test_types_and_sizes_are_by_level():
    one, two = (anchor_coverage.types_of(level_anchors(levels)) for levels in (1, 2))
    assert one == [[0, size, ratio] for ratio in (0.5, 1, 2) for size in (16, 32)]
    assert two[:3] == [[0, 16, ratio] for ratio in (0.5, 1, 2)]
    assert two[3:] == [[1, *rest] for _, *rest in one]
    summary = anchor_coverage.summarise([measure(predicted(2))], two)
    assert (summary['sizes'], summary['aspect_ratios']) == ([16, 16, 32], [0.5, 1, 2])
