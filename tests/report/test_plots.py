"""Plots are valid SVG, the same for the same numbers, and survive what little a short run gives."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
from report_data import texts_of

from rpn_jax.report import plots

STEPS = np.arange(1.0, 101)
LOSSES = {key: (STEPS, np.exp(-STEPS / 50)) for key in plots.LOSSES}


def test_losses_name_their_lines_are_reproducible_and_leave_global_settings():
    before = dict(matplotlib.rcParams)
    drawn = plots.losses(LOSSES)
    assert drawn == plots.losses(LOSSES) and dict(matplotlib.rcParams) == before
    assert drawn != plots.losses(LOSSES | {'loss_box': (STEPS, STEPS)})
    assert {'total', 'objectness', 'box', 'step', 'ln 2, untrained'} <= set(texts_of(drawn))
    styles = {'a run': {'color': '#009E73'}}
    drawn = plots.losses({'a run': LOSSES['loss']}, styles=styles, right=0.8)
    assert 'a run' in texts_of(drawn) and 'ln 2, untrained' not in texts_of(drawn)
    assert b'#009e73' in drawn.lower()
    for values in ([1.0], [np.nan, 0.5, np.nan], np.zeros(3), [1e-4, 2.0, 30.0]):
        texts_of(plots.losses({'loss': (np.arange(float(len(values))), np.array(values))}))


def test_panels_are_titled_and_have_a_legend_of_styles():
    panels = {'rate': {'x': (STEPS, 1e-3 * STEPS)}, 'b': {'x': (STEPS[:1], np.full(1, np.nan))}}
    texts = texts_of(plots.panels(panels))
    assert {'rate', 'b'} <= set(texts) and 'x' not in texts
    assert 'x' in texts_of(plots.panels(panels, {'x': {'color': '#009E73'}}))


def test_recalls_name_every_line_without_overlap_and_take_names_for_ticks():
    series = {name: (np.array([0.5, 0.9]), np.array([0.4, 0.1])) for name in plots.STYLES}
    root = ElementTree.fromstring(plots.recalls(series, xlabel='IoU'))
    nodes = [(''.join(node.itertext()), node) for node in root.iter() if node.tag.endswith('text')]
    heights = {name: float(node.get('y')) for name, node in nodes if name in series}
    assert set(heights) == set(series)
    ys = sorted(heights.values())
    assert min(np.diff(ys)) > 12 and ys[0] > 8 and ys[-1] < 345
    line = (np.arange(3.0), np.array([0.1, np.nan, 0.6]))
    texts = texts_of(plots.recalls({'other': line}, xlabel='size', names=('s', 'm', 'l')))
    assert {'s', 'm', 'l', 'other', 'size'} <= set(texts)


def test_sizes_have_counts_and_large_sets_stay_small_files():
    boxes = np.exp(np.random.default_rng(0).normal(4, 0.7, (50_000, 2)))
    drawn = plots.sizes(boxes, boxes[:1])
    assert len(drawn) < 300_000 and {'objects (50,000)', 'proposals (1)'} <= set(texts_of(drawn))
    texts_of(plots.sizes(boxes[:1], boxes[:1]))
    steps = np.arange(50_000.0)
    assert len(plots.losses({'loss': (steps, 1 + np.sin(steps))})) < 80_000


def test_columns_mark_what_is_missing_and_means_skip_it():
    history = [{'loss': 1}, {}, {'loss': None}, {'loss': 2.5}]
    np.testing.assert_array_equal(plots.column(history, 'loss'), [1, np.nan, np.nan, 2.5])
    assert plots.column([], 'loss').shape == (0,)
    values = np.where(np.arange(110) % 7 == 3, np.nan, np.arange(110.0) ** 2)
    expected = [np.nanmean(values[max(0, i - 2) : i + 3]) for i in range(110)]
    np.testing.assert_allclose(plots.smooth(values), expected)
    np.testing.assert_array_equal(plots.smooth(np.array([np.nan, 5.0])), [np.nan, 5])
