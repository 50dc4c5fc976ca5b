"""Intervals, and differences of runs on the same resamples, in which what is common cancels."""

import numpy as np
import pytest
from report_data import LIMITS, random_results

from rpn_jax.evaluation import protocols
from rpn_jax.evaluation.bootstrap import Tally, differences, estimates

RANDOM = np.random.default_rng(0)
RECALLED, COUNTS = RANDOM.integers(0, 4, 200).astype(float), np.full(200, 4.0)
ONE = {'a': Tally(RECALLED, COUNTS)}


def test_the_interval_of_a_figure_is_as_wide_as_its_spread():
    value, low, high = estimates(ONE)['a']
    assert low < value == RECALLED.sum() / COUNTS.sum() < high
    spread = RECALLED.std() / 4 / np.sqrt(200)  # of the mean of 200 images
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)


def test_intervals_are_those_of_a_plain_loop():
    tallies = protocols.rpn_jax(random_results(5), LIMITS)
    rng = np.random.default_rng(3)
    drawn = np.concatenate([rng.integers(8, size=(rows, 8)) for rows in (100, 100, 50)])
    found = estimates(tallies, resamples=250, seed=3, level=0.9)
    assert found.keys() == tallies.keys()
    for name, (above, below) in tallies.items():
        ratios = [
            sum(above[i] for i in images) / sum(below[i] for i in images)
            for images in drawn
            if sum(below[i] for i in images)
        ]
        bounds = np.quantile(ratios, [0.05, 0.95]) if ratios else (None, None)
        assert tuple(found[name][1:]) == pytest.approx(tuple(bounds), abs=1e-12), name
    assert estimates(tallies, 250, 3, 0.9) == found != estimates(tallies, 250, 4, 0.9)


def test_intervals_without_variance_are_points():
    none, some = np.zeros(9), np.arange(9.0)
    tallies = {'whole': Tally(some, some), 'none': Tally(none, none)}
    tallies['rare'] = Tally(np.eye(9)[0], np.eye(9)[0])  # undefined in a third of the resamples
    assert estimates(tallies) == {'whole': (1, 1, 1), 'none': (None,) * 3, 'rare': (1, 1, 1)}
    assert estimates({'a': Tally(np.zeros(0), np.zeros(0))}) == {'a': (None, None, None)}
    assert estimates({}) == {}


def test_a_run_differs_from_itself_by_nothing():
    tallies = ONE | {'b': Tally(RECALLED * 0, COUNTS * 0)}
    own = differences(tallies, tallies)
    assert tuple(own['a']) == (0, 0, 0) and tuple(own['b']) == (None, None, None)


def test_a_common_gain_has_no_interval_and_an_uneven_one_has():
    (gain,) = differences({'a': Tally(RECALLED + 0.4, COUNTS)}, ONE).values()
    assert gain.value == pytest.approx(0.1) and gain.high - gain.low < 1e-12
    uneven = {'a': Tally(RECALLED + np.where(np.arange(200) < 100, 0.8, 0), COUNTS)}
    (gain,) = differences(uneven, ONE).values()
    assert gain.value == pytest.approx(0.1) and 0.08 < gain.low < 0.1 < gain.high < 0.12


def test_runs_on_other_numbers_of_images_are_refused():
    with pytest.raises(ValueError, match=r'runs on \[100, 200\] images'):
        differences(ONE, {'a': Tally(RECALLED[:100], COUNTS[:100])})
