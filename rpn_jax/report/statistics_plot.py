"""Draws the statistics of a data set: levels of its channels, sizes and shapes of its objects."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.data.records import Kind
from rpn_jax.errors import printable
from rpn_jax.report import plots

BARS = 256  # most bars of the numbers of objects, of which an image may have a million
CHANNELS = {'red': '#D55E00', 'green': '#009E73', 'blue': '#0072B2'}


@matplotlib.rc_context(plots.RC)
def picture(figures, records):
    """Returns an SVG of the channels' levels, and of the objects' sizes, shapes and numbers.

    figures are those of diagnosis.statistics, records those of the data set.
    """
    rows = 2 if figures['boxes'] else 1
    figure = Figure(figsize=(11, 3.5 * rows))
    axes = figure.subplots(rows, rows, squeeze=False).ravel()
    shares = 100 * np.asarray(figures['levels']) / figures['pixels']
    for (name, colour), share in zip(CHANNELS.items(), shares, strict=True):
        axes[0].plot(np.arange(256), share, color=colour, label=name)
    # Black and white may stand far above the rest: an even spread is 100 / 256 %.
    axes[0].set_ylim(0, 1.2 * max(np.percentile(shares, 99), 100 / 256))
    axes[0].legend()
    axes[0].set(title='levels of each channel', xlabel='level', ylabel='% of pixels')
    if figures['boxes']:
        _draw_boxes(axes[1:], records)
    title = printable(f'{figures["dataset"]}: {figures["images"]} images')
    figure.suptitle(title, x=0.02, ha='left')
    figure.tight_layout()
    return plots.svg(figure)


def _draw_boxes(axes, records):
    """Draws histograms of the objects; values beyond an axis count in its first or last bin."""
    per_image = [np.sum(record.kind == Kind.OBJECT) for record in records]
    objects = np.concatenate([r.boxes[r.kind == Kind.OBJECT] for r in records]).astype(np.float64)
    width, height = (objects[:, 2:] - objects[:, :2]).T
    axes[0].hist(np.clip(np.sqrt(width * height), 4, 2048), bins=np.geomspace(4, 2048, 37))
    axes[1].hist(np.clip(height / width, 1 / 8, 8), bins=np.geomspace(1 / 8, 8, 37))
    step = -(-max(per_image) // BARS) or 1
    axes[2].hist(per_image, bins=np.arange(0, max(per_image) + 1 + step, step) - 0.5)
    for axis, ticks in ((axes[0], 2.0 ** np.arange(2, 12)), (axes[1], 2.0 ** np.arange(-3, 4))):
        axis.set_xscale('log', base=2)
        axis.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axes[0].set(title='sizes of objects', xlabel='square root of area (pixels)')
    axes[1].set(title='shapes of objects', xlabel='height / width')
    axes[2].set(title='objects per image', xlabel='objects')
