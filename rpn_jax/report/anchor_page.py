"""The page of anchors: how the present and the suggested ones fit the objects of a data set."""

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from rpn_jax.diagnosis import anchor_fit
from rpn_jax.report import pages, plots

COLOURS = {'present': '#D55E00', 'suggested': '#0072B2'}
SHADES = LinearSegmentedColormap.from_list('objects', ['#eceff2', '#4b5560'])
SPREAD = 25  # most widths between the largest and the smallest that a plot has ticks at each octave


def write_page(path, title, content, objects, present, suggested=None):
    """Writes one self-contained HTML file, complete or not at all.

    content is what anchor_fit.summary returns of the Objects and the two Fits.
    """
    fits = {'present': present} | ({'suggested': suggested} if suggested else {})
    pages.write(
        path,
        'anchors.html.j2',
        title=title,
        content=content,
        flags=content['flags'],
        is_worth=anchor_fit.is_worth(content),
        findings=findings(content),
        comparison=anchor_fit.comparison(content),
        names=list(fits),
        groups=anchor_fit.TITLES,
        figures=[_sides(content, objects, fits), _best(content, fits), _groups(content, fits)],
    )


def findings(content):
    """Returns sentences on the present anchors, with whether each is good news."""
    now, then = content['present'], content['suggested']
    high, low = content['positive_iou'], content['negative_iou']
    first = (
        f'{now["covered"]:.0%} of the objects have an anchor at IoU {high:g} or more; the mean '
        f'best IoU is {now["mean_best_iou"]:.3f}.'
    )
    found = [(first, not anchor_fit.is_worth(content))]
    if anchor_fit.is_worth(content):
        what = (
            f'Other sizes and ratios, as many in a cell, would cover {then["covered"]:.0%}, at a '
            f'mean best IoU of {then["mean_best_iou"]:.3f}, and give '
            f'{then["positives_per_image"]:.1f} positive anchors per image instead of '
            f'{now["positives_per_image"]:.1f}.'
        )
    else:
        what = 'Other sizes and ratios, as many in a cell, would hardly gain anything.'
    found.append((what, True))
    if anchor_fit.is_worth(content) and (names := ', '.join(anchor_fit.worse_sizes(content))):
        found.append((f'They would fit objects of {names} pixels worse.', False))
    share = now['low_quality']
    if share > 0.01:
        what = (
            f'{share:.0%} of the objects have positive anchors only because the best one of an '
            f'object always is: these stay below IoU {high:g}.'
        )
        found.append((what, share < 0.5))
    if share := now['below_negative_iou']:
        what = f'{share:.1%} of the objects have no anchor at IoU {low:g}, the worst of them below.'
        found.append((what, share < 0.01))
    if lost := now['objects_without_anchor']:
        what = (
            f'No positive anchor is matched to {lost:,} of the objects: another object overlaps '
            'more with the best one, or none touches them.'
        )
        found.append((what, lost < 0.01 * content['objects']))
    if idle := now['types_never_positive']:
        what = f'{idle} of the {len(now["types"])} types of anchors are never positive.'
        found.append((what, False))
    return found


def _sides(content, objects, fits):
    """Returns the plot of widths and heights: the objects, and the anchors of each Fit."""
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    anchors = {
        name: np.array([[t['width'], t['height']] for t in content[name]['types']]) for name in fits
    }
    series = {f'{name} anchors': tuple(each.T) for name, each in anchors.items()}
    (made,) = pages.figure(
        'Widths and heights of objects (shaded) and anchors, pixels of the canvas',
        lambda _: _draw_sides(sides, anchors),
        'width',
        series,
        columns={'width': sides[:, 0].tolist(), 'height': sides[:, 1].tolist()},
    )
    rows = [
        [name, f'{width:g}', f'{height:g}']
        for name, each in anchors.items()
        for width, height in each
    ]
    return made | {'header': ['anchors', 'width', 'height'], 'rows': rows}


def _best(content, fits):
    """Returns the histograms of best IoUs."""
    edges = np.array(content['present']['histogram']['iou'])
    shares = {
        name: np.array(content[name]['histogram']['objects']) / content['objects'] for name in fits
    }
    series = {name: (edges[:-1], values) for name, values in shares.items()}
    thresholds = content['negative_iou'], content['positive_iou']
    (made,) = pages.figure(
        'IoU of each object with its best anchor',
        lambda _: _draw_best(edges, shares, thresholds),
        'from IoU',
        series,
    )
    return made


def _groups(content, fits):
    """Returns the mean best IoU by size, ratio and distance from the border."""
    groups = {
        name: [row['name'] for row in rows if row['objects']]
        for name, rows in content['present']['groups'].items()
    }
    values = {
        fit: {
            name: [row['mean_best_iou'] for row in content[fit]['groups'][name] if row['objects']]
            for name in groups
        }
        for fit in fits
    }
    labels = [f'{name} {each}' for name, own in groups.items() for each in own]
    series = {
        fit: (np.arange(len(labels)), np.array([v for row in own.values() for v in row]))
        for fit, own in values.items()
    }
    (made,) = pages.figure(
        'Mean best IoU by size, ratio and distance from the border',
        lambda _: _draw_groups(groups, values),
        'objects',
        series,
        labels,
    )
    return made


@matplotlib.rc_context(plots.RC)
def _draw_sides(sides, anchors):
    figure = Figure(figsize=(15, 6.6))
    grid = figure.subplots(1, 2, squeeze=False)[0]
    figure.subplots_adjust(left=0.055, right=0.985, top=0.93, bottom=0.1, wspace=0.13)
    every = np.concatenate([sides, *anchors.values()])
    low, high = every[every > 0].min() / 1.3, every.max() * 1.3
    extent, log = np.log10([low, high, low, high]), {'xscale': 'log', 'yscale': 'log'}
    bins = {'gridsize': (52, 30), 'extent': extent, 'bins': 'log', 'mincnt': 1}
    step = 2.0 if high < SPREAD * 4 * low else 4.0
    for axes, name in zip(grid, anchors, strict=False):
        axes.hexbin(*sides.T, cmap=SHADES, linewidths=0.2, **log, **bins)
        style = {'marker': 's', 'linestyle': '', 'markersize': 9, 'markeredgecolor': 'white'}
        axes.plot(*anchors[name].T, color=COLOURS[name], **style)
        axes.set(**log, xlim=(low, high), ylim=(low, high), xlabel='width')
        axes.set_title(f'{name} anchors', color=COLOURS[name])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([step**power for power in range(14)]))
            axis.set_major_formatter(lambda value, _: f'{value:g}')
            axis.set_minor_locator(NullLocator())
    grid[0].set_ylabel('height')
    for axes in grid[len(anchors) :]:
        axes.set_visible(False)
    return plots.svg(figure)


@matplotlib.rc_context(plots.RC)
def _draw_best(edges, shares, thresholds):
    figure = Figure(figsize=(15, 4.2))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.055, right=0.985, top=0.9, bottom=0.15)
    for name, values in shares.items():
        axes.stairs(values, edges, fill=True, color=COLOURS[name], alpha=0.18)
        axes.stairs(values, edges, color=COLOURS[name], linewidth=1.8, label=name)
    for value, name in zip(thresholds, ('negative_iou', 'positive_iou'), strict=True):
        axes.axvline(value, color='#59636e', linewidth=1, linestyle=':')
        axes.text(value, 1.01, name, transform=axes.get_xaxis_transform(), ha='center', fontsize=11)
    axes.set(xlim=(0, 1), xlabel='IoU with the best anchor', ylabel='share of objects')
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc='upper left')
    return plots.svg(figure)


@matplotlib.rc_context(plots.RC)
def _draw_groups(groups, values):
    figure = Figure(figsize=(15, 4))
    ratios = [max(len(labels), 3) for labels in groups.values()]
    grid = figure.subplots(1, len(groups), sharey=True, width_ratios=ratios)
    figure.subplots_adjust(left=0.045, right=0.985, top=0.83, bottom=0.12, wspace=0.06)
    for axes, (name, labels) in zip(grid, groups.items(), strict=True):
        for i, (fit, own) in enumerate(values.items()):
            x = np.arange(len(labels)) + 0.4 * (i + 0.5) - 0.2 * len(values)
            axes.bar(x, own[name], width=0.38, color=COLOURS[fit], label=fit)
        axes.set_xticks(np.arange(len(labels)), labels, fontsize=9.5)
        axes.set_title(anchor_fit.TITLES[name])
        axes.grid(visible=False, axis='x')
    grid[0].set(ylim=(0, 1))
    figure.legend(*grid[0].get_legend_handles_labels(), loc='upper right', ncols=len(values))
    return plots.svg(figure)
