"""What each type of anchor learns and recalls: a table by size and shape, sentences, two plots.

`anchors` is that section of evaluation.json, as anchor_coverage.summarise makes it.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.evaluation.anchor_coverage import ratio
from rpn_jax.ops.anchors import base_anchors
from rpn_jax.report import pages, plots
from rpn_jax.report.compare_plots import style

_BEFORE = {'color': '#59636e', 'linewidth': 1.8, 'linestyle': (0, (4, 2)), 'marker': 'o'}
_AFTER = plots.STYLES['proposals'] | {'marker': 'o'}
_LARGER = ((8, 16), (4, 8), (2, 4))  # how much larger objects are, in the sentence
_LISTS = ('positives', 'recalled', 'loss_objectness', 'loss_box')
_LISTS += ('iou_before', 'iou_after', 'shift', 'scale', 'recall_share')
_PANELS = {
    'positives': 'positive anchors sampled, per image',
    'iou_after': 'IoU of positives after regression',
    'loss_objectness': 'share of the objectness loss',
}


def types_of(anchors):
    """Returns the (level, size, aspect ratio) of every anchor type.

    Without `types`, as in an old evaluation.json, there is one level, ratio-major.
    """
    if 'types' in anchors:
        return [tuple(each) for each in anchors['types']]
    return [(0, size, ratio_) for ratio_ in anchors['aspect_ratios'] for size in anchors['sizes']]


def rows(anchors):
    """Returns the table's rows, a list of dicts: level after level, from small to large anchors.

    Each has `name` of its level and size, `size`, `ratio`, `width` and `height` in pixels, the
    values of its type in the lists of `anchors`, and `bar`, its positives relative to the most that
    a type has.
    """
    types, most = types_of(anchors), max(anchors['positives'])
    table = []
    for k in sorted(range(len(types)), key=lambda k: (*types[k][:2], k)):
        level, size, ratio_ = types[k]
        x0, y0, x1, y1 = base_anchors((size,), (ratio_,))[0].tolist()
        row = {'name': _name(anchors, level, size), 'size': size, 'ratio': ratio_}
        row |= {'width': x1 - x0, 'height': y1 - y0, **{key: anchors[key][k] for key in _LISTS}}
        table.append(row | {'bar': row['positives'] / most if most else 0})
    return table


def sentence(anchors):
    """Returns a sentence on how far small anchors grow inside much larger objects, or None."""
    smallest = _smallest(anchors)
    low = 2.0 ** np.array(anchors['stretch']['octaves'])[:-1]
    sums = _stretch(anchors, [smallest])
    for first, last in _LARGER:
        count, positives, before, after = sums[:, (low >= first) & (low < last)].sum(axis=1)
        if count:
            return (
                f'Anchors of {_name(anchors, *smallest)} inside objects {first} to {last} times '
                f'as large: IoU {before / count:.3f} before regression, {after / count:.3f} after; '
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
    """Returns the plots, as pages.figure makes them; those without numbers are left out.

    They are the IoU of anchors with the object that their centre is in, over the relative size of
    the two, and what each size learns over steps, from the lines of metrics.jsonl.
    """
    return [
        pages.figure(*each)
        for each in (_stretch_plot(anchors), _training(history, anchors))
        if each
    ]


def _stretch_plot(anchors):
    octaves, smallest = np.array(anchors['stretch']['octaves']), _smallest(anchors)
    sets = {'all anchors': list(_by_size(anchors))}
    sets[f'{_name(anchors, *smallest)} anchors'] = [smallest]
    panels = {}
    for name, sizes in sets.items():
        count, *sums = _stretch(anchors, sizes)
        lines = zip(('positive', 'IoU before', 'IoU after'), sums, strict=True)
        panels[name] = {key: ratio(values, count) for key, values in lines}
    series = {
        f'{name}: {key}': (np.arange(len(values)), values)
        for name, panel in panels.items()
        for key, values in panel.items()
        if np.any(np.isfinite(values))
    }
    if not series:
        return None
    names = [f'{2**a:.3g} to {2**b:.3g}' for a, b in zip(octaves, octaves[1:], strict=False)]
    title = 'IoU of anchors with the object that their centre is in, by relative size'
    return title, _draw_stretch(panels, octaves), 'object / anchor', series, names


def _training(history, anchors):
    lines = [line for line in history if line.get('anchors')]
    if not lines:
        return None
    logged = {key: np.array([line['anchors'][key] for line in lines], float) for key in _PANELS}
    logged['iou_after'] = np.nan_to_num(logged['iou_after']) * logged['positives']
    total = logged['loss_objectness'].sum(axis=1)
    steps, panels = plots.column(lines, 'step'), {key: {} for key in _PANELS}
    for size, types in _by_size(anchors).items():
        positives, after, loss = (logged[key][:, types].sum(axis=1) for key in _PANELS)
        values = positives, ratio(after, positives), ratio(loss, total)
        for panel, each in zip(panels.values(), values, strict=True):
            panel[_name(anchors, *size)] = each
    series = {
        f'{key}: {name}': (steps, values)
        for key, panel in panels.items()
        for name, values in panel.items()
        if np.any(np.isfinite(values))
    }
    drawn = {
        _PANELS[key]: {name: (steps, plots.smooth(values)) for name, values in panel.items()}
        for key, panel in panels.items()
    }
    svg = plots.panels(drawn, {name: style(i) for i, name in enumerate(panels['positives'])})
    return 'What anchors of each size learn, over steps', svg, 'step', series


def _by_size(anchors):
    """Returns {(level, size): its types}, in the order of the lists of `stretch`."""
    sizes = {}
    for k, (level, size, _) in enumerate(types_of(anchors)):
        sizes.setdefault((level, size), []).append(k)
    return sizes


def _name(anchors, level, size):
    """Returns the name of a size, with its level where there are several."""
    several = len({own for own, *_ in types_of(anchors)}) > 1
    return f'level {level}, {size:g} px' if several else f'{size:g} px'


def _smallest(anchors):
    """Returns the (level, size) of the smallest anchors that have positives."""
    positives = anchors['positives']
    has_none = {size: not any(positives[k] for k in own) for size, own in _by_size(anchors).items()}
    return min(has_none, key=lambda size: (has_none[size], size[1]))


def _stretch(anchors, sizes):
    """Returns [4, BINS]: anchors, positives and the sums of IoU before and after, of sizes."""
    rows_ = [list(_by_size(anchors)).index(size) for size in sizes]
    lists = {key: np.array(values, float) for key, values in anchors['stretch'].items()}
    ious = (np.nan_to_num(lists[key]) * lists['anchors'] for key in ('iou_before', 'iou_after'))
    return np.stack([lists['anchors'], lists['positives'], *ious])[:, rows_].sum(axis=1)


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
