"""Which anchors bring what, for the eye: a table by size and shape, how far anchors stretch.

`found` is what evaluation.json says of its anchors, as coverage.summarise returns it.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.evaluation.anchor_coverage import by_size, ratio
from rpn_jax.ops.anchors import base_anchors
from rpn_jax.report import plots
from rpn_jax.report.compare_plots import style

_BEFORE = {'color': '#59636e', 'linewidth': 1.8, 'linestyle': (0, (4, 2)), 'marker': 'o'}
_AFTER = plots.STYLES['proposals'] | {'marker': 'o'}
_POSITIVE = '#E69F00'
_OCTAVES = ((3, 4), (2, 3), (1, 2))  # how much larger objects are, in the sentence: 8 to 16, ..
_PANELS = {
    'positives': 'positive anchors sampled, per image',
    'iou_after': 'IoU of positives after regression',
    'loss_objectness': 'share of the objectness loss',
}


def rows(found):
    """Returns the table's rows, from the smallest anchors to the largest: a list of dicts.

    `size`, `ratio`, `width`, `height` in pixels; `positives`, `recalled`, `loss_objectness`,
    `loss_box`, `iou_before`, `iou_after`, `shift`, `scale` and `recall_share` as in found; and
    `bar`, the positives as a share of the most that a type has.
    """
    sizes, ratios = found['sizes'], found['aspect_ratios']
    boxes = np.asarray(base_anchors(sizes, ratios))
    most = max(found['positives'])
    lists = [name for name in found if name not in ('sizes', 'aspect_ratios', 'stretch')]
    order = sorted(range(len(boxes)), key=lambda k: (sizes[k % len(sizes)], k))
    return [
        {name: found[name][k] for name in lists}
        | {'size': sizes[k % len(sizes)], 'ratio': ratios[k // len(sizes)]}
        | dict(zip(('width', 'height'), (boxes[k, 2:] - boxes[k, :2]).tolist(), strict=True))
        | {'bar': found['positives'][k] / most if most else 0}
        for k in order
    ]


def sentence(found):
    """Says how far small anchors grow inside much larger objects, None where there are none."""
    small = _small(found)
    low = np.array(found['stretch']['octaves'])[:-1]
    for first, last in _OCTAVES:
        bins = (low >= first) & (low < last)
        anchors, positives, before, after = (values[bins].sum() for values in _sums(found, small))
        if anchors:
            return (
                f'Anchors of {found["sizes"][small]:g} pixels inside objects {2**first} to '
                f'{2**last} times as large: IoU {before / anchors:.3f} before regression, '
                f'{after / anchors:.3f} after; of these {int(anchors):,} anchors '
                f'{int(positives):,} were positive.'
            )
    return None


def finding(found):
    """Says which anchor types match or find nothing; None where all do, or too little to tell."""
    count = len(found['recalled'])
    for name, what, advice in (
        ('positives', 'anchors are positive, but none of', 'drop them'),
        ('recalled', 'objects are recalled, but none by', 'look at their scores'),
    ):
        total, idle = sum(found[name]), [row for row in rows(found) if not row[name]]
        if idle and total >= 10 * count:  # ten on average: none is hardly chance
            names = ', '.join(f'{row["size"]:g} px at {row["ratio"]:g}' for row in idle[:4])
            names += ', ..' if len(idle) > 4 else ''
            return (
                f'{total:,} {what} {len(idle)} of the {count} anchor types ({names}): '
                f'{advice}, or choose sizes and aspect ratios nearer to the objects.'
            )
    return None


def stretch_figure(found):
    """Returns (title, SVG bytes, xlabel, series, names) of the plot, None where it is empty."""
    octaves, small = np.array(found['stretch']['octaves']), _small(found)
    sets = {'all anchors': slice(None), f'{found["sizes"][small]:g} px anchors': small}
    panels = {name: _stretch(found, chosen) for name, chosen in sets.items()}
    series = {
        f'{name}: {key}': (np.arange(len(values)), values)
        for name, panel in panels.items()
        for key, values in panel.items()
        if np.any(np.isfinite(values))
    }
    if not series:
        return None
    names = [f'{2**a:.3g} to {2**b:.3g}' for a, b in zip(octaves, octaves[1:], strict=False)]
    title = 'How well anchors fit the object that they lie in, over its size in units of theirs'
    return title, _draw_stretch(panels, octaves), 'object / anchor', series, names


def training_figure(history, found):
    """Returns (title, SVG bytes, xlabel, series) of what each size learnt, None without a log."""
    lines = [line for line in history if line.get('anchors')]
    if not lines:
        return None
    steps, sizes = plots.column(lines, 'step'), found['sizes']
    logged = {
        name: np.array([line['anchors'][name] for line in lines], np.float64)
        for name in lines[0]['anchors']
    }
    positives = logged['positives']
    by_type = {'positives': positives, 'loss_objectness': logged['loss_objectness']}
    by_type['iou_after'] = np.nan_to_num(logged['iou_after']) * positives
    sums = {k: v.reshape(len(lines), -1, len(sizes)).sum(axis=1) for k, v in by_type.items()}
    objectness = sums['loss_objectness']
    learnt = {
        'positives': sums['positives'],
        'iou_after': ratio(sums['iou_after'], sums['positives']),
        'loss_objectness': ratio(objectness, objectness.sum(axis=1, keepdims=True)),
    }
    series = {
        f'{name}: {size:g} px': (steps, learnt[name][:, k])
        for name in _PANELS
        for k, size in enumerate(sizes)
        if np.any(np.isfinite(learnt[name][:, k]))
    }
    title = 'What anchors of each size learn, over steps'
    return title, _draw_training(steps, learnt, sizes), 'step', series


def _small(found):
    """Returns the smallest size that learnt anything: the position of one that has positives."""
    sizes, positives = found['sizes'], by_size(found, 'positives')
    return min(range(len(sizes)), key=lambda k: (not positives[k], sizes[k]))


def _sums(found, chosen):
    """Returns anchors, positives and the sums of IoU before and after, [BINS] each, of sizes."""
    stretch = {name: np.array(found['stretch'][name], np.float64) for name in found['stretch']}
    anchors = stretch['anchors']
    sums = (
        *(anchors, stretch['positives']),
        *(np.nan_to_num(stretch[name]) * anchors for name in ('iou_before', 'iou_after')),
    )
    return [np.atleast_2d(values[chosen]).sum(axis=0) for values in sums]


def _stretch(found, chosen):
    """Returns the lines of a panel, [BINS] each, NaN where there were no anchors."""
    anchors, positives, before, after = _sums(found, chosen)
    return {
        'IoU before': ratio(before, anchors),
        'IoU after': ratio(after, anchors),
        'positive': ratio(positives, anchors),
    }


@matplotlib.rc_context(plots.RC)
def _draw_stretch(panels, edges):
    figure = Figure(figsize=(15, 6))
    grid = figure.subplots(2, len(panels), sharex=True, sharey='row', height_ratios=(3, 1))
    figure.subplots_adjust(left=0.06, right=0.985, top=0.93, bottom=0.1, wspace=0.08, hspace=0.12)
    centres = (edges[:-1] + edges[1:]) / 2
    for (above, below), (name, panel) in zip(grid.T, panels.items(), strict=True):
        above.plot(centres, panel['IoU before'], **_BEFORE, markersize=4, label='before regression')
        above.plot(centres, panel['IoU after'], **_AFTER, markersize=5, label='after regression')
        above.axvline(0, color='#9aa2ab', linewidth=0.8)
        above.set_title(name, fontsize=12, loc='left')
        share = 100 * np.nan_to_num(panel['positive'])
        below.bar(centres, share, width=0.42, color=_POSITIVE)
        below.set_xlabel('object’s size / anchor’s size')
        below.set_xticks(
            np.arange(-5, 6), [f'1/{2**-k}' if k < 0 else f'{2**k}' for k in range(-5, 6)]
        )
        below.set_xlim(-5, 5)
        below.tick_params(axis='x', pad=9)
    grid[0, 0].set_ylim(0, 1)
    grid[0, 0].set_ylabel('mean IoU with it')
    grid[1, 0].set_ylabel('positive (%)')
    grid[0, 0].legend(frameon=False, loc='upper left')
    return plots.svg(figure)


@matplotlib.rc_context(plots.RC)
def _draw_training(steps, learnt, sizes):
    figure = Figure(figsize=(15, 3.6))
    grid = figure.subplots(1, len(_PANELS))
    figure.subplots_adjust(left=0.045, right=0.91, top=0.88, bottom=0.17, wspace=0.2)
    thin = plots.evenly(len(steps), 300)
    for axes, (name, title) in zip(grid, _PANELS.items(), strict=True):
        for k, size in enumerate(sizes):
            mean = plots.smooth(learnt[name][:, k], max(1, len(steps) // 25))
            marker = {'marker': 'o', 'markersize': 5} if len(steps) == 1 else {}
            axes.plot(steps[thin], mean[thin], **style(k), **marker, label=f'{size:g} px')
        axes.set_title(title, fontsize=12, loc='left')
        axes.set_xlabel('step')
        axes.set_ylim(0, 1 if name == 'iou_after' else None)
        axes.locator_params(axis='x', nbins=5)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc='center right')
    return plots.svg(figure)
