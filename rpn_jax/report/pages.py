"""What all pages share: filling in a template, and preparing plots and boxes for it."""

import base64
import functools
import json
import pathlib
import re

import jinja2
import numpy as np

from rpn_jax.diagnosis.statistics import evenly
from rpn_jax.files import write_atomically
from rpn_jax.report import drawings, plots

POINTS = 2000  # most points of a line in a page's JSON files, so that pages of long runs stay small
ROWS = 24  # most rows of the table below a plot
_RECALLS = {  # what recall is drawn over
    'iou': {'xlabel': 'IoU', 'full': True},
    'count': {'xlabel': 'proposals per image', 'log_x': True},
    'size': {'xlabel': 'object size', 'names': ('small', 'medium', 'large')},
}


def write(path, template, **values):
    """Fills in a template of this folder and writes it to one HTML file, complete or not at all.

    Every string is escaped; every template has the filter `base64`, which makes text of bytes,
    `xywh` and `kinds`. Raises jinja2.UndefinedError where it uses a value that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / 'templates'),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters['base64'] = lambda data: base64.b64encode(data).decode()
    environment.globals |= {'xywh': xywh, 'kinds': drawings.KINDS}
    write_atomically(path, environment.get_template(template).render(**values))


def figure(title, draw, xlabel, series, names=None, columns=None):
    """Returns what the macro `plot` shows of one plot, as a list; [] where no line has a point.

    draw makes SVG bytes of those of series, {name: (x [n], y [n])}, that have a point; names are
    texts for x = 0, 1, .. where x is not a number. The numbers offered as a JSON file are those of
    series, or columns {name: list}; at most POINTS of each.
    """
    series = {name: xy for name, xy in series.items() if len(plots.finite(*xy)[0])}
    if not series:
        return []
    shown = _columns(series, xlabel, names)
    columns = columns or shown
    thinned = {name: _thin(values, POINTS) for name, values in columns.items()}
    rows = zip(*(_thin(values, ROWS) for values in shown.values()), strict=True)
    made = {
        'title': title,
        'svg': draw(series),
        'alt': _describe(title, shown),
        'header': list(shown),
        'rows': [[f'{x}', *('' if y is None else f'{y:.4g}' for y in ys)] for x, *ys in rows],
        'json': json.dumps({'title': title, 'columns': thinned}, allow_nan=False).encode(),
        'file': re.sub(r'\W+', '_', title).strip('_').lower() + '.json',
        'points': [max(map(len, each.values())) for each in (thinned, columns)],
    }
    return [made]


def recall_figure(title, key, curves, bounds=(), **options):
    """Returns the plot of one key of curves, such as 'AR/count', as figure does.

    curves are {name: {key: [n] floats or None} or None}, with the x values below what follows the
    slash: 'iou', 'count' or 'size'. bounds are further lines {name: (x [n], y [n])}, drawn only
    beside others; the options are further ones of plots.recalls.
    """
    over = key.partition('/')[2]
    lists = {name: (curve.get(over), curve.get(key)) for name, curve in curves.items() if curve}
    series = {
        name: tuple(np.array(values, np.float64) for values in xy)
        for name, xy in lists.items()
        if None not in xy and any(value is not None for value in xy[1])
    }
    axes, series = _RECALLS[over], series and dict(bounds) | series
    draw = functools.partial(plots.recalls, **axes, **options)
    return figure(title, draw, axes['xlabel'], series, axes.get('names'))


def _columns(series, xlabel, names):
    """Returns the numbers of a plot: {name: list} of equal lengths, first x; None: no point."""
    lines = [dict(np.stack(plots.finite(*xy), 1).tolist()) for xy in series.values()]
    xs = sorted(set().union(*lines))
    ys = ([line.get(x) for x in xs] for line in lines)
    labels = [names[int(x)] for x in xs] if names else xs
    return {xlabel: labels, **dict(zip(series, ys, strict=True))}


def _describe(title, columns):
    """Returns a sentence that describes a plot: where each line starts and ends."""
    (_, xs), *lines = columns.items()
    texts = []
    for name, ys in lines:
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
        (x0, y0), (x1, y1) = known[0], known[-1]
        texts.append(f'{name} {y0:.3g} at {plain(x0)} to {y1:.3g} at {plain(x1)}')
    return f'{title}: ' + '; '.join(texts) + '.'


def xywh(boxes):
    """Returns [N, 4] boxes as lists of (x, y, width, height), rounded to a tenth of a pixel."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return np.stack([x0, y0, np.maximum(x1 - x0, 0), np.maximum(y1 - y0, 0)], 1).round(1).tolist()


def plain(value):
    """Returns nested data as JSON can hold it: no arrays, no NaN, floats with six digits."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if not isinstance(value, float):
        return value
    if not np.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f'{value:.6g}')


def _thin(values, limit):
    """Returns at most `limit` of a list of values, evenly spaced, as JSON can hold them."""
    return plain([values[i] for i in evenly(len(values), limit)])
