"""Draws the report's plots as SVG: the same bytes for the same numbers, no global pyplot state."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

LOSSES = {'loss': 'total', 'loss_objectness': 'objectness', 'loss_box': 'box'}
BOUNDS = ('anchors', 'oracle')  # what no proposals can beat, as opposed to blind baselines

_INK, _MUTED, _GRID = '#1f2328', '#59636e', '#e6e9ed'
_ORANGE, _BLUE = '#E69F00', '#0072B2'
_LINE = {'linewidth': 1.6, 'linestyle': '-', 'zorder': 3}
# Okabe and Ito's colours; every line also carries its name, so colour is never the only key.
STYLES = {
    'proposals': {'color': _BLUE, 'linewidth': 2.8, 'linestyle': '-', 'zorder': 5},
    'random_boxes': _LINE | {'color': _ORANGE},
    'random_anchors': _LINE | {'color': '#009E73'},
    'gaussian_boxes': _LINE | {'color': '#CC79A7'},
    'quadrants': _LINE | {'color': '#D55E00'},
    'scores_alone': _LINE | {'color': '#009E73', 'linestyle': (0, (5, 2))},
    'random_order': _LINE | {'color': _ORANGE, 'linestyle': (0, (5, 2))},
    'oracle_scores': _LINE | {'color': '#CC79A7', 'linestyle': (0, (5, 2))},
    'anchors': {'color': '#9aa2ab', 'linewidth': 1.4, 'linestyle': (0, (6, 3)), 'zorder': 2},
    'oracle': {'color': '#6b737c', 'linewidth': 1.4, 'linestyle': (0, (1.5, 2)), 'zorder': 2},
    'loss': {'color': _INK, 'linewidth': 2.2, 'linestyle': '-', 'zorder': 4},
    'loss_objectness': {'color': _BLUE, 'linewidth': 2.2, 'linestyle': '-', 'zorder': 4},
    'loss_box': {'color': '#D55E00', 'linewidth': 2.2, 'linestyle': '-', 'zorder': 4},
}
_OTHER = _LINE | {'color': '#56B4E9'}
_POINTS = 600  # most points per line: more cannot be told apart and makes the file large

RC = {
    'svg.hashsalt': 'rpn_jax',
    'svg.fonttype': 'none',
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],
    'font.size': 12,
    'text.color': _INK,
    'axes.labelcolor': _MUTED,
    'axes.edgecolor': '#c4cad1',
    'axes.linewidth': 0.8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': _GRID,
    'grid.linewidth': 0.8,
    'xtick.color': _MUTED,
    'ytick.color': _MUTED,
    'xtick.major.size': 0,
    'ytick.major.size': 0,
    'xtick.minor.size': 0,
    'ytick.minor.size': 0,
}


def column(history, key):
    """Returns one key of a list of dicts as [n] float64, NaN where it is missing or no number."""
    values = [line.get(key) for line in history]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def smooth(values, window):
    """Returns the centred moving average of [n] floats over `window` of them, passing over NaN."""
    known = np.isfinite(values)
    start = np.clip(np.arange(len(values)) - window // 2, 0, None)
    stop = np.clip(np.arange(len(values)) + window // 2 + 1, None, len(values))
    total = np.concatenate([[0], np.cumsum(np.where(known, values, 0))])
    count = np.concatenate([[0], np.cumsum(known)])
    seen = count[stop] - count[start]
    mean = (total[stop] - total[start]) / np.maximum(seen, 1)
    return np.where(seen > 0, mean, np.nan)


def evenly(count, limit):
    """Returns at most `limit` evenly spaced indices of `count` things, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))


def describe(title, series, names=None):
    """Says in one sentence what a plot shows: where each line starts and ends."""
    said = []
    for name, (x, y) in series.items():
        keep = np.flatnonzero(np.isfinite(x) & np.isfinite(y))[[0, -1]]
        start, stop = (names[int(x[i])] if names else f'{x[i]:g}' for i in keep)
        said.append(f'{name} {y[keep[0]]:.3g} at {start} to {y[keep[1]]:.3g} at {stop}')
    return f'{title}: ' + '; '.join(said) + '.'


def table(series, xlabel, names=None, limit=24):
    """Returns the header and at most `limit` rows of strings that hold the numbers of a plot."""
    places, values = _joined(series, limit)
    rows = []
    for place in places:
        label = names[int(place)] if names else f'{place:g}'
        rows.append([label, *(f'{known[place]:.4g}' if place in known else '' for known in values)])
    return [xlabel, *series], rows


def columns(series, xlabel, names=None):
    """Returns all numbers of a plot as {NAME: list}, of equal lengths.

    The first are the places, called xlabel; None is where a line has no point.
    """
    places, values = _joined(series, np.inf)
    labels = [names[int(place)] if names else place for place in places]
    lines = ([known.get(place) for place in places] for known in values)
    return {xlabel: labels, **dict(zip(series, lines, strict=True))}


def _joined(series, limit):
    """Returns at most `limit` places, evenly of all that lines have, and each line's {x: y}."""
    values = [
        dict(zip(*map(np.ndarray.tolist, finite(*xy)), strict=True)) for xy in series.values()
    ]
    places = sorted(set().union(*values))
    return [places[i] for i in evenly(len(places), limit)], values


@matplotlib.rc_context(RC)
def losses(series):
    """Draws the loss and its parts over steps, as logged and smoothed.

    Args:
      series: {KEY: (steps [n], values [n])} for some of LOSSES; NaN where a value is missing.

    Returns:
      SVG bytes.
    """
    figure, axes = axes_of(15, 5.2, right=0.87)
    ends, low, high = {}, np.inf, np.log(2)
    for key, (x, y) in series.items():
        x, y = finite(x, y)
        mean = smooth(y, max(1, len(y) // 25))
        low, high = min(low, np.min(mean)), max(high, np.max(mean))
        thin = evenly(len(x), _POINTS)
        axes.plot(x[thin], y[thin], color=STYLES[key]['color'], linewidth=0.7, alpha=0.28)
        axes.plot(x[thin], mean[thin], **STYLES[key], **_marker(x))
        ends[LOSSES[key]] = (mean[-1], STYLES[key])
    if 'loss_objectness' in series:
        # An objectness of one half for every anchor: where training starts.
        style = {'color': _MUTED, 'linewidth': 1.2, 'linestyle': ':', 'zorder': 2}
        axes.axhline(np.log(2), **style)
        ends['ln 2, a coin flip'] = (np.log(2), style)
    if low > 0 and high > 8 * low:
        axes.set_yscale('log')
        _plain_ticks(axes.yaxis, [a * 10.0**b for b in range(-6, 7) for a in (1, 2, 5)])
        axes.set_ylim(low / 1.5, high * 1.4)
    else:
        axes.set_ylim(min(0, low), 1.1 * high)
    axes.set_xlabel('step')
    thousands(axes.xaxis)
    name_ends(axes, ends)
    return svg(figure)


@matplotlib.rc_context(RC)
def panels(series):
    """Draws a row of small panels, {TITLE: (steps [n], values [n])}; returns SVG bytes."""
    figure = Figure(figsize=(15, 3.1))
    grid = figure.subplots(1, len(series), squeeze=False)[0]
    figure.subplots_adjust(left=0.052, right=0.985, top=0.86, bottom=0.2, wspace=0.22)
    for axes, (title, (x, y)) in zip(grid, series.items(), strict=True):
        x, y = finite(x, y)
        thin = evenly(len(x), _POINTS)
        axes.plot(x[thin], y[thin], color=_BLUE, linewidth=1.8, **_marker(x))
        axes.set_title(title, fontsize=12, loc='left', color=_INK)
        axes.set_ylim(min(0, np.min(y)), 1.12 * max(np.max(y), 1e-12))
        axes.set_xlabel('step')
        axes.locator_params(axis='x', nbins=4)
        axes.locator_params(axis='y', nbins=5)
        thousands(axes.xaxis)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.6g}'))
    return svg(figure)


@matplotlib.rc_context(RC)
def recalls(series, *, xlabel, log_x=False, names=None, full=False, styles=STYLES, right=0.73):
    """Draws recall, or its average, as one line per name, each named at its right end.

    Args:
      series: {NAME: (x [n], y [n])} float64; NaN leaves a gap, but not all are NaN.
      xlabel: what x is.
      log_x: whether x is drawn on a logarithmic scale.
      names: what to write at x = 0, 1, ... where these are no numbers.
      full: whether y runs to 1 even if no line comes near it.
      styles: {NAME: how its line is drawn}.
      right: where the axes end and names begin, as a share of the width.

    Returns:
      SVG bytes.
    """
    figure, axes = axes_of(7.4, 4.9, right=right)
    ends, top = {}, 0
    order = sorted(series, key=lambda name: (name != 'proposals', name in BOUNDS))
    for name in order:
        style = styles.get(name, _OTHER)
        known = finite(*series[name])
        axes.plot(*series[name], **style, **_marker(known[0]))
        ends[name] = (known[1][-1], style)
        top = max(top, np.max(known[1]))
    top = 1 if full else min(1, np.ceil(11 * top + 1e-9) / 10)
    axes.set_ylim(0, max(top, 0.05) * 1.015)
    if log_x:
        axes.set_xscale('log')
        _plain_ticks(axes.xaxis, [1, 3, 10, 30, 100, 300, 1000, 3000, 10000])
    if names:
        axes.set_xticks(range(len(names)), names)
    axes.set_xlabel(xlabel)
    axes.set_ylabel('recall')
    name_ends(axes, ends)
    return svg(figure)


@matplotlib.rc_context(RC)
def sizes(objects, proposals):
    """Draws how boxes spread in size: width over height for both sets, and sqrt(area) shares.

    Args:
      objects: [n, 2] float widths and heights in pixels, all above zero.
      proposals: [m, 2], the same.

    Returns:
      SVG bytes.
    """
    figure = Figure(figsize=(15, 4.7))
    grid = figure.subplots(1, 3, width_ratios=(1, 1, 1.35))
    figure.subplots_adjust(left=0.052, right=0.985, top=0.9, bottom=0.14, wspace=0.2)
    edges = np.percentile(np.concatenate([objects, proposals]), (0.5, 99.5)) * (0.7, 1.4)
    sets = (('objects', objects, _ORANGE), ('proposals', proposals, _BLUE))
    for axes, (name, pairs, colour) in zip(grid, sets, strict=False):
        shades = LinearSegmentedColormap.from_list(name, ['#e4e9ee', colour])
        inside = pairs[np.all((pairs > edges[0]) & (pairs < edges[1]), 1)]
        if len(inside):
            limits = np.log10([*edges, *edges])
            scale = {'xscale': 'log', 'yscale': 'log', 'gridsize': (26, 15), 'extent': limits}
            axes.hexbin(*inside.T, mincnt=1, cmap=shades, bins='log', linewidths=0.2, **scale)
        axes.plot(edges, edges, color=_MUTED, linewidth=0.8, linestyle=':')
        axes.set(xscale='log', yscale='log', xlim=edges, ylim=edges, xlabel='width (pixels)')
        step = 2.0 if edges[1] < 50 * edges[0] else 4.0
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis, [step**power for power in range(14)])
        axes.set_title(f'{name} ({len(pairs):,})', fontsize=12, loc='left')
    grid[0].set_ylabel('height (pixels)')
    _size_shares(grid[2], sets, edges)
    return svg(figure)


def _size_shares(axes, sets, edges):
    """Draws the two histograms of sqrt(area) and, above them, where their middle halves lie."""
    bins, top = np.geomspace(*edges, 41), 0
    for _, pairs, colour in sets:
        side = np.sqrt(np.prod(pairs, 1))
        share = np.histogram(side, bins)[0] / max(1, len(side))
        axes.stairs(share, bins, fill=True, color=colour, alpha=0.3)
        axes.stairs(share, bins, color=colour, linewidth=1.6)
        top = max(top, np.max(share))
    for row, (name, pairs, colour) in enumerate(sets):
        low, middle, high = np.percentile(np.sqrt(np.prod(pairs, 1)), (25, 50, 75))
        y = top * (1.28 - 0.11 * row)
        axes.plot([low, high], [y, y], color=colour, linewidth=7, solid_capstyle='butt')
        axes.plot([middle], [y], color='white', marker='|', markersize=7, markeredgewidth=2)
        outward = (
            {'x': low / 1.06, 'ha': 'right'}
            if low * high > edges[0] * edges[1]
            else {'x': high * 1.06}
        )
        axes.text(y=y, s=name, va='center', fontsize=11, **outward)
    axes.set(xscale='log', xlim=edges, ylim=(0, 1.4 * top), xlabel='square root of area (pixels)')
    axes.set_title('share of boxes; bars: middle half and median', fontsize=12, loc='left')
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:.0f}%'))
    axes.locator_params(axis='y', nbins=6)
    _plain_ticks(axes.xaxis, [2.0**power for power in range(13)])


def axes_of(width, height, *, right):
    """Returns a figure, in inches, and its axes, with room for names at their right."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    left = 0.75 / width
    figure.subplots_adjust(left=left, right=right, top=0.965, bottom=0.6 / height)
    return figure, axes


def _marker(x):
    """Marks the point of a line that has only one, which would be invisible."""
    return {'marker': 'o', 'markersize': 5} if len(x) == 1 else {}


def finite(x, y):
    """Returns the points of a line both of whose numbers are known."""
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def thousands(axis):
    """Writes ticks as whole numbers with separators, and none at fractions."""
    axis.set_major_locator(MaxNLocator(nbins='auto', integer=True, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))


def _plain_ticks(axis, places):
    """Puts ticks at these places, written as plain numbers rather than powers of ten."""
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def name_ends(axes, ends, gap=0.068):
    """Names lines beside their right ends, pushed apart where they would overlap.

    Args:
      axes: with both scales and limits already set.
      ends: {name: (y of the line's right end, its style)}.
      gap: least distance of two names, as a share of the axes' height.
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
    place = {'transform': axes.transAxes, 'clip_on': False}
    for name, y in zip(order, heights, strict=True):
        width = axes.get_position().width * axes.figure.get_figwidth()
        start, stop, text = (1 + inches / width for inches in (0.1, 0.36, 0.44))
        axes.add_line(Line2D([start, stop], [y, y], **ends[name][1], **place))
        weight = 'bold' if name == 'proposals' else 'normal'
        axes.text(text, y, name, va='center', fontsize=11.5, weight=weight, **place)


def svg(figure):
    """Returns the figure as the bytes of an SVG file without date, metadata or font names."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', metadata={'Date': None})
    text = buffer.getvalue().decode()
    text = text[text.index('<svg') :]
    text = re.sub(r'\s*<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans', sans-serif", 'system-ui, sans-serif')
    return re.sub(r'\n\s*', '\n', text).encode()
