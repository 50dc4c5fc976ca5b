"""What the pages share: how a template becomes one file, and what of a plot or a box goes in."""

import base64
import pathlib

import jinja2
import numpy as np

from rpn_jax.analysis import plots
from rpn_jax.workdir import write_atomically


def write(path, template, **values):
    """Writes a template of this folder, filled in, to one HTML file, complete or not at all.

    Every string is escaped; the filter `base64` makes text of bytes. Raises jinja2.UndefinedError
    where the template names a value that is not there.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters['base64'] = lambda data: base64.b64encode(data).decode()
    write_atomically(path, environment.get_template(template).render(**values))


def figure(title, svg, xlabel, series, names=None):
    """Returns what the macro `plot` shows of one plot: the picture, its words, its numbers.

    svg is bytes; series, xlabel and names are as in plots.table.
    """
    header, rows = plots.table(series, xlabel, names)
    alt = plots.describe(title, series, names)
    return {'title': title, 'svg': svg, 'alt': alt, 'header': header, 'rows': rows}


def corners(boxes):
    """Returns [N, 4] boxes as lists of (x, y, width, height), rounded to a tenth of a pixel."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return np.stack([x0, y0, np.maximum(x1 - x0, 0), np.maximum(y1 - y0, 0)], 1).round(1).tolist()
