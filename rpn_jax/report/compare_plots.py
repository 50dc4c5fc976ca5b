"""Draws runs side by side as SVG: intervals of differences, curves, losses, counts.

A run keeps its colour and its dashes in every plot: `style` of its position.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.report import plots

# Ink for the first run, then Okabe and Ito's colours; with each round through these the dashes,
# the dots and the bars' hatches change.
COLOURS = ('#1f2328', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
DASHES = ('-', (0, (5, 2)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
DOTS, HATCHES = 'osD^', ('', '////', '....', 'xxxx')
_BAND = 0.7  # share of a row's height that its runs take


def style(position):
    """Returns how the lines of the run at this position are drawn."""
    return {
        'color': _colour(position),
        'linestyle': DASHES[_round(position)],
        'linewidth': 2,
        'zorder': 3,
    }


@matplotlib.rc_context(plots.RC)
def intervals(names, rows):
    """Draws differences from the first run as dots with their intervals; returns SVG bytes.

    Args:
      names: of the figures, from top to bottom.
      rows: {RUN: [n, 3] float64 difference, low, high; NaN where undefined} without the first run.
        A dot is filled where the interval leaves out 0.
    """
    height = 1.1 + len(names) * (0.24 + 0.16 * len(rows))
    figure = Figure(figsize=(15, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.135, right=0.84, top=1 - 0.15 / height, bottom=0.65 / height)
    places = -np.arange(len(names), dtype=float)
    for edge in places[:-1] - 0.5:
        axes.axhline(edge, color='#e6e9ed', linewidth=0.8, zorder=1)
    axes.axvline(0, color='#59636e', linewidth=1.2, zorder=2)
    for i, (name, row) in enumerate(rows.items()):
        look, dot = style(i + 1), DOTS[_round(i + 1)]
        y = places + _offset(i, len(rows))
        beyond = (row[:, 1] > 0) | (row[:, 2] < 0)
        axes.hlines(y, row[:, 1], row[:, 2], color=look['color'], linewidth=2.2, zorder=3)
        for chosen, face in ((beyond, look['color']), (~beyond, 'white')):
            dots = {
                'marker': DOTS[_round(i + 1)],
                'markersize': 8,
                'markeredgewidth': 1.8,
                'linestyle': '',
            }
            axes.plot(
                *(row[chosen, 0], y[chosen]),
                **(dots | {'color': look['color'], 'markerfacecolor': face, 'zorder': 4}),
            )
        at = 1 - (i + 0.5) * min(0.32 / height, 1 / len(rows))
        axes.text(1.045, at, name, transform=axes.transAxes, va='center', fontsize=11.5)
        axes.plot(1.025, at, dot, color=look['color'], transform=axes.transAxes, clip_on=False)
    axes.set_yticks(places, names, color='#1f2328')
    axes.set_ylim(places[-1] - 0.5, 0.5)
    known = np.concatenate([row[np.isfinite(row)] for row in rows.values()])
    low, high = np.min(known, initial=-0.005), np.max(known, initial=0.005)
    axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.grid(axis='y', visible=False)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:+.3g}' if abs(value) > 1e-12 else '0')
    axes.set_xlabel('difference from the first run: worse to the left, better to the right')
    return plots.svg(figure)


@matplotlib.rc_context(plots.RC)
def losses(series):
    """Draws a loss of each run over steps, as logged (thin) and smoothed; returns SVG bytes.

    series: {RUN: (steps [n], values [n]) or None}; a run with None keeps its place in the colours.
    """
    figure, axes = plots.axes_of(15, 4.6, right=0.84)
    ends, high, low = {}, 0, np.inf
    for i, (name, points) in enumerate(series.items()):
        if points is None:
            continue
        x, y = plots.finite(*points)
        mean = plots.smooth(y, max(1, len(y) // 25))
        thin = plots.evenly(len(x), 600)
        mark = {'marker': 'o', 'markersize': 5} if len(x) == 1 else {}
        axes.plot(x[thin], y[thin], color=style(i)['color'], linewidth=0.7, alpha=0.25)
        axes.plot(x[thin], mean[thin], **style(i), **mark)
        low, high = min(low, np.min(mean)), max(high, np.max(mean))
        ends[name] = (mean[-1], style(i))
    axes.set_ylim(min(0, low), 1.1 * max(high, 1e-6))
    axes.set_xlabel('step')
    plots.thousands(axes.xaxis)
    plots.name_ends(axes, ends)
    return plots.svg(figure)


@matplotlib.rc_context(plots.RC)
def counts(names, series):
    """Draws numbers of objects as bars, a group per name and a bar per run; returns SVG bytes.

    series: {RUN: [n] counts or None}; a run with None keeps its place in the colours.
    """
    bars = sum(values is not None for values in series.values())
    height = 0.9 + len(names) * (0.16 + 0.22 * bars)
    figure = Figure(figsize=(15, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.165, right=0.93, top=1 - 0.1 / height, bottom=0.6 / height)
    drawn = 0
    for i, (run, values) in enumerate(series.items()):
        if values is None:
            continue
        y = -np.arange(len(names)) + _offset(drawn, bars)
        look = {'color': _colour(i), 'hatch': HATCHES[_round(i)], 'edgecolor': 'white'}
        axes.barh(y, values, height=0.88 * _BAND / bars, linewidth=0, **look)
        for place, value in zip(y, values, strict=True):
            said = f'{value:,.0f}, {run}' if place == y[0] else f'{value:,.0f}'
            aside = {'xytext': (5, 0), 'textcoords': 'offset points'}
            axes.annotate(said, (value, place), va='center', fontsize=10.5, **aside)
        drawn += 1
    axes.set_yticks(-np.arange(len(names)), names, color='#1f2328')
    axes.set_ylim(-len(names) + 0.5, 0.5)
    axes.grid(axis='y', visible=False)
    axes.set_xlabel('objects missed')
    plots.thousands(axes.xaxis)
    return plots.svg(figure)


def _colour(position):
    return COLOURS[1 + (position - 1) % (len(COLOURS) - 1) if position else 0]


def _round(position):
    """Returns which round through the colours a run is in, of as many as there are dashes."""
    return max(0, position - 1) // (len(COLOURS) - 1) % len(DASHES)


def _offset(position, count):
    """Returns where a run stands in its row, in row heights above the middle: first on top."""
    return _BAND * ((count - 1) / 2 - position) / count
