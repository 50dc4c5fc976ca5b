"""Draws the statistics of a data set: levels of its channels, sizes and shapes of its objects."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.data.records import OBJECT
from rpn_jax.report import plots

CHANNELS = {'red': '#D55E00', 'green': '#009E73', 'blue': '#0072B2'}


@matplotlib.rc_context(plots.RC)
def picture(found, records):
    """Returns an SVG of the channels' levels and of the objects' sizes, shapes and numbers."""
    objects = np.concatenate([r.boxes[r.kind == OBJECT] for r in records]).astype(np.float64)
    rows = 2 if found['boxes'] else 1
    figure = Figure(figsize=(11, 3.5 * rows))
    axes = figure.subplots(rows, rows, squeeze=False).ravel()
    for (name, colour), levels in zip(CHANNELS.items(), found['levels'], strict=True):
        share = 100 * np.asarray(levels) / found['pixels']
        axes[0].plot(np.arange(256), share, color=colour, label=name)
    even = found['pixels'] / 256  # black and white may stand far above the rest
    ceiling = 1.2 * max(np.percentile(found['levels'], 99), even)
    axes[0].set_ylim(0, 100 * ceiling / found['pixels'])
    axes[0].legend(frameon=False)
    per_image = [np.sum(record.kind == OBJECT) for record in records]
    if found['boxes']:
        _draw_boxes(axes, objects, per_image)
    axes[0].set_title('levels of each channel', loc='left')
    axes[0].set_xlabel('level')
    axes[0].set_ylabel('% of pixels')
    figure.suptitle(f'{found["dataset"]}: {found["images"]} images', x=0.02, ha='left')
    figure.tight_layout()
    return plots.svg(figure)


def _draw_boxes(axes, objects, per_image):
    """Draws the objects' sizes, shapes and numbers; what is beyond an axis counts at its end."""
    width, height = (objects[:, 2:] - objects[:, :2]).T
    for axis, values, bins in (
        (axes[1], np.sqrt(width * height), np.geomspace(4, 2048, 37)),
        (axes[2], height / width, np.geomspace(1 / 8, 8, 37)),
        (axes[3], per_image, np.arange(max(per_image) + 2) - 0.5),
    ):
        axis.hist(np.clip(values, bins[0], bins[-1]), bins=bins, color=CHANNELS['blue'])
    for axis, ticks in ((axes[1], 2.0 ** np.arange(2, 12)), (axes[2], 2.0 ** np.arange(-3, 4))):
        axis.set_xscale('log', base=2)
        axis.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    for axis, title, label in zip(
        axes[1:],
        ('sizes of objects', 'shapes of objects', 'objects per image'),
        ('square root of the area (pixels)', 'height / width', 'objects'),
        strict=True,
    ):
        axis.set_title(title, loc='left')
        axis.set_xlabel(label)
