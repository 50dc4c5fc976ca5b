"""Findings on the ground truth, from records alone."""

import numpy as np
import pytest
from config_cases import config_of

from rpn_jax.data.records import Record
from rpn_jax.diagnosis import anchor_grid, truth_checks
from rpn_jax.models import rpn


def records(boxes, kind=1, images=10):
    boxes = np.float32(boxes)
    kinds = np.full(len(boxes), kind, np.int32)
    return [Record(str(n), (100, 100), boxes + n % 3, kinds) for n in range(images)]


@pytest.mark.parametrize(
    ('made', 'begins', 'level'),
    [
        (records(np.zeros((0, 4))), 'No image has an object', 'error'),
        (records([[1, 1, 50, 60]], kind=2), 'No box counts as an object', 'error'),
        (records([[1, 1, 3, 3], [2, 2, 4, 5]]), 'Many objects are tiny', 'error'),
        (records([[5, 5, 25, 25], [40, 40, 60, 60]]), 'All objects are of one size', 'warning'),
        (
            records([[5, 5, 25, 45], [5, 5, 25, 45], [9, 9, 80, 80]]),
            'Many boxes are there twice',
            'warning',
        ),
        (
            records([[-3, -3, 103, 103], [-1, -2, 104, 101]], images=20),
            'Most boxes cover',
            'warning',
        ),
        (
            records([[9, 9, 40, 50]], images=3) + records(np.zeros((0, 4)), images=7),
            'Most images',
            'warning',
        ),
    ],
)
def test_what_is_odd_about_the_boxes_is_found(made, begins, level):
    found = truth_checks.findings(made, np.full((len(made), 2), 100))
    assert [each.level for each in found if each.finding.startswith(begins)] == [level]


def objects(sides):
    """Returns Objects of these sides, on canvases of 640 pixels."""
    sides, size = np.float64(sides), np.full((len(sides), 2), 640)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1) + 10
    return anchor_grid.Objects(boxes, np.arange(len(sides)), size, size, sides**2)


@pytest.mark.parametrize(
    ('sides', 'shrunk', 'levels'),
    [([99] * 9, 0.2, []), ([12] * 9, 0.2, ['error']), ([12] * 9, 1.0, ['warning'])],
)
def test_objects_without_a_cell_of_their_own_are_found(sides, shrunk, levels):
    found = [*truth_checks.resized(objects(sides), 16, shrunk)]
    assert [each.level for each in found] == levels
    assert all(('made so small' in each.finding) == (shrunk < 0.5) for each in found)


@pytest.mark.parametrize(
    ('counts', 'begins'),
    [
        ([(30, 200)] * 9, []),
        ([(30, 200)] * 6 + [(30, 0)] * 3, ['Images teach hardly any background']),
        ([(1, 255)] * 9, ['Few of the anchors that a step']),
    ],
)
def test_samples_without_background_or_foreground_are_found(counts, begins):
    found = truth_checks.sampled(np.array(counts), {'samples': 256})
    assert [each.finding[: len(b)] for each, b in zip(found, begins, strict=True)] == begins


def test_proposals_that_are_dropped_are_found():
    made = records([[5, 5, 25, 45], [30, 20, 90, 80]])
    sizes = np.full((len(made), 2), 100)
    (found,) = truth_checks.findings(made, sizes, min_size=30.0)
    assert found.level == 'error' and found.finding.startswith('Proposals of the size of objects')


def test_anchors_that_reach_out_and_do_not_count_are_found():
    model = rpn.build(config_of().model, {'sizes': (256, 700), 'aspect_ratios': (1.0,)})
    rules = config_of().targets.to_dict()
    large = objects([620] * 9 + [256])
    (found,) = truth_checks.anchors(large, model, rules | {'border': 0})
    assert found.finding.startswith('Objects lose their anchors') and found.level == 'error'
    found = truth_checks.anchors(large, model, rules)
    assert not [each for each in found if 'lose' in each.finding]


def test_usual_boxes_are_no_finding():
    made = records([[5, 5, 25, 45], [30, 20, 90, 80]])
    assert [*truth_checks.findings(made, np.full((len(made), 2), 100))] == []
