"""Draws runs side by side as SVG: differences with their intervals, and counts.

A run has the same colour and dashes in every plot, by its position: `styles`.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.report import plots

# Ink for the first run, then Okabe and Ito's colours. After the last colour they start again, with
# the next kind of dashes, dots and hatches.
COLOURS = ('#1f2328', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
DASHES = ('-', (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
DOTS, HATCHES = 'osD^', ('', '////', '....', 'xxxx')
_BAND = 0.7  # share of a row's height that its runs take


def styles(runs):
    """Returns how the lines of each run are drawn: {run: keywords of a line}."""
    looks = {run: _colour_and_round(i) for i, run in enumerate(runs)}
    return {
        run: {'color': colour, 'linestyle': DASHES[round_], 'linewidth': 2, 'zorder': 3}
        for run, (colour, round_) in looks.items()
    }


@matplotlib.rc_context(plots.RC)
def intervals(figures, rows):
    """Draws differences from the first run as dots with their intervals; returns SVG bytes.

    figures are names, from top to bottom; rows is {run: [n, 3] float64 difference, low, high; NaN
    where undefined} without the first run. A dot is filled where its interval excludes 0.
    """
    height = 1.1 + len(figures) * (0.24 + 0.16 * len(rows))
    figure, axes, heights = _axes_of(figures, height, left=0.135, right=0.84)
    for edge in heights[:-1] - 0.5:
        axes.axhline(edge, color='#e6e9ed', linewidth=0.8, zorder=1)
    axes.axvline(0, color='#59636e', linewidth=1.2, zorder=2)
    for i, (name, row) in enumerate(rows.items()):
        colour, round_ = _colour_and_round(i + 1)
        y = heights + _offset(i, len(rows))
        beyond = (row[:, 1] > 0) | (row[:, 2] < 0)
        axes.hlines(y, row[:, 1], row[:, 2], color=colour, linewidth=2.2, zorder=3)
        for chosen, face in ((beyond, colour), (~beyond, 'white')):
            dots = {'color': colour, 'markerfacecolor': face, 'markersize': 8, 'zorder': 4}
            dots |= {'marker': DOTS[round_], 'markeredgewidth': 1.8, 'linestyle': ''}
            axes.plot(row[chosen, 0], y[chosen], **dots)
        at = 1 - (i + 0.5) * min(0.32 / height, 1 / len(rows))
        axes.text(1.045, at, name, transform=axes.transAxes, va='center', fontsize=11.5)
        axes.plot(1.025, at, DOTS[round_], color=colour, transform=axes.transAxes, clip_on=False)
    known = np.concatenate([row[np.isfinite(row)] for row in rows.values()])
    low, high = np.min(known, initial=-0.005), np.max(known, initial=0.005)
    axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:+.3g}' if abs(value) > 1e-12 else '0')
    axes.set_xlabel('difference from the first run: worse to the left, better to the right')
    return plots.svg(figure)


@matplotlib.rc_context(plots.RC)
def counts(series, *, reasons, runs):
    """Draws numbers of missed objects as bars, a group for each reason and a bar for each run.

    series is {run: (range(n), [n] counts)}, without those of `runs` that have none: their colours
    are not given to others. Returns SVG bytes.
    """
    height = 0.9 + len(reasons) * (0.16 + 0.22 * len(series))
    figure, axes, heights = _axes_of(reasons, height, left=0.165, right=0.93)
    for i, (run, (_, values)) in enumerate(series.items()):
        y = heights + _offset(i, len(series))
        colour, round_ = _colour_and_round(runs.index(run))
        filling = {'color': colour, 'hatch': HATCHES[round_], 'edgecolor': 'white', 'linewidth': 0}
        axes.barh(y, values, height=0.88 * _BAND / len(series), **filling)
        for at, value in zip(y, values, strict=True):
            text = f'{value:,.0f}, {run}' if at == y[0] else f'{value:,.0f}'
            aside = {'xytext': (5, 0), 'textcoords': 'offset points'}
            axes.annotate(text, (value, at), va='center', fontsize=10.5, **aside)
    axes.set_xlabel('objects missed')
    plots.whole_ticks(axes.xaxis)
    return plots.svg(figure)


def _axes_of(names, height, **sides):
    """Returns a figure of this height in inches, its axes, and the y of a row for each name."""
    figure = Figure(figsize=(15, height))
    axes = figure.subplots()
    figure.subplots_adjust(top=1 - 0.12 / height, bottom=0.62 / height, **sides)
    rows = -np.arange(len(names), dtype=float)
    axes.set_yticks(rows, names, color='#1f2328')
    axes.set_ylim(rows[-1] - 0.5, 0.5)
    axes.grid(axis='y', visible=False)
    return figure, axes, rows


def _colour_and_round(position):
    """Returns a run's colour, and which round through the colours it is in: of DASHES, .."""
    if position == 0:
        return COLOURS[0], 0
    rounds, colour = divmod(position - 1, len(COLOURS) - 1)
    return COLOURS[1 + colour], rounds % len(DASHES)


def _offset(position, count):
    """Returns the height of a run above the middle of its row, in row heights: the first on top."""
    return _BAND * ((count - 1) / 2 - position) / count
