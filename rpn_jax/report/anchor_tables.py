"""What each type of anchor learns and recalls: a table by size and shape, sentences, two plots.

`anchors` is that section of evaluation.json, as anchor_coverage.summarise makes it. Where
sizes are told apart, a size is a (level, size) of its types.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.evaluation.anchor_coverage import name_of, ratio
from rpn_jax.ops.anchors import base_anchors
from rpn_jax.report import pages, plots
from rpn_jax.report.compare_plots import styles

_BEFORE = {'color': '#59636e', 'linewidth': 1.8, 'linestyle': (0, (4, 2)), 'marker': 'o'}
_AFTER = plots.STYLES['proposals'] | {'marker': 'o'}
_LARGER = ((8, 16), (4, 8), (2, 4))  # how much larger objects are, in the sentence
_LISTS = ('positives', 'recalled', 'loss_objectness', 'loss_box')
_LISTS += ('iou_before', 'iou_after', 'shift', 'scale', 'recall_share')
_LINES = ('positive', 'IoU before', 'IoU after')
_PANELS = {
    'positives': 'positive anchors sampled, per image',
    'iou_after': 'IoU of positives after regression',
    'loss_objectness': 'share of the objectness loss',
}


def rows(anchors):
    """Returns the table's rows, a list of dicts: level after level, from small to large anchors.

    Each has `name` of its level and size, `size`, `ratio`, `width` and `height` in pixels, the
    values of its type in the lists of `anchors`, and `bar`, its positives relative to the most that
    a type has.
    """
    most, table = max(anchors['positives']), []
    for own, types in sorted(_by_size(anchors).items()):
        for k in types:
            _, size, ratio_ = anchors['types'][k]
            x0, y0, x1, y1 = base_anchors((size,), (ratio_,))[0].tolist()
            row = {'name': name_of(*own, anchors['types']), 'size': size, 'ratio': ratio_}
            row |= {'width': x1 - x0, 'height': y1 - y0, **{key: anchors[key][k] for key in _LISTS}}
            table.append(row | {'bar': row['positives'] / most if most else 0})
    return table


def sentence(anchors):
    """Returns a sentence on how far small anchors grow inside much larger objects, or None."""
    smallest, sums = _smallest(anchors)
    low = 2.0 ** np.array(anchors['stretch']['octaves'])[:-1]
    for first, last in _LARGER:
        count, positives, before, after = sums[:, (low >= first) & (low < last)].sum(axis=1)
        if count:
            return (
                f'Anchors of {smallest} inside objects {first} to {last} times as large: '
                f'IoU {before / count:.3f} before regression, {after / count:.3f} after; '
                f'of these {int(count):,} anchors {int(positives):,} were positive.'
            )
    return None


def finding(anchors):
    """Returns a sentence on types that match or recall nothing, or None.

    None also where there are too few positives or recalled objects to judge.
    """
    count = len(anchors['recalled'])
    for key, what, advice in (
        ('positives', 'have none of the {:,} positive anchors', 'drop them'),
        ('recalled', 'recall none of the {:,} recalled objects', 'check their scores'),
    ):
        total, idle = sum(anchors[key]), [row for row in rows(anchors) if not row[key]]
        if idle and total >= 10 * count:  # ten for each type on average: none is hardly chance
            names = ', '.join(f'{row["name"]} at {row["ratio"]:g}' for row in idle[:4])
            names += ', ..' if len(idle) > 4 else ''
            return (
                f'{len(idle)} of the {count} anchor types ({names}) {what.format(total)}: {advice},'
                ' or choose sizes and aspect ratios nearer to the objects.'
            )
    return None


def figures(history, anchors):
    """Returns the plots, as pages.figure does.

    They are the IoU of anchors with the object that their centre is in, over the relative size of
    the two, and what each size learns over steps, from the lines of metrics.jsonl.
    """
    return _stretch_figure(anchors) + _training_figure(history, anchors)


def _stretch_figure(anchors):
    octaves, (smallest, sums) = np.array(anchors['stretch']['octaves']), _smallest(anchors)
    sets = {'all anchors': _stretch(anchors).sum(axis=1), f'{smallest} anchors': sums}
    panels = {
        name: {key: ratio(values, count) for key, values in zip(_LINES, sums, strict=True)}
        for name, (count, *sums) in sets.items()
    }
    series = {
        f'{name}: {key}': (np.arange(len(values)), values)
        for name, panel in panels.items()
        for key, values in panel.items()
    }
    names = [f'{2**a:.3g} to {2**b:.3g}' for a, b in zip(octaves, octaves[1:], strict=False)]
    title = 'IoU of anchors with the object that their centre is in, by relative size'
    draw = _draw_stretch
    return pages.figure(title, lambda _: draw(panels, octaves), 'object / anchor', series, names)


def _training_figure(history, anchors):
    lines = [line for line in history if line.get('anchors')]
    if not lines:
        return []
    positives, ious, losses = (
        np.array([line['anchors'][key] for line in lines], np.float64) for key in _PANELS
    )
    ious, total = np.nan_to_num(ious) * positives, losses.sum(axis=1)
    steps, panels = plots.column(lines, 'step'), {key: {} for key in _PANELS}
    for size, types in _by_size(anchors).items():
        count, iou, loss = (sums[:, types].sum(axis=1) for sums in (positives, ious, losses))
        values = count, ratio(iou, count), ratio(loss, total)
        for panel, each in zip(panels.values(), values, strict=True):
            panel[name_of(*size, anchors['types'])] = each
    series = {
        f'{key}: {name}': (steps, values)
        for key, panel in panels.items()
        for name, values in panel.items()
    }
    smooth = {
        _PANELS[key]: {name: (steps, plots.smooth(values)) for name, values in panel.items()}
        for key, panel in panels.items()
    }
    title, colours = 'What anchors of each size learn, over steps', styles(panels['positives'])
    return pages.figure(title, lambda _: plots.panels(smooth, colours), 'step', series)


def _by_size(anchors):
    """Returns {(level, size): its types}, in the order of the lists of `stretch`."""
    sizes = {}
    for k, (level, size, _) in enumerate(anchors['types']):
        sizes.setdefault((level, size), []).append(k)
    return sizes


def _smallest(anchors):
    """Returns the name of the smallest anchors that have positives, and their row of _stretch."""
    sizes, positives = _by_size(anchors), anchors['positives']
    has_none = {size: not any(positives[k] for k in types) for size, types in sizes.items()}
    smallest = min(sizes, key=lambda size: (has_none[size], size[1]))
    return name_of(*smallest, anchors['types']), _stretch(anchors)[:, list(sizes).index(smallest)]


def _stretch(anchors):
    """Returns [4, sizes, BINS]: anchors, positives and the sums of IoU before and after."""
    lists = {key: np.array(values, float) for key, values in anchors['stretch'].items()}
    ious = (np.nan_to_num(lists[key]) * lists['anchors'] for key in ('iou_before', 'iou_after'))
    return np.stack([lists['anchors'], lists['positives'], *ious])


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
        above.set_title(name)
        below.bar(centres, 100 * np.nan_to_num(panel['positive']), width=0.42, color='#E69F00')
        below.set(xlabel='object’s size / anchor’s size', xlim=(-5, 5))
        ticks = [f'1/{2**-k}' if k < 0 else f'{2**k}' for k in range(-5, 6)]
        below.set_xticks(np.arange(-5, 6), ticks)
        below.tick_params(axis='x', pad=9)
    grid[0, 0].set(ylim=(0, 1), ylabel='mean IoU with it')
    grid[1, 0].set_ylabel('positive (%)')
    grid[0, 0].legend(loc='upper left')
    return plots.svg(figure)
