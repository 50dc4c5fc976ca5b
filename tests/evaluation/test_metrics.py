"""Measures against plain loops, and cases worked by hand."""

import json

import numpy as np
import pytest
from helpers import loop_iou
from hypothesis import given
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
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
NONE = np.zeros((0, 4))


def measured(proposals, objects):
    return metrics.measure(proposals, objects, area_of(objects))


def loop_top_iou(proposals, objects, count):
    means = []
    for ranked, own in zip(proposals, objects, strict=True):
        if len(own):
            best = [max(loop_iou(p, o) for o in own) for p in ranked[:count]]
            means.append(sum(best) / len(best) if best else 0.0)
    return sum(means) / len(means) if means else None


def test_iou_by_hand():
    a = [[0, 0, 10, 10], [0, 0, 0, 0], [5, 5, 15, 15]]
    b = [[0, 0, 10, 7], [0, 0, 0, 0], [10, 0, 20, 10]]
    expected = [[0.7, 0, 0], [0, 0, 0], [10 / 160, 0, 25 / 175]]
    assert metrics.iou(a, b).tolist() == expected
    bad = [[np.nan] * 4, [8, 0, 2, 10], [8, 8, 2, 2]]
    assert metrics.iou(bad, [[0, 0, 10, 10]]).tolist() == [[0], [0], [0]]
    assert metrics.iou(NONE, np.zeros((3, 4))).shape == (0, 3)
    a, b = np.array([[[0, 0, 3, 1]], [[0, 0, 1, 1]]], np.float32)  # compared in float64
    assert metrics.iou(a, b)[0, 0] == metrics.iou(b, a)[0, 0] == 1 / 3
    assert metrics.THRESHOLDS.tolist() == list(THRESHOLDS)


@given(small_split, st.integers(0, 16))
def test_figures_agree_with_loops(images, limit):
    proposals, objects = arrays(images)
    best = [
        max([loop_iou(p, o) for p in ranked[:limit]], default=0.0)
        for ranked, own in zip(proposals, objects, strict=True)
        for o in own
    ]
    assert metrics.best_overlaps(proposals, objects, limit).tolist() == pytest.approx(best)

    def close(value):
        return pytest.approx(value) if best else None

    recalls = [sum(value >= t for value in best) / max(len(best), 1) for t in THRESHOLDS]
    for threshold, expected in zip(THRESHOLDS, recalls, strict=True):
        assert metrics.recall(proposals, objects, threshold, limit) == close(expected)
    assert metrics.average_recall(proposals, objects, limit) == close(sum(recalls) / 10)
    abo = metrics.average_best_overlap(proposals, objects, limit)
    assert abo == close(sum(best) / max(len(best), 1))
    assert metrics.top_iou(proposals, objects) == close(loop_top_iou(proposals, objects, 10))
    running = measured(proposals, objects).running
    assert len(running) == max(len(p) for p in proposals) + 1
    for n, row in enumerate(running):
        assert row.tolist() == metrics.best_overlaps(proposals, objects, n).tolist()


def test_one_image_is_a_split_of_one():
    proposals, _ = random_split(3, images=1)
    objects = [np.array([[10.0, 10, 90, 90], [30, 0, 40, 200]])]
    for function in (
        *(metrics.best_overlaps, metrics.average_recall),
        *(metrics.average_best_overlap, metrics.top_iou),
    ):
        one = function(proposals[0], objects[0])
        assert np.array_equal(one, function(proposals, objects))
        assert np.array_equal(one, function(proposals[0].tolist(), objects[0].tolist()))
    one = metrics.measure(proposals[0], objects[0], area_of(objects)[0])
    assert metrics.summarise(one) == metrics.summarise(measured(proposals, objects))


@pytest.mark.parametrize(
    ('proposals', 'objects'),
    [([NONE], [NONE]), ([[[0, 0, 1, 1]]], [[]]), (NONE, NONE), ([], []), (np.ones((3, 4)), NONE)],
)
def test_figures_over_no_objects_are_undefined(proposals, objects):
    assert metrics.recall(proposals, objects, 0.5, 10) is None
    assert metrics.top_iou(proposals, objects) is None
    overlaps = metrics.measure(proposals, objects, [])
    assert set(metrics.summarise(overlaps).values()) == {None}
    assert metrics.curves(overlaps, [1])['AR/count'] == [None]


def test_no_proposals_recall_nothing():
    objects = np.array([[0, 0, 10, 10.0]])
    assert metrics.recall(NONE, objects, 0.5, 10) == metrics.recall(objects, objects, 0.5, 0) == 0
    assert metrics.top_iou([NONE, objects], [objects, objects]) == 0.5
    figures = metrics.summarise(metrics.measure(NONE, objects, [100]))
    undefined = {name for name, value in figures.items() if value is None}
    assert undefined == {'AR@100/medium', 'AR@100/large'}


def test_summary_and_curves_have_every_figure_under_its_name():
    proposals, objects = random_split(0, most=400)
    overlaps = measured(proposals, objects)
    figures, curves = metrics.summarise(overlaps), metrics.curves(overlaps, np.array(COUNTS))
    assert list(figures) == NAMES
    json.dumps([figures, curves], allow_nan=False)
    for i, n in enumerate(COUNTS):
        expected = metrics.average_recall(proposals, objects, n)
        assert figures[f'AR@{n}'] == curves['AR/count'][i] == expected
        assert figures[f'ABO@{n}'] == metrics.average_best_overlap(proposals, objects, n)
        for t in (0.5, 0.7):
            expected = metrics.recall(proposals, objects, t, n)
            assert figures[f'recall@{t}/{n}'] == curves[f'recall@{t}/count'][i] == expected
    assert figures['top10_max_iou'] == metrics.top_iou(proposals, objects)
    for n in (100, 1000):
        expected = [metrics.recall(proposals, objects, t, n) for t in THRESHOLDS]
        assert curves[f'recall@{n}/iou'] == expected
    assert curves['count'] == list(COUNTS)


def test_an_iou_of_just_the_threshold_counts_everywhere():
    objects = [[0, 0, 10, 10], [20, 20, 30, 30]]
    proposals = [[0, 0, 10, 7], [20, 20, 30, 25]]
    assert metrics.recall(proposals, objects, 0.7) == 0.5
    overlaps = metrics.measure(proposals, objects, [100, 100])
    figures = metrics.summarise(overlaps)
    assert figures['recall@0.7/10'] == 0.5 and figures['recall@0.5/10'] == 1
    drawn = metrics.curves(overlaps, [2])
    assert drawn['recall@0.7/count'] == [0.5] and drawn['recall@0.5/count'] == [1]
    assert drawn['recall@100/iou'] == drawn['recall@1000/iou'] == [1, *[0.5] * 4, *[0] * 5]


@pytest.mark.parametrize(
    ('post_nms', 'least'), [(300, 1000), (1000, 2000), (1999, 2000), (50, 100)]
)
def test_numbers_above_post_nms_are_left_out(post_nms, least):
    overlaps = measured(*random_split(0))
    names = [n for n in NAMES if not any(str(c) in n for c in COUNTS if c >= least)]
    assert list(metrics.summarise(overlaps, post_nms=post_nms)) == names
    assert list(metrics.tallies(overlaps, post_nms=post_nms)) == names
    columns = [name for name in metrics.COLUMNS if name in names]
    assert metrics.columns(dict.fromkeys(names)) == columns
    short = [name for name in columns if not name.endswith(('small', 'medium', 'large'))]
    assert metrics.columns(dict.fromkeys(names), sizes=False) == short


def test_sizes_are_the_areas_given_with_cocos_bounds():
    """Each object is recalled at a number of thresholds of its own: no two can be confused."""
    objects = np.array([[0, 0, 10, 10]] * 4, float) + 100 * np.arange(4)[:, None]
    proposals = objects.copy()
    proposals[:, 2] -= [0, 4, 2, 5]  # IoU 1, 0.6, 0.8, 0.5: recalled at 10, 3, 7 and 1 thresholds
    overlaps = metrics.measure(proposals, objects, [32**2 - 0.5, 32**2, 96**2 - 0.5, 96**2])
    figures = metrics.summarise(overlaps)
    assert [figures[f'AR@100/{size}'] for size in metrics.AREAS] == [1, 0.5, 0.1]
    assert figures['AR@100'] == pytest.approx(21 / 40)
    tallies = metrics.tallies(overlaps)
    assert [tallies[f'AR@100/{size}'].value for size in metrics.AREAS] == [1, 0.5, 0.1]


def test_a_bound_has_one_value_at_every_number():
    proposals, objects = random_split(2, most=150)
    bound = metrics.bound(metrics.best_overlaps(proposals, objects), area_of(objects))
    figures = metrics.summarise(bound)
    assert list(figures) == NAMES
    assert figures.pop('top10_max_iou') is None
    ranked = metrics.summarise(measured(proposals, objects))
    for n in COUNTS:
        for name in ('AR@', 'ABO@', 'recall@0.5/', 'recall@0.7/'):
            assert ranked[f'{name}{n}'] <= figures[f'{name}{n}'] == ranked[f'{name}1000']
    assert figures['AR@100/large'] == ranked['AR@100/large'] > 0
    assert len(set(metrics.curves(bound, [1, 10, 1000])['AR/count'])) == 1


@given(small_split)
def test_tallies_add_up_to_the_figures_and_are_those_of_each_image(images):
    proposals, objects = arrays(images)
    areas = [100 * area for area in area_of(objects)]  # of all three sizes
    ranked = metrics.measure(proposals, objects, areas)
    bound = metrics.bound(metrics.best_overlaps(proposals, objects), areas)
    for overlaps in (ranked, bound):
        tallies, figures = metrics.tallies(overlaps), metrics.summarise(overlaps)
        assert list(tallies) == list(figures)
        for name, tally in tallies.items():
            assert tally.numerator.shape == tally.denominator.shape == (len(images),)
            value = tally.value
            assert figures[name] == (value if value is None else pytest.approx(value)), name
    for i, (p, o) in enumerate(zip(proposals, objects, strict=True)):
        own = metrics.summarise(metrics.measure([p], [o], areas[i : i + 1]))
        for name, (above, below) in metrics.tallies(ranked).items():
            assert own[name] == (pytest.approx(above[i] / below[i]) if below[i] else None), name


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda one: metrics.recall([one, one], [one], 0.5, 10), 'of 2 images, objects of 1'),
        (lambda one: metrics.measure([one], [one], [[1, 2]]), '2 areas for 1 objects'),
        (lambda one: metrics.bound([0.5], [1, 2]), '2 areas for 1 objects'),
        (lambda one: metrics.recall(one, [one], 0.5, 10), r'\[N, 4\], not \[1, 1, 4\]'),
        (lambda one: metrics.recall(one, one, 0.5, -1), 'not -1'),
    ],
)
def test_what_does_not_fit_together_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.array([[0, 0, 1, 1.0]]))
