"""Draws the report's plots as SVG: the same bytes for the same numbers, no global pyplot state.

Every plot of lines takes series, {name: (x [n], y [n])} float64, NaN where a value is missing, and
styles, {name: how its line is drawn}. `right` is where its axes end and names begin, as a share of
the width.
"""

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from rpn_jax.diagnosis.statistics import evenly

LOSSES = {'loss': 'total', 'loss_objectness': 'objectness', 'loss_box': 'box'}
BOUNDS = ('anchors', 'oracle')  # baselines that no proposals can exceed; all others are blind

_INK, _MUTED = '#1f2328', '#59636e'
_ORANGE, _BLUE = '#E69F00', '#0072B2'
_LINE = {'linewidth': 1.6, 'linestyle': '-', 'zorder': 3}
_LOSS = {'linewidth': 2.2, 'linestyle': '-', 'zorder': 4}
_ABLATION = _LINE | {'linestyle': (0, (5, 2))}
# Okabe and Ito's colours; every line also carries its name, so colour is never the only key.
STYLES = {
    'proposals': {'color': _BLUE, 'linewidth': 2.8, 'linestyle': '-', 'zorder': 5},
    'random_boxes': _LINE | {'color': _ORANGE},
    'random_anchors': _LINE | {'color': '#009E73'},
    'gaussian_boxes': _LINE | {'color': '#CC79A7'},
    'quadrants': _LINE | {'color': '#D55E00'},
    'scores_alone': _ABLATION | {'color': '#009E73'},
    'random_order': _ABLATION | {'color': _ORANGE},
    'oracle_scores': _ABLATION | {'color': '#CC79A7'},
    'anchors': {'color': '#9aa2ab', 'linewidth': 1.4, 'linestyle': (0, (6, 3)), 'zorder': 2},
    'oracle': {'color': '#6b737c', 'linewidth': 1.4, 'linestyle': (0, (1.5, 2)), 'zorder': 2},
    'loss': _LOSS | {'color': _INK},
    'loss_objectness': _LOSS | {'color': _BLUE},
    'loss_box': _LOSS | {'color': '#D55E00'},
}
_OTHER = _LINE | {'color': '#56B4E9'}
_METADATA = ('Creator', 'Date', 'Format', 'Type')  # that matplotlib would write into a file
_POINTS = 600  # most points per line: more cannot be told apart and makes the file large

RC = matplotlib.rc_params_from_file(Path(__file__).with_suffix('.mplstyle'), False, False)


def column(history, key):
    """Returns one key of a list of dicts as [n] float64, NaN where it is missing or None."""
    return np.array([line.get(key) for line in history], np.float64)


def smooth(values):
    """Returns [n] floats averaged over a moving window of n / 25 of them, centred; skips NaN."""
    known = np.isfinite(values)
    window = np.ones(2 * (len(values) // 50) + 1)
    total, count = (np.convolve(v, window, 'same') for v in (np.where(known, values, 0), known))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def finite(x, y):
    """Returns the points of a line where both numbers are finite."""
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


@matplotlib.rc_context(RC)
def losses(series, *, styles=STYLES, right=0.87):
    """Draws losses over steps, as logged (thin) and smoothed; returns SVG bytes."""
    figure, axes = _axes_of(15, 5.2, right=right)
    ends, low, high = {}, np.inf, np.log(2) if 'loss_objectness' in series else 1e-6
    for name, points in series.items():
        x, y = finite(*points)
        mean = smooth(y)
        low, high = min(low, np.min(mean)), max(high, np.max(mean))
        draw_line(axes, x, y, {'color': styles[name]['color'], 'linewidth': 0.7, 'alpha': 0.28})
        draw_line(axes, x, mean, styles[name])
        ends[LOSSES.get(name, name)] = (mean[-1], styles[name])
    if 'loss_objectness' in series:
        # Every anchor with a probability of one half: the loss at the start of training.
        style = {'color': _MUTED, 'linewidth': 1.2, 'linestyle': ':', 'zorder': 2}
        axes.axhline(np.log(2), **style)
        ends['ln 2, untrained'] = (np.log(2), style)
    if low > 0 and high > 8 * low:
        axes.set_yscale('log')
        _plain_ticks(axes.yaxis, [a * 10.0**b for b in range(-6, 7) for a in (1, 2, 5)])
        axes.set_ylim(low / 1.5, high * 1.4)
    else:
        axes.set_ylim(min(0, low), 1.1 * high)
    axes.set_xlabel('step')
    whole_ticks(axes.xaxis)
    _name_ends(axes, ends)
    return svg(figure)


@matplotlib.rc_context(RC)
def panels(series, styles=None):
    """Draws a row of small panels over steps, {title: series}; returns SVG bytes.

    With styles there is a legend of the names.
    """
    figure = Figure(figsize=(15, 3.3))
    grid = figure.subplots(1, len(series), squeeze=False)[0]
    right = 0.95 - 0.007 * max(map(len, styles)) if styles else 0.985
    figure.subplots_adjust(left=0.052, right=right, top=0.87, bottom=0.19, wspace=0.22)
    for axes, (title, lines) in zip(grid, series.items(), strict=True):
        lines = {name: finite(*xy) for name, xy in lines.items()}
        for name, (x, y) in lines.items():
            style = styles[name] if styles else {'linewidth': 1.8}
            draw_line(axes, x, y, style | {'label': name})
        values = np.concatenate([y for _, y in lines.values()])
        axes.set_ylim(np.min(values, initial=0), 1.12 * np.max(values, initial=1e-12))
        axes.set_title(title)
        axes.set_xlabel('step')
        axes.locator_params(axis='x', nbins=4)
        axes.locator_params(axis='y', nbins=5)
        whole_ticks(axes.xaxis)
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.6g}')
    if styles:
        figure.legend(*grid[0].get_legend_handles_labels(), loc='center right')
    return svg(figure)


@matplotlib.rc_context(RC)
def recalls(series, *, xlabel, log_x=False, names=None, full=False, styles=STYLES, right=0.73):
    """Draws recall or average recall as lines that are named at their right ends.

    names are tick labels at x = 0, 1, .., where x is not a number; full: whether the y axis always
    ends at 1. Returns SVG bytes.
    """
    figure, axes = _axes_of(7.4, 4.9, right=right)
    ends, top = {}, 0
    for name in sorted(series, key=lambda name: (name != 'proposals', name in BOUNDS)):
        style = styles.get(name, _OTHER)
        draw_line(axes, *series[name], style)
        known = finite(*series[name])[1]
        ends[name] = (known[-1], style)
        top = max(top, np.max(known))
    top = 1 if full else min(1, np.ceil(11 * top + 1e-9) / 10)
    axes.set_ylim(0, max(top, 0.05) * 1.015)
    if log_x:
        axes.set_xscale('log')
        _plain_ticks(axes.xaxis, [1, 3, 10, 30, 100, 300, 1000, 3000, 10000])
    if names:
        axes.set_xticks(range(len(names)), names)
    axes.set_xlabel(xlabel)
    axes.set_ylabel('recall')
    _name_ends(axes, ends)
    return svg(figure)


@matplotlib.rc_context(RC)
def sizes(objects, proposals):
    """Draws the sizes of two sets of boxes: width against height, and histograms of sqrt(area).

    objects [n, 2] and proposals [m, 2] are float widths and heights in pixels, all above zero.
    Returns SVG bytes.
    """
    figure = Figure(figsize=(15, 4.7))
    grid = figure.subplots(1, 3, width_ratios=(1, 1, 1.35))
    figure.subplots_adjust(left=0.052, right=0.985, top=0.9, bottom=0.14, wspace=0.2)
    edges = np.percentile(np.concatenate([objects, proposals]), (0.5, 99.5)) * (0.7, 1.4)
    sets = (('objects', objects, _ORANGE), ('proposals', proposals, _BLUE))
    log = {'xscale': 'log', 'yscale': 'log'}
    bins = {'gridsize': (26, 15), 'extent': np.log10([*edges, *edges]), 'bins': 'log', 'mincnt': 1}
    for axes, (name, pairs, colour) in zip(grid, sets, strict=False):
        shades = LinearSegmentedColormap.from_list(name, ['#e4e9ee', colour])
        inside = pairs[np.all((pairs > edges[0]) & (pairs < edges[1]), 1)]
        if len(inside):
            axes.hexbin(*inside.T, cmap=shades, linewidths=0.2, **log, **bins)
        axes.plot(edges, edges, color=_MUTED, linewidth=0.8, linestyle=':')
        axes.set(**log, xlim=edges, ylim=edges, xlabel='width (pixels)')
        step = 2.0 if edges[1] < 50 * edges[0] else 4.0
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis, [step**power for power in range(14)])
        axes.set_title(f'{name} ({len(pairs):,})')
    grid[0].set_ylabel('height (pixels)')
    _size_shares(grid[2], sets, edges)
    return svg(figure)


def _size_shares(axes, sets, edges):
    """Draws the two histograms of sqrt(area), and above them their interquartile ranges."""
    bins = np.geomspace(*edges, 41)
    roots = [np.sqrt(np.prod(pairs, 1)) for _, pairs, _ in sets]
    shares = [np.histogram(sides, bins)[0] / len(sides) for sides in roots]
    top = np.max(shares)
    for row, (name, _, colour) in enumerate(sets):
        axes.stairs(shares[row], bins, fill=True, color=colour, alpha=0.3)
        axes.stairs(shares[row], bins, color=colour, linewidth=1.6)
        low, middle, high = np.percentile(roots[row], (25, 50, 75))
        y = top * (1.28 - 0.11 * row)
        axes.plot([low, high], [y, y], color=colour, linewidth=7, solid_capstyle='butt')
        axes.plot([middle], [y], color='white', marker='|', markersize=7, markeredgewidth=2)
        on_left = low * high > edges[0] * edges[1]  # the side with more room
        x, align = (low / 1.06, 'right') if on_left else (high * 1.06, 'left')
        axes.text(x, y, name, va='center', ha=align, fontsize=11)
    axes.set(xscale='log', xlim=edges, ylim=(0, 1.4 * top), xlabel='square root of area (pixels)')
    axes.set_title('share of boxes; bars: middle half and median')
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.locator_params(axis='y', nbins=6)
    _plain_ticks(axes.xaxis, [2.0**power for power in range(13)])


def draw_line(axes, x, y, style):
    """Draws a line through at most _POINTS of its points; a single point gets a marker."""
    thin = evenly(len(x), _POINTS)
    marker = {'marker': 'o', 'markersize': 5} if np.sum(np.isfinite(y)) == 1 else {}
    axes.plot(x[thin], y[thin], **(style | marker))


def _axes_of(width, height, *, right):
    """Returns a figure of this size in inches, and its axes, with room for names on their right."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    left = 0.75 / width
    figure.subplots_adjust(left=left, right=right, top=0.965, bottom=0.6 / height)
    return figure, axes


def whole_ticks(axis):
    """Sets ticks at whole numbers alone, written with separators."""
    axis.set_major_locator(MaxNLocator(nbins='auto', integer=True, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(lambda value, _: f'{value:,.0f}')


def _plain_ticks(axis, ticks):
    """Sets ticks, written as plain numbers rather than powers of ten."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(lambda value, _: f'{value:g}')
    axis.set_minor_locator(NullLocator())


def _name_ends(axes, ends, gap=0.068):
    """Writes the names of lines beside their right ends, pushed apart where they would overlap.

    The scales and limits of the axes are already set. ends: {name: (y of the line's right end, its
    style)}; gap: least distance of two names, as a share of the axes' height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    order = sorted(ends, key=lambda name: ends[name][0])
    heights = [to_axes.transform((x, ends[name][0]))[1] for name in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = 1 + gap / 4
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling - gap * (len(heights) - 1 - i))
    outside = {'transform': axes.transAxes, 'clip_on': False}
    width = axes.get_position().width * axes.figure.get_figwidth()
    start, stop, text = (1 + inches / width for inches in (0.1, 0.36, 0.44))
    for name, y in zip(order, heights, strict=True):
        axes.add_line(Line2D([start, stop], [y, y], **ends[name][1], **outside))
        weight = 'bold' if name == 'proposals' else 'normal'
        axes.text(text, y, name, va='center', fontsize=11.5, weight=weight, **outside)


def svg(figure):
    """Returns the figure as the bytes of an SVG file without date, metadata or font names."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', metadata=dict.fromkeys(_METADATA))
    text = buffer.getvalue().decode()
    text = text[text.index('<svg') :].replace("'DejaVu Sans', sans-serif", 'system-ui, sans-serif')
    return re.sub(r'\n\s*', '\n', text).encode()
