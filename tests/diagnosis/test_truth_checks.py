"""Findings on the ground truth, from records alone."""

import numpy as np
import pytest

from rpn_jax.data.records import Record
from rpn_jax.diagnosis import truth_checks


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
        (records([[9, 9, 40 + n, 50] for n in range(9)]), 'An image has more boxes', 'error'),
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
    found = truth_checks.findings(made, np.full((len(made), 2), 100), max_boxes=8)
    assert [each.level for each in found if each.finding.startswith(begins)] == [level]


def test_usual_boxes_are_no_finding():
    made = records([[5, 5, 25, 45], [30, 20, 90, 80]])
    assert truth_checks.findings(made, np.full((len(made), 2), 100), max_boxes=8) == []
