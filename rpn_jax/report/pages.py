"""What the pages share: how a template becomes one file, and what of a plot or a box goes in."""

import base64
import json
import pathlib
import re

import jinja2
import numpy as np

from rpn_jax.files import write_atomically
from rpn_jax.report import plots

POINTS = 2000  # most points of a line that go into a page, so that long runs have small pages


def write(path, template, **values):
    """Writes a template of this folder, filled in, to one HTML file, complete or not at all.

    Every string is escaped; the filter `base64` makes text of bytes. Raises jinja2.UndefinedError
    where the template names a value that is not there.
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
    """Returns what the macro `plot` shows of one plot: the picture, its words, its numbers.

    svg is bytes; series, xlabel and names are as in plots.table. The numbers that the page offers
    as a JSON file are those of series, or of columns {NAME: list}; at most POINTS of each.
    """
    header, rows = plots.table(series, xlabel, names)
    columns = plots.columns(series, xlabel, names) if columns is None else columns
    chosen = {
        name: [_short(values[i]) for i in plots.evenly(len(values), POINTS)]
        for name, values in columns.items()
    }
    content = json.dumps({'title': title, 'columns': chosen}, allow_nan=False)
    return {
        'title': title,
        'svg': svg,
        'alt': plots.describe(title, series, names),
        'header': header,
        'rows': rows,
        'json': content.encode(),
        'file': re.sub(r'\W+', '_', title).strip('_').lower() + '.json',
        'points': [max(map(len, each.values())) for each in (chosen, columns)],
    }


def corners(boxes):
    """Returns [N, 4] boxes as lists of (x, y, width, height), rounded to a tenth of a pixel."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return np.stack([x0, y0, np.maximum(x1 - x0, 0), np.maximum(y1 - y0, 0)], 1).round(1).tolist()


def _short(value):
    """Returns a number with six digits or, where it is whole, with all; anything else as it is."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else float(f'{value:.6g}')
