"""Measures against plain loops, cases worked by hand and laws that hold for any boxes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_data import area_of, arrays, random_split, small_split

from rpn_jax.evaluation import metrics

COUNTS = (10, 100, 300, 1000, 2000)
NAMES = [
    *(f'AR@{n}' for n in COUNTS),
    *('AR@100/small', 'AR@100/medium', 'AR@100/large'),
    *(f'recall@{threshold}/{n}' for threshold in (0.5, 0.7) for n in COUNTS),
    *(f'ABO@{n}' for n in COUNTS),
    'top10_max_iou',
]


def loop_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def loop_best(proposals, objects, limit):
    best = []
    for ranked, image_objects in zip(proposals, objects, strict=True):
        for o in image_objects:
            best.append(max([loop_iou(p, o) for p in ranked[:limit]], default=0.0))
    return best


def loop_recall(proposals, objects, threshold, limit):
    best = loop_best(proposals, objects, limit)
    return sum(value >= threshold for value in best) / len(best) if best else None


def loop_average_recall(proposals, objects, limit):
    thresholds = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    recalls = [loop_recall(proposals, objects, t, limit) for t in thresholds]
    return None if recalls[0] is None else sum(recalls) / 10


def loop_top_iou(proposals, objects, count):
    means = []
    for ranked, image_objects in zip(proposals, objects, strict=True):
        if len(image_objects):
            best = [max(loop_iou(p, o) for o in image_objects) for p in ranked[:count]]
            means.append(sum(best) / len(best) if best else 0.0)
    return sum(means) / len(means) if means else None


def test_thresholds_are_the_decimal_numbers():
    assert metrics.THRESHOLDS.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def test_iou_by_hand():
    a = [[0, 0, 10, 10], [0, 0, 0, 0], [5, 5, 15, 15]]
    b = [[0, 0, 10, 7], [0, 0, 0, 0], [10, 0, 20, 10]]
    expected = [[0.7, 0, 0], [0, 0, 0], [10 / 160, 0, 25 / 175]]
    assert metrics.iou(a, b).tolist() == expected


def test_iou_of_what_is_no_box_is_zero():
    bad = [[np.nan] * 4, [8, 0, 2, 10], [8, 8, 2, 2]]
    assert metrics.iou(bad, [[0, 0, 10, 10]]).tolist() == [[0], [0], [0]]
    assert metrics.iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_float32_boxes_are_compared_in_float64():
    a, b = np.array([[[0, 0, 3, 1]], [[0, 0, 1, 1]]], np.float32)
    assert metrics.iou(a, b)[0, 0] == metrics.iou(b, a)[0, 0] == 1 / 3
    assert metrics.iou([[0, 0, 0.3, 1]], b)[0, 0] == metrics.iou(b, [[0, 0, 0.3, 1]])[0, 0] == 0.3


@settings(max_examples=60)
@given(small_split, st.integers(0, 16))
def test_figures_agree_with_loops(images, limit):
    proposals, objects = arrays(images)
    found = metrics.best_overlaps(proposals, objects, limit)
    assert found.tolist() == pytest.approx(loop_best(proposals, objects, limit))
    for threshold in (0.5, 0.7):
        expected = loop_recall(proposals, objects, threshold, limit)
        assert metrics.recall(proposals, objects, threshold, limit) == pytest.approx(expected)
    expected = loop_average_recall(proposals, objects, limit)
    assert metrics.average_recall(proposals, objects, limit) == pytest.approx(expected)
    best = loop_best(proposals, objects, limit)
    expected = sum(best) / len(best) if best else None
    assert metrics.average_best_overlap(proposals, objects, limit) == pytest.approx(expected)
    expected = loop_top_iou(proposals, objects, 10)
    assert metrics.top_iou(proposals, objects) == pytest.approx(expected)


@settings(max_examples=60)
@given(small_split)
def test_row_n_of_the_running_overlaps_is_the_best_of_the_first_n(images):
    proposals, objects = arrays(images)
    running = metrics.running_overlaps(proposals, objects)
    assert len(running) == max(len(p) for p in proposals) + 1
    for n, row in enumerate(running):
        assert row.tolist() == metrics.best_overlaps(proposals, objects, n).tolist()


@settings(max_examples=60)
@given(small_split)
def test_laws_of_recall(images):
    proposals, objects = arrays(images)
    running = metrics.running_overlaps(proposals, objects)
    assert np.all(np.diff(running, axis=0) >= 0)
    assert np.all((running >= 0) & (running <= 1))
    if not running.shape[1]:
        return
    overlaps = metrics.measure(proposals, objects, area_of(objects))
    drawn = metrics.curves(overlaps, range(15))
    for name in ('recall@0.5/count', 'recall@0.7/count', 'AR/count'):
        assert drawn[name] == sorted(drawn[name])
    for name in ('recall@100/iou', 'recall@1000/iou'):
        assert drawn[name] == sorted(drawn[name], reverse=True)
    # Markov's inequality, and its counterpart for the objects that are not recalled.
    abo = metrics.average_best_overlap(proposals, objects)
    for threshold, value in zip(drawn['iou'], drawn['recall@1000/iou'], strict=True):
        assert threshold * value <= abo + 1e-12
        assert abo <= value + (1 - value) * threshold + 1e-12
    assert drawn['recall@0.7/count'][-1] <= drawn['recall@0.5/count'][-1]


@settings(max_examples=30)
@given(small_split, st.randoms(use_true_random=False))
def test_the_order_of_images_changes_nothing(images, random):
    shuffled = random.sample(images, len(images))
    figures = []
    for some in (images, shuffled):
        proposals, objects = arrays(some)
        figures.append(metrics.summarise(metrics.measure(proposals, objects, area_of(objects))))
    assert figures[0] == pytest.approx(figures[1])


def test_by_hand():
    proposals = [
        np.array([[0, 0, 10, 5], [0, 0, 10, 7], [50, 50, 60, 60], [0, 0, 10, 10]]),
        np.array([[0, 0, 4, 4]]),
    ]
    objects = [np.array([[0, 0, 10, 10], [50, 50, 60, 64]]), np.array([[0, 0, 4, 5]])]
    assert metrics.best_overlaps(proposals, objects, 1).tolist() == [0.5, 0, 0.8]
    assert metrics.best_overlaps(proposals, objects, 2).tolist() == [0.7, 0, 0.8]
    assert metrics.best_overlaps(proposals, objects).tolist() == [1, 100 / 140, 0.8]
    assert metrics.recall(proposals, objects, 0.7, 2) == 2 / 3  # the IoU of exactly 0.7 counts
    assert metrics.recall(proposals, objects, 0.71, 2) == 1 / 3
    assert metrics.average_recall(proposals, objects, 2) == pytest.approx((5 + 0 + 7) / 30)
    assert metrics.average_best_overlap(proposals, objects, 2) == pytest.approx(0.5)
    assert metrics.top_iou(proposals, objects, 2) == pytest.approx((0.6 + 0.8) / 2)


def test_figures_are_over_objects_not_images():
    """One object found in one image, three missed in another: a quarter, not a half."""
    found = np.array([[0, 0, 10, 10]])
    missed = np.array([[20, 20, 30, 30]] * 3)
    assert metrics.recall([found, found], [found, missed], 0.5, 10) == 0.25
    assert metrics.top_iou([found, found], [found, missed]) == 0.5  # this one is over images


def test_one_image_is_a_split_of_one():
    proposals, objects = random_split(3, images=1)
    objects = [np.array([[10.0, 10, 90, 90], [30, 0, 40, 200]])]
    assert len(proposals[0]) > 5
    for function in (
        metrics.best_overlaps,
        metrics.running_overlaps,
        metrics.average_recall,
        metrics.average_best_overlap,
        metrics.top_iou,
    ):
        one = function(proposals[0], objects[0])
        assert np.array_equal(one, function(proposals, objects))
        assert np.array_equal(one, function(proposals[0].tolist(), objects[0].tolist()))
    one = metrics.measure(proposals[0], objects[0], area_of(objects)[0])
    assert metrics.summarise(one) == metrics.summarise(
        metrics.measure(proposals, objects, area_of(objects))
    )


def test_nothing_to_find_is_undefined():
    none = np.zeros((0, 4))
    for proposals, objects in (
        ([none], [none]),
        ([[[0, 0, 1, 1]]], [[]]),
        (none, none),
        ([], []),
        (np.ones((3, 4)), none),
    ):
        assert metrics.recall(proposals, objects, 0.5, 10) is None
        assert metrics.average_recall(proposals, objects, 10) is None
        assert metrics.average_best_overlap(proposals, objects, 10) is None
        assert metrics.top_iou(proposals, objects) is None
        overlaps = metrics.measure(proposals, objects, [])
        assert set(metrics.summarise(overlaps).values()) == {None}
        assert metrics.curves(overlaps, [1])['AR/count'] == [None]


def test_no_proposals_find_nothing():
    objects = np.array([[0, 0, 10, 10.0]])
    none = np.zeros((0, 4))
    assert metrics.recall(none, objects, 0.5, 10) == 0
    assert metrics.average_best_overlap(none, objects, 10) == 0
    assert metrics.top_iou([none, objects], [objects, objects]) == 0.5
    assert metrics.recall(objects, objects, 0.5, 0) == 0
    figures = metrics.summarise(metrics.measure(none, objects, [100]))
    assert {name for name, value in figures.items() if value is None} == {
        'AR@100/medium',
        'AR@100/large',
    }


def test_summary_holds_every_figure_under_its_name():
    proposals, objects = random_split(0, most=400)
    areas = area_of(objects)
    figures = metrics.summarise(metrics.measure(proposals, objects, areas))
    assert list(figures) == NAMES
    json.dumps(figures, allow_nan=False)
    for n in COUNTS:
        assert figures[f'AR@{n}'] == metrics.average_recall(proposals, objects, n)
        assert figures[f'ABO@{n}'] == metrics.average_best_overlap(proposals, objects, n)
        for threshold in (0.5, 0.7):
            expected = metrics.recall(proposals, objects, threshold, n)
            assert figures[f'recall@{threshold}/{n}'] == expected
    assert figures['top10_max_iou'] == metrics.top_iou(proposals, objects, 10)
    assert figures['AR@10'] < figures['AR@100'] < figures['AR@300']


def test_an_iou_of_just_the_threshold_counts_everywhere():
    objects = [[0, 0, 10, 10], [20, 20, 30, 30]]
    overlaps = metrics.measure([[0, 0, 10, 7], [20, 20, 30, 25]], objects, [100, 100])
    figures = metrics.summarise(overlaps)
    assert figures['recall@0.7/10'] == 0.5 and figures['recall@0.5/10'] == 1
    drawn = metrics.curves(overlaps, [2])
    assert drawn['recall@0.7/count'] == [0.5] and drawn['recall@0.5/count'] == [1]
    assert drawn['recall@100/iou'] == drawn['recall@1000/iou'] == [1, *[0.5] * 4, *[0] * 5]


def test_numbers_above_post_nms_are_left_out():
    overlaps = metrics.measure(*random_split(0), area_of(random_split(0)[1]))
    assert list(metrics.summarise(overlaps, post_nms=300)) == [
        name for name in NAMES if not name.endswith(('1000', '2000'))
    ]
    whole = [name for name in NAMES if not name.endswith('2000')]
    for post_nms in (1000, 1999):
        assert list(metrics.summarise(overlaps, post_nms=post_nms)) == whole
        assert list(metrics.tallies(overlaps, post_nms=post_nms)) == whole
    assert list(metrics.summarise(overlaps, post_nms=50)) == [
        *('AR@10', 'recall@0.5/10', 'recall@0.7/10', 'ABO@10', 'top10_max_iou')
    ]


def test_sizes_are_the_areas_given_with_cocos_bounds():
    """Each object is found at a number of thresholds of its own, so no two can be confused."""
    objects = np.array([[0, 0, 10, 10]] * 4, float) + 100 * np.arange(4)[:, None]
    proposals = objects.copy()
    proposals[:, 2] -= [0, 4, 2, 5]  # IoU 1, 0.6, 0.8, 0.5: found at 10, 3, 7 and 1 thresholds
    overlaps = metrics.measure(proposals, objects, [32**2 - 0.5, 32**2, 96**2 - 0.5, 96**2])
    figures = metrics.summarise(overlaps)
    assert figures['AR@100/small'] == 1
    assert figures['AR@100/medium'] == 0.5
    assert figures['AR@100/large'] == 0.1
    assert figures['AR@100'] == pytest.approx(21 / 40)


def test_curves_agree_with_the_single_figures():
    proposals, objects = random_split(1, most=150)
    drawn = metrics.curves(
        metrics.measure(proposals, objects, area_of(objects)), np.array([1, 7, 2000])
    )
    assert list(drawn) == [
        *('iou', 'recall@100/iou', 'recall@1000/iou'),
        *('count', 'recall@0.5/count', 'recall@0.7/count', 'AR/count'),
    ]
    json.dumps(drawn, allow_nan=False)
    for n in (100, 1000):
        expected = [metrics.recall(proposals, objects, t, n) for t in metrics.THRESHOLDS]
        assert drawn[f'recall@{n}/iou'] == expected
    assert drawn['count'] == [1, 7, 2000]
    for threshold in (0.5, 0.7):
        expected = [metrics.recall(proposals, objects, threshold, n) for n in (1, 7, 2000)]
        assert drawn[f'recall@{threshold}/count'] == expected
    expected = [metrics.average_recall(proposals, objects, n) for n in (1, 7, 2000)]
    assert drawn['AR/count'] == expected


def test_a_bound_has_one_value_at_every_number():
    proposals, objects = random_split(2, most=150)
    areas = area_of(objects)
    bound = metrics.bound(metrics.best_overlaps(proposals, objects), areas)
    figures = metrics.summarise(bound)
    assert list(figures) == NAMES
    assert figures.pop('top10_max_iou') is None
    ranked = metrics.summarise(metrics.measure(proposals, objects, areas))
    for n in COUNTS:
        for name in ('AR@', 'ABO@', 'recall@0.5/', 'recall@0.7/'):
            assert figures[f'{name}{n}'] == ranked[f'{name}1000']
            assert ranked[f'{name}{n}'] <= figures[f'{name}{n}']
    assert figures['AR@100/large'] == ranked['AR@100/large'] > 0
    assert len(set(metrics.curves(bound, [1, 10, 1000])['AR/count'])) == 1


def test_what_does_not_fit_together_is_refused():
    one = np.array([[0, 0, 1, 1.0]])
    with pytest.raises(ValueError, match='proposals of 2 images, objects of 1'):
        metrics.recall([one, one], [one], 0.5, 10)
    with pytest.raises(ValueError, match='2 areas for 1 objects'):
        metrics.measure([one], [one], [[1, 2]])
    with pytest.raises(ValueError, match='2 areas for 1 objects'):
        metrics.bound([0.5], [1, 2])
    with pytest.raises(ValueError, match=r'\[N, 4\], not \[1, 1, 4\]'):
        metrics.recall(one, [one], 0.5, 10)
    with pytest.raises(ValueError, match='not -1'):
        metrics.recall(one, one, 0.5, -1)
