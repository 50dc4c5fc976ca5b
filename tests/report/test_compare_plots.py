"""Plots of runs side by side name every run, keep its colour and pass over what a run lacks."""

import numpy as np
from report_data import texts_of

from rpn_jax.report import compare_plots


def test_styles_are_told_apart_and_the_first_run_alone_is_black():
    styles = compare_plots.styles(range(3 * len(compare_plots.COLOURS))).values()
    assert len({(style['color'], str(style['linestyle'])) for style in styles}) == len(styles)
    ink = compare_plots.COLOURS[0]
    assert [i for i, style in enumerate(styles) if style['color'] == ink] == [0]


def test_intervals_name_figures_and_runs_and_fill_a_dot_beyond_zero():
    rows = {f'run {i}': np.array([[0.1, 0.05, 0.2], [-0.1, -0.3, 0.1]]) for i in range(7)}
    rows['unknown'] = np.full((2, 3), np.nan)
    texts = texts_of(compare_plots.intervals(['AR@10', 'AR@100'], rows))
    assert {'AR@10', 'AR@100', '0', *rows} <= set(texts)

    def white(low, high):
        drawn = compare_plots.intervals(['AR@10'], {'b': np.array([[0.1, low, high]])})
        return drawn.count(b'fill: #ffffff; stroke: #0072b2')

    assert white(-0.1, 0.3) == white(0.0, 0.3) > white(0.05, 0.3) == white(-0.3, -0.1) == 0


def test_counts_are_written_beside_their_bars_in_the_colour_of_the_run():
    series = {'a': (None, np.array([1234.0, 0])), 'c': (None, np.array([5.0, 7]))}
    drawn = compare_plots.counts(series, reasons=['no_anchor', 'clipped'], runs=['a', 'b', 'c'])
    texts = [text.strip() for text in texts_of(drawn)]
    assert {'1,234, a', '5, c', '7', 'no_anchor', 'clipped'} <= set(texts)
    used = [colour.lower().encode() in drawn for colour in compare_plots.COLOURS[:3]]
    assert used == [True, False, True]
