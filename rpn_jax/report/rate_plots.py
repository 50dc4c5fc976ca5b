"""Draws learning rates: over the steps of a run, and with the losses of a range test."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpn_jax.report import plots

BLUE, ORANGE, GREY = '#0072B2', '#D55E00', '#9aa2ab'
ROOM = 1.6  # times the first loss, which a plot of losses shows


@matplotlib.rc_context(plots.RC)
def over_steps(steps, rates):
    """Draws learning rates over steps, both [n]; returns SVG bytes."""
    figure, axes = _axes()
    plots.draw_line(axes, steps, rates, {'color': BLUE, 'linewidth': 2.2})
    axes.set(xlabel='step', ylabel='learning rate', ylim=(0, 1.05 * rates.max() or 1))
    plots.whole_ticks(axes.xaxis)
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.6g}')
    figure.tight_layout()
    return plots.svg(figure)


@matplotlib.rc_context(plots.RC)
def range_test(measured, summary):
    """Draws the losses of an lr_range.RangeTest over the learning rate, single and averaged.

    summary is its lr_range.summary; what it suggests is marked. Returns SVG bytes.
    """
    figure, axes = _axes()
    plots.draw_line(axes, measured.rates, measured.losses, {'color': GREY, 'linewidth': 0.9})
    plots.draw_line(axes, measured.rates, measured.smooth, {'color': BLUE, 'linewidth': 2.4})
    top = ROOM * np.nanmax(measured.smooth[: max(1, np.nanargmin(measured.smooth))])
    axes.set(xscale='log', ylim=(0, top or 1), xlabel='learning rate')
    axes.set_ylabel('loss: of a step (thin), averaged (thick)')
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    if summary['suggested']:
        rate, low = summary['suggested'].values()
        axes.axvspan(low * rate, rate, color=ORANGE, alpha=0.12, linewidth=0)
        axes.axvline(rate, color=ORANGE, linewidth=1.6)
        text = f'{rate:g}; in cycles from {low * rate:.2g}'
        style = {'color': ORANGE, 'va': 'top', 'ha': 'left', 'fontsize': 11.5}
        box = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 2}  # above the curve
        axes.text(rate * 1.1, 0.97 * top, text, bbox=box, **style)
    figure.tight_layout()
    return plots.svg(figure)


def _axes():
    figure = Figure(figsize=(10, 4.6))
    axes = figure.subplots()
    return figure, axes
