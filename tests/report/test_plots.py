"""Plots are valid SVG, the same for the same numbers, and survive what little a short run gives."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from report_data import texts_of

from rpn_jax.report import plots

STEPS = np.arange(1.0, 101)


def _losses(value=1.0):
    return {key: (STEPS, value * np.exp(-STEPS / 50)) for key in plots.LOSSES}


def test_the_same_numbers_give_the_same_bytes():
    assert plots.losses(_losses()) == plots.losses(_losses())
    assert plots.losses(_losses()) != plots.losses(_losses(2.0))


def test_global_settings_are_left_alone():
    before = dict(matplotlib.rcParams)
    plots.recalls({'proposals': (np.array([0.5]), np.array([0.3]))}, xlabel='IoU')
    assert dict(matplotlib.rcParams) == before


def test_losses_name_their_lines_and_ln_2():
    texts = texts_of(plots.losses(_losses()))
    assert {'total', 'objectness', 'box', 'step', 'ln 2, a coin flip'} <= set(texts)
    assert 'ln 2, a coin flip' not in texts_of(plots.losses({'loss': _losses()['loss']}))


@pytest.mark.parametrize(
    'values',
    [np.array([1.0]), np.array([np.nan, 0.5, np.nan]), np.zeros(3), np.array([1e-4, 2.0, 30.0])],
)
def test_losses_survive_odd_values(values):
    texts_of(plots.losses({'loss': (np.arange(len(values), dtype=float), values)}))


def test_panels_are_titled():
    texts = texts_of(
        plots.panels({'learning rate': (STEPS, 1e-3 * STEPS), 'b': (STEPS, 0 * STEPS)})
    )
    assert {'learning rate', 'b'} <= set(texts)


def test_recalls_name_every_line_without_overlap():
    series = {name: (np.array([0.5, 0.9]), np.array([0.4, 0.1])) for name in plots.STYLES}
    root = ElementTree.fromstring(plots.recalls(series, xlabel='IoU'))
    heights = {}
    for node in root.iter():
        if node.tag.endswith('text') and ''.join(node.itertext()) in series:
            heights[''.join(node.itertext())] = float(node.get('y'))
    assert set(heights) == set(series)
    places = sorted(heights.values())
    assert min(np.diff(places)) > 12 and places[0] > 8 and places[-1] < 345


def test_recalls_take_names_for_places():
    line = (np.arange(3.0), np.array([0.1, np.nan, 0.6]))
    texts = texts_of(plots.recalls({'other': line}, xlabel='size', names=('s', 'm', 'l')))
    assert {'s', 'm', 'l', 'other', 'size'} <= set(texts)


def test_sizes_state_how_many_and_survive_a_single_box():
    rng = np.random.default_rng(0)
    many = np.exp(rng.normal(4, 0.7, (1234, 2)))
    assert 'objects (1,234)' in texts_of(plots.sizes(many, many[:50]))
    one = np.array([[32.0, 64.0]])
    assert 'proposals (1)' in texts_of(plots.sizes(one, one))


def test_large_sets_stay_small_files():
    steps = np.arange(200_000.0)
    assert len(plots.losses({'loss': (steps, 1 + np.sin(steps))})) < 80_000
    boxes = np.exp(np.random.default_rng(0).normal(4, 0.7, (50_000, 2)))
    assert len(plots.sizes(boxes, boxes)) < 300_000


def test_column_marks_what_is_missing():
    history = [{'loss': 1}, {}, {'loss': None}, {'loss': 2.5}]
    np.testing.assert_array_equal(plots.column(history, 'loss'), [1, np.nan, np.nan, 2.5])
    assert plots.column([], 'loss').shape == (0,)


def test_smooth_is_a_centred_mean_that_passes_over_nan():
    np.testing.assert_allclose(plots.smooth(np.array([1.0, 2, 6, 3]), 3), [1.5, 3, 11 / 3, 4.5])
    np.testing.assert_allclose(plots.smooth(np.array([1.0, np.nan, 3]), 3), [1, 2, 3])
    np.testing.assert_array_equal(plots.smooth(np.array([np.nan, 5.0]), 1), [np.nan, 5])


def test_evenly_keeps_both_ends():
    assert plots.evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert plots.evenly(101, 3).tolist() == [0, 50, 100]
    assert plots.evenly(0, 3).tolist() == []


def test_table_joins_lines_on_their_places():
    series = {
        'a': (np.array([1.0, 10]), np.array([0.5, np.nan])),
        'b': (np.array([10.0, 100]), np.array([0.25, 0.125])),
    }
    header, rows = plots.table(series, 'count')
    assert header == ['count', 'a', 'b']
    assert rows == [['1', '0.5', ''], ['10', '', '0.25'], ['100', '', '0.125']]
    assert len(plots.table({'a': (STEPS, STEPS)}, 'step')[1]) == 24


def test_describe_says_where_lines_start_and_end():
    series = {'a': (np.array([1.0, 10, 100]), np.array([np.nan, 0.2, 0.5]))}
    assert plots.describe('Recall', series) == 'Recall: a 0.2 at 10 to 0.5 at 100.'


def test_columns_are_all_points_of_all_lines():
    series = {'a': (STEPS, STEPS / 3), 'b': (STEPS[::2], STEPS[::2])}
    found = plots.columns(series, 'step')
    assert list(found) == ['step', 'a', 'b'] and found['step'] == STEPS.tolist()
    assert found['a'][1] == 2 / 3 and found['b'][:3] == [1, None, 3]
    names = ('s', 'm')
    line = {'a': (np.arange(2.0), np.array([np.nan, 0.5]))}
    assert plots.columns(line, 'size', names) == {'size': ['m'], 'a': [0.5]}
