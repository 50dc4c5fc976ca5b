"""Boxes on objects score above boxes elsewhere, and what was done to them can be undone."""

import numpy as np
import pytest

from rpn_jax.diagnosis import alignment


def scene(seed):
    """Returns a noisy image with a few filled boxes, these boxes, and its size."""
    random = np.random.default_rng(seed)
    image = random.integers(90, 110, (80, 120, 3)).astype(np.uint8)
    boxes = []
    for _ in range(3):
        x, y = random.integers(5, 70), random.integers(5, 40)
        w, h = random.integers(12, 40), random.integers(12, 34)
        image[y : y + h, x : x + w] = random.integers(0, 255, 3)
        boxes.append((x, y, x + w, y + h))
    return image, np.float32(boxes), (80, 120)


def measured(change):
    images, boxes, sizes = zip(*map(scene, range(30)), strict=True)
    return alignment.compare(images, [change(b) for b in boxes], sizes)


def test_boxes_on_objects_score_far_above_those_of_other_images():
    ways = measured(lambda boxes: boxes)
    (own, error, count), (chance, _, others) = ways['as they are'], ways['of other images']
    assert own - chance > 0.5 > 5 * error and count == 90 and others > 500
    assert max(ways, key=lambda way: ways[way][0]) in (
        'as they are',
        'not resized',
        'resized once more',
    )


@pytest.mark.parametrize(
    ('way', 'change'),
    [
        ('x and y swapped', lambda b: b[:, [1, 0, 3, 2]]),
        ('mirrored', lambda b: b[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [120, 0, 120, 0]),
        ('upside down', lambda b: b[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, 80, 0, 80]),
        ('as (x, y, width, height)', lambda b: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1)),
    ],
)
def test_what_was_done_is_undone_by_the_way_of_its_name(way, change):
    ways = measured(change)
    assert max(ways, key=lambda each: np.nan_to_num(ways[each][0], nan=-9)) == way
    assert ways[way][0] - ways['as they are'][0] > alignment.TYPICAL


def test_boxes_without_a_border_inside_have_no_score():
    edges = alignment.edges(scene(0)[0])
    scores = alignment.scores(edges, [[0, 0, 120, 80], [5, 5, 5, 30], [200, 200, 300, 300]])
    assert np.isnan(scores[[0, 2]]).all()
