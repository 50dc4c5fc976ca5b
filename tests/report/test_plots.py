"""Plots are valid SVG, the same for the same numbers, and survive what little a short run gives."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from report_data import texts_of

from rpn_jax.report import plots

STEPS = np.arange(1.0, 101)
LOSSES = {key: (STEPS, np.exp(-STEPS / 50)) for key in plots.LOSSES}


def test_the_same_numbers_give_the_same_bytes_and_global_settings_stay():
    before = dict(matplotlib.rcParams)
    drawn = plots.losses(LOSSES)
    assert drawn == plots.losses(LOSSES)
    assert drawn != plots.losses(LOSSES | {'loss_box': (STEPS, STEPS)})
    assert dict(matplotlib.rcParams) == before


def test_losses_name_their_lines_and_ln_2():
    texts = texts_of(plots.losses(LOSSES))
    assert {'total', 'objectness', 'box', 'step', 'ln 2, untrained'} <= set(texts)
    styles = {'a run': {'color': '#009E73'}}
    drawn = plots.losses({'a run': LOSSES['loss']}, styles=styles, right=0.8)
    assert 'a run' in texts_of(drawn) and 'ln 2, untrained' not in texts_of(drawn)
    assert b'#009e73' in drawn.lower()


@pytest.mark.parametrize(
    'values',
    [np.array([1.0]), np.array([np.nan, 0.5, np.nan]), np.zeros(3), np.array([1e-4, 2.0, 30.0])],
)
def test_losses_survive_odd_values(values):
    texts_of(plots.losses({'loss': (np.arange(len(values), dtype=float), values)}))


def test_panels_are_titled_and_have_a_legend_of_styles():
    panels = {'rate': {'x': (STEPS, 1e-3 * STEPS)}, 'b': {'x': (STEPS[:1], np.full(1, np.nan))}}
    assert {'rate', 'b'} <= set(texts_of(plots.panels(panels)))
    assert 'x' not in texts_of(plots.panels(panels))
    assert 'x' in texts_of(plots.panels(panels, {'x': {'color': '#009E73'}}))


def test_recalls_name_every_line_without_overlap():
    series = {name: (np.array([0.5, 0.9]), np.array([0.4, 0.1])) for name in plots.STYLES}
    root = ElementTree.fromstring(plots.recalls(series, xlabel='IoU'))
    heights = {}
    for node in root.iter():
        if node.tag.endswith('text') and ''.join(node.itertext()) in series:
            heights[''.join(node.itertext())] = float(node.get('y'))
    assert set(heights) == set(series)
    ys = sorted(heights.values())
    assert min(np.diff(ys)) > 12 and ys[0] > 8 and ys[-1] < 345


def test_recalls_take_names_for_ticks():
    line = (np.arange(3.0), np.array([0.1, np.nan, 0.6]))
    texts = texts_of(plots.recalls({'other': line}, xlabel='size', names=('s', 'm', 'l')))
    assert {'s', 'm', 'l', 'other', 'size'} <= set(texts)


def test_sizes_have_counts_and_survive_a_single_box():
    rng = np.random.default_rng(0)
    many = np.exp(rng.normal(4, 0.7, (1234, 2)))
    assert 'objects (1,234)' in texts_of(plots.sizes(many, many[:50]))
    one = np.array([[32.0, 64.0]])
    assert 'proposals (1)' in texts_of(plots.sizes(one, one))


def test_large_sets_stay_small_files():
    steps = np.arange(50_000.0)
    assert len(plots.losses({'loss': (steps, 1 + np.sin(steps))})) < 80_000
    boxes = np.exp(np.random.default_rng(0).normal(4, 0.7, (50_000, 2)))
    assert len(plots.sizes(boxes, boxes)) < 300_000


def test_column_marks_what_is_missing():
    history = [{'loss': 1}, {}, {'loss': None}, {'loss': 2.5}]
    np.testing.assert_array_equal(plots.column(history, 'loss'), [1, np.nan, np.nan, 2.5])
    assert plots.column([], 'loss').shape == (0,)


def test_smooth_is_a_centred_mean_that_skips_nan():
    values = np.where(np.arange(110) % 7 == 3, np.nan, np.arange(110.0) ** 2)
    expected = [np.nanmean(values[max(0, i - 2) : i + 3]) for i in range(110)]
    np.testing.assert_allclose(plots.smooth(values), expected)
    np.testing.assert_array_equal(plots.smooth(np.array([np.nan, 5.0])), [np.nan, 5])


def test_evenly_keeps_both_ends():
    assert plots.evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert plots.evenly(101, 3).tolist() == [0, 50, 100]
    assert plots.evenly(0, 3).tolist() == []
