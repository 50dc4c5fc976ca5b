"""Differences of runs are taken on the same resamples: what is common to both cancels."""

import numpy as np
import pytest
from hypothesis import given, settings
from report_data import area_of, arrays, small_split

from rpn_jax.evaluation import metrics
from rpn_jax.evaluation.bootstrap import Tally, differences, intervals

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)
FOUND, COUNTS = RANDOM.integers(0, 4, 200).astype(float), np.full(200, 4.0)


def test_the_interval_of_a_figure_is_where_it_is():
    (low, high), value = intervals({'a': Tally(FOUND, COUNTS)})['a'], FOUND.sum() / COUNTS.sum()
    assert low < value < high
    spread = FOUND.std() / 4 / np.sqrt(200)  # of the mean of 200 images
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)


def test_a_run_differs_from_itself_by_nothing():
    tallies = {'a': Tally(FOUND, COUNTS), 'b': Tally(FOUND * 0, COUNTS * 0)}
    found = differences(tallies, tallies)
    assert tuple(found['a']) == (0, 0, 0) and tuple(found['b']) == (None, None, None)


def test_a_common_gain_has_no_interval_and_an_uneven_one_has():
    better = {'a': Tally(FOUND + 0.4, COUNTS)}
    (gain,) = differences(better, {'a': Tally(FOUND, COUNTS)}).values()
    assert gain.value == pytest.approx(0.1) and gain.high - gain.low < 1e-12
    uneven = {'a': Tally(FOUND + np.where(np.arange(200) < 100, 0.8, 0), COUNTS)}
    (gain,) = differences(uneven, {'a': Tally(FOUND, COUNTS)}).values()
    assert gain.value == pytest.approx(0.1) and 0.08 < gain.low < 0.1 < gain.high < 0.12


def test_intervals_hold_what_they_promise():
    """Two runs of one network differ beyond a 95 % interval about once in twenty."""
    beyond = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        runs = [{'a': Tally(random.binomial(4, 0.5, 60).astype(float), COUNTS[:60])} for _ in 'ab']
        (gain,) = differences(*runs, resamples=300, seed=seed).values()
        beyond += not gain.low <= 0 <= gain.high
    assert 2 <= beyond <= 22


def test_runs_on_other_numbers_of_images_are_refused():
    with pytest.raises(ValueError, match=r'runs on \[100, 200\] images'):
        differences({'a': Tally(FOUND, COUNTS)}, {'a': Tally(FOUND[:100], COUNTS[:100])})


def test_no_figures_have_no_intervals():
    assert intervals({}) == {}


@settings(max_examples=30)
@given(small_split)
def test_tallies_add_up_to_the_figures_and_are_those_of_each_image(images):
    proposals, objects = arrays(images)
    areas = [100 * area for area in area_of(objects)]  # of all three sizes
    sets = [metrics.measure(proposals, objects, areas)]
    sets.append(metrics.bound(metrics.best_overlaps(proposals, objects), areas))
    for overlaps in sets:
        found, figures = metrics.tallies(overlaps), metrics.summarise(overlaps)
        assert list(found) == list(figures)
        for name, (above, below) in found.items():
            assert above.shape == below.shape == (len(images),)
            value = above.sum() / below.sum() if below.sum() else None
            assert figures[name] == (value if value is None else pytest.approx(value)), name
    for i, (p, o) in enumerate(zip(proposals, objects, strict=True)):
        alone = metrics.summarise(metrics.measure([p], [o], areas[i : i + 1]))
        whole = metrics.tallies(sets[0])
        for name, value in alone.items():
            above, below = (part[i] for part in whole[name])
            assert value == (pytest.approx(above / below) if below else None), name
