"""What all pages share: filling in a template, and preparing plots and boxes for it."""

import base64
import json
import pathlib
import re

import jinja2
import numpy as np

from rpn_jax.files import write_atomically
from rpn_jax.report import plots

POINTS = 2000  # most points of a line in a page's JSON files, so that pages of long runs stay small
ROWS = 24  # most rows of the table below a plot
_RECALLS = {  # what recall is drawn over
    'iou': {'xlabel': 'IoU', 'full': True},
    'count': {'xlabel': 'proposals per image', 'log_x': True},
    'size': {'xlabel': 'object size', 'names': ('small', 'medium', 'large')},
}


def write(path, template, **values):
    """Fills in a template of this folder and writes it to one HTML file, complete or not at all.

    Every string is escaped; the filter `base64` makes text of bytes. Raises jinja2.UndefinedError
    where the template uses a value that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / 'templates'),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters['base64'] = lambda data: base64.b64encode(data).decode()
    write_atomically(path, environment.get_template(template).render(**values))


def figure(title, svg, xlabel, series, names=None, columns=None):
    """Returns what the macro `plot` shows of one plot: the picture, its description, its numbers.

    svg is bytes; series is {name: (x [n], y [n])}; names are texts for x = 0, 1, .. where x is not
    a number. The numbers offered as a JSON file are those of series, or columns {name: list}; at
    most POINTS of each.
    """
    shown = columns_of(series, xlabel, names)
    columns = shown if columns is None else columns
    thinned = {name: _thin(values, POINTS) for name, values in columns.items()}
    first, *lines = (_thin(values, ROWS) for values in shown.values())
    rows = [
        [f'{x}', *('' if value is None else f'{value:.4g}' for value in values)]
        for x, *values in zip(first, *lines, strict=True)
    ]
    return {
        'title': title,
        'svg': svg,
        'alt': describe(title, shown),
        'header': list(shown),
        'rows': rows,
        'json': json.dumps({'title': title, 'columns': thinned}, allow_nan=False).encode(),
        'file': re.sub(r'\W+', '_', title).strip('_').lower() + '.json',
        'points': [max(map(len, each.values())) for each in (thinned, columns)],
    }


def recall_figure(title, key, curves, bounds=(), **options):
    """Returns, as a list, the plot of one key of curves, such as 'AR/count'; [] without any value.

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
    if not series:
        return []
    series, axes = dict(bounds) | series, _RECALLS[over]
    svg = plots.recalls(series, **axes, **options)
    return [figure(title, svg, axes['xlabel'], series, axes.get('names'))]


def columns_of(series, xlabel, names=None):
    """Returns all numbers of a plot as {name: list}, of equal lengths; the first are the x values.

    None is where a line has no point; the arguments are as in figure.
    """
    lines = [dict(np.stack(plots.finite(*xy), 1).tolist()) for xy in series.values()]
    xs = sorted(set().union(*lines))
    ys = ([line.get(x) for x in xs] for line in lines)
    labels = [names[int(x)] for x in xs] if names else xs
    return {xlabel: labels, **dict(zip(series, ys, strict=True))}


def describe(title, columns):
    """Returns a sentence that describes a plot: where each line starts and ends."""
    (xs, *_), texts = columns.values(), []
    for name, values in list(columns.items())[1:]:
        known = [(x, y) for x, y in zip(xs, values, strict=True) if y is not None]
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
    return plain([values[i] for i in plots.evenly(len(values), limit)])
