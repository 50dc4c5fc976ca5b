"""How well anchors fit the objects of a data set, and which would fit better.

    objects = anchor_grid.objects_of(source, options)  # no image file is read
    present = measure(objects, Layout.of(model), **targets)
    better = anchor_search.suggest(objects, Layout.of(model), ..)
    summary(..), lines(..)                           # anchors.json, the terminal

What counts is as in training: the resize, the canvas, the strides and levels, the thresholds of
matching; difficult objects and crowds are no objects. Images are not flipped.
"""

from typing import NamedTuple

import numpy as np

from rpn_jax.console import progress
from rpn_jax.diagnosis import anchor_grid, anchor_search
from rpn_jax.diagnosis.anchor_grid import Layout, types_of
from rpn_jax.errors import InputError
from rpn_jax.evaluation import metrics

WORST = 20  # objects that are listed
WORTH = 0.01  # gain of the mean best IoU and of the covered share together: less is no gain
WORSE = 0.01  # loss of the mean best IoU of a group of objects, that is told
BINS = np.linspace(0, 1, 41)  # of best IoUs
GROUPS = {  # what objects are grouped by: the edges of the groups, and a name for each
    'size': (
        (16, 32, 64, 128, 256, 512),
        ('below 16', '16 to 32', '32 to 64', '64 to 128', '128 to 256', '256 to 512', 'above 512'),
    ),
    'ratio': (
        (1 / 3, 2 / 3, 3 / 2, 3),
        ('below 1/3', '1/3 to 2/3', '2/3 to 3/2', '3/2 to 3', 'above 3'),
    ),
    'border': ((1, 16, 64), ('at it', '1 to 16', '16 to 64', 'above 64')),
}
TITLES = {  # of the groups
    'size': 'size (root of the area, pixels)',
    'ratio': 'height / width',
    'border': 'pixels from the border',
}


class Fit(NamedTuple):
    """How well the anchors of a Layout fit Objects."""

    layout: Layout
    best: np.ndarray  # [n] IoU of each object with its best anchor, not clipped, as in matching
    positives: np.ndarray  # [T] anchors of each type that are foreground, over all images
    images: int  # with objects
    unmatched: int  # objects to which no foreground anchor is matched
    bounds: dict  # {'anchors' or 'oracle': [n] best IoU}, the bounds of an evaluation


def measure(objects, layout, *, positive_iou=0.7, negative_iou=0.3, border=-1, **_):
    """Returns the Fit of anchors to Objects; takes the keywords of matching.assign.

    Raises InputError where there is no object.
    """
    if not len(objects.boxes):
        raise InputError('train_split: no image of it has an object that anchors could fit')
    types = types_of(layout)
    best = anchor_grid.best_overlaps(objects, types, border).max(axis=1)
    positives, regressed, unmatched = np.zeros(len(types.level), int), [], 0
    images = len(np.unique(objects.image))
    for own in progress(objects.by_image(), images, 'matched'):
        rules = dict(positive_iou=positive_iou, border=border)
        position, matched = anchor_grid.positives(own, types, **rules)
        positives += np.bincount(position[:, 0], minlength=len(positives))
        unmatched += len(own.boxes) - len(np.unique(matched))
        regressed.append(anchor_grid.regressed(own, types, position, matched))
    clipped = anchor_grid.clipped_overlaps(objects, types)
    bounds = {'anchors': clipped, 'oracle': np.concatenate(regressed)}
    return Fit(layout, best, positives, images, unmatched, bounds)


def suggest(objects, present, **targets):
    """Returns the Fit of better anchors than those of a Fit, as many in a cell; None without any.

    Takes the keywords of matching.assign.
    """
    keys = 'positive_iou', 'negative_iou', 'border'
    rules = {key: targets[key] for key in keys if key in targets}
    layout = anchor_search.suggest(objects, present.layout, **rules)
    return None if layout == present.layout else measure(objects, layout, **rules)


def figures(fit, objects, *, positive_iou=0.7, negative_iou=0.3, **_):
    """Returns what anchors.json holds of a Fit: shares are of the objects, IoUs as in matching.

    `low_quality` is the share that has positive anchors only because its best one always is.
    """
    best, types = fit.best, types_of(fit.layout)
    rows = zip(types.level, types.names, types.half, fit.positives, strict=True)
    return {
        'sizes': [list(sizes) for sizes in fit.layout.sizes],
        'aspect_ratios': list(fit.layout.aspect_ratios),
        'mean_best_iou': float(best.mean()),
        'covered': float(np.mean(best >= positive_iou)),
        'low_quality': float(np.mean((best < positive_iou) & (best > 0))),
        'below_negative_iou': float(np.mean(best < negative_iou)),
        'objects_at_iou_0': int(np.sum(best == 0)),
        'objects_without_anchor': fit.unmatched,
        'positives_per_image': float(fit.positives.sum() / fit.images),
        'types': [
            {
                'level': int(level),
                'size': size,
                'aspect_ratio': ratio,
                'width': 2 * half[0],
                'height': 2 * half[1],
                'positives': int(count),
            }
            for level, (size, ratio), half, count in rows
        ],
        'types_never_positive': int(np.sum(fit.positives == 0)),
        'bounds': {
            name: metrics.summarise(metrics.bound(values, objects.areas), limits=(100,))
            for name, values in fit.bounds.items()
        },
        'groups': {
            name: _groups(values, *GROUPS[name], best, (positive_iou, negative_iou))
            for name, values in grouped_by(objects).items()
        },
        'histogram': {
            'iou': BINS.tolist(),
            'objects': np.histogram(best, BINS)[0].tolist(),
        },
    }


def grouped_by(objects):
    """Returns the values [n] of each object by which GROUPS group: {'size', 'ratio', 'border'}."""
    x0, y0, x1, y1 = objects.boxes.T
    height, width = objects.sizes.T
    return {
        'size': np.sqrt((x1 - x0) * (y1 - y0)),
        'ratio': (y1 - y0) / (x1 - x0),
        'border': np.min([x0, y0, width - x1, height - y1], axis=0),
    }


def summary(source, objects, present, suggested=None, **targets):
    """Returns the contents of anchors.json, of two Fits over the Objects of a source."""
    order = np.argsort(present.best, kind='stable')[:WORST]
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    high, low = targets.get('positive_iou', 0.7), targets.get('negative_iou', 0.3)
    return {
        'dataset': source.name,
        'images': len(source.records),
        'objects': len(objects.boxes),
        'canvases': np.unique(objects.canvases, axis=0).tolist(),
        'strides': list(present.layout.strides),
        'positive_iou': high,
        'negative_iou': low,
        'present': figures(present, objects, **targets),
        'suggested': suggested and figures(suggested, objects, **targets),
        'flags': flags(suggested.layout) if suggested else [],
        'worst': [
            {
                'image': source.records[objects.image[i]].image_id,
                'width': float(sides[i, 0]),
                'height': float(sides[i, 1]),
                'iou': float(present.best[i]),
            }
            for i in order
        ],
    }


def flags(layout):
    """Returns the words of a command line that set the anchors of a Layout."""
    sizes = tuple(tuple(int(size) for size in sizes) for sizes in layout.sizes)
    sizes = sizes[0] if len(sizes) == 1 else sizes
    ratios = tuple(float(ratio) for ratio in layout.aspect_ratios)
    shown = (str(each).replace(' ', '') for each in (sizes, ratios))
    return [
        f"'--config.anchors.{key}={value}'"
        for key, value in zip(('sizes', 'aspect_ratios'), shown, strict=True)
    ]


def is_worth(content):
    """Says whether the suggestion in the contents of anchors.json is worth another training."""
    now, then = (
        fit and fit['mean_best_iou'] + fit['covered']
        for fit in (content['present'], content['suggested'])
    )
    return then is not None and then - now >= WORTH


def comparison(content):
    """Returns rows (what, text of the present, text of the suggested anchors) of anchors.json.

    Without a suggestion its texts are empty.
    """
    high, low = content['positive_iou'], content['negative_iou']
    total = len(content['present']['types'])
    shown = {
        'mean best IoU': lambda f: f'{f["mean_best_iou"]:.3f}',
        f'objects at IoU {high:g} or more': lambda f: f'{f["covered"]:.1%}',
        'objects by their best anchor alone': lambda f: f'{f["low_quality"]:.1%}',
        f'objects below IoU {low:g}': lambda f: f'{f["below_negative_iou"]:.1%}',
        'objects at IoU 0': lambda f: f'{f["objects_at_iou_0"]:,}',
        'objects without an anchor of their own': lambda f: f'{f["objects_without_anchor"]:,}',
        'positive anchors per image': lambda f: f'{f["positives_per_image"]:.1f}',
        'types that are never positive': lambda f: f'{f["types_never_positive"]} of {total}',
    }
    for name, title in (('anchors', 'as they are'), ('oracle', 'moved perfectly')):
        for key in ('AR@100', 'AR@100/small', 'recall@0.5/100'):
            what = f'{key.replace("@100", "").replace("/100", "")}, anchors {title}'
            shown[what] = lambda f, name=name, key=key: _number(f['bounds'][name][key])
    fits = content['present'], content['suggested']
    return [(what, *(show(f) if f else '' for f in fits)) for what, show in shown.items()]


def lines(content):
    """Returns the lines for a terminal of the contents of anchors.json."""
    canvases = ', '.join(f'{width} x {height}' for height, width in content['canvases'])
    count = len(content['present']['types']) // len(content['strides'])
    strides = ', '.join(map(str, content['strides']))
    text = [
        f'{content["dataset"]}: {content["images"]} images, {content["objects"]} objects on '
        f'{canvases}; {count} anchors in a cell, of stride {strides}',
        f'{"":<42}{"present":>10}{"suggested" if content["suggested"] else "":>12}',
    ]
    text += [f'{what:<42}{now:>10}{then:>12}' for what, now, then in comparison(content)]
    for name, title in TITLES.items():
        tables = {
            key: [row for row in content[key]['groups'][name] if row['objects']]
            for key in ('present', 'suggested')
            if content[key]
        }
        text.append(f'mean best IoU by {title}:')
        text.append(_row('', [row['name'] for row in tables['present']]))
        text.append(_row('objects', [row['objects'] for row in tables['present']]))
        for key, rows in tables.items():
            text.append(_row(key, [_number(row['mean_best_iou']) for row in rows]))
    if idle := [t for t in content['present']['types'] if not t['positives']]:
        names = ', '.join(f'{t["size"]:g} at {t["aspect_ratio"]:g}' for t in idle[:5])
        text.append(f'never positive: {names}{", .." if len(idle) > 5 else ""}')
    return text + advice(content)


def worse_sizes(content):
    """Returns the names of those sizes of objects that the suggested anchors fit worse."""
    now, then = (content[name]['groups']['size'] for name in ('present', 'suggested'))
    return [
        old['name']
        for old, new in zip(now, then, strict=True)
        if old['objects'] and old['mean_best_iou'] - new['mean_best_iou'] >= WORSE
    ]


def advice(content):
    """Returns what to do next, as lines."""
    if not is_worth(content):
        text = ['keep these: other sizes and ratios, as many in a cell, would hardly gain anything']
        return text + [f'the best found: {" ".join(content["flags"])}'] * bool(content['flags'])
    now, then = (content[name] for name in ('present', 'suggested'))
    names = ', '.join(worse_sizes(content))
    worse = [f'objects of {names} pixels fit worse than now;'] if names else []
    return [
        f'others, as many in a cell, cover {then["covered"]:.0%} of the objects instead of '
        f'{now["covered"]:.0%}, at a mean best IoU of {then["mean_best_iou"]:.3f} instead of '
        f'{now["mean_best_iou"]:.3f};',
        *worse,
        f'train in a new --workdir with {" ".join(content["flags"])}',
    ]


def _groups(values, edges, names, best, thresholds):
    own, high, low = np.searchsorted(edges, values, side='right'), *thresholds
    rows = []
    for i, name in enumerate(names):
        inside = best[own == i]
        shares = inside, inside >= high, inside < low
        means = [float(each.mean()) if len(inside) else None for each in shares]
        keys = 'mean_best_iou', 'covered', 'below_negative_iou'
        rows.append({'name': name, 'objects': len(inside), **dict(zip(keys, means, strict=True))})
    return rows


def _row(name, cells):
    return f'  {name:10}' + ''.join(f'{cell:>12}' for cell in cells)


def _number(value):
    return '-' if value is None else f'{value:.3f}'
