"""The page of the doctor: its findings, worst first, and the pictures behind them."""

import functools

import numpy as np

from rpn_jax.diagnosis import alignment, probe
from rpn_jax.report import drawings, pages, plots
from rpn_jax.report.compare_plots import styles

SHOWN = 8  # images


def write_page(path, *, title, study):
    """Writes one self-contained HTML file of a doctor.Study, complete or not at all."""
    pages.write(
        path,
        'doctor.html.j2',
        title=title,
        findings=study.findings,
        counts={
            level: sum(each.level == level for each in study.findings)
            for level in ('error', 'warning', 'info')
        },
        figures=figures(study.probe) if study.probe else [],
        ratios=study.probe.ratios if study.probe else {},
        pictures=[pictured(*each) for each in study.batches[:SHOWN]],
        alignment=study.alignment or {},
        enough=alignment.ENOUGH,
        seconds=study.seconds,
    )


def figures(probed):
    """Returns the plots of a probe.Probe, as pages.figure does."""
    names = [f'{trace.rate:.2g}' for trace in probed.rates]
    first = probed.overfit
    most = 2 * first.loss[0]  # what is drawn of a loss that grows
    rates = {
        name: (np.arange(len(trace.loss)), np.minimum(trace.loss, most))
        for name, trace in zip(names, probed.rates, strict=True)
    }
    steps = np.arange(len(first.loss))
    learnt = {
        'total': (steps, first.loss),
        'objectness': (steps, first.objectness),
        'box': (steps, first.box),
    }
    return [
        *pages.figure(
            'Loss on one batch by learning rate, up to twice the first (the config’s: middle)',
            functools.partial(_panel, 'loss'),
            'step',
            rates,
        ),
        *pages.figure(
            f'One batch, {len(steps) - 1} steps at {first.rate:.2g}: is it learnt?',
            functools.partial(_panel, 'loss'),
            'step',
            learnt,
        ),
        *pages.figure(
            'Loss at the end, from the lowest to the highest learning rate',
            functools.partial(_panel, 'loss'),
            'learning rate',
            {'end': (np.arange(len(names)), np.minimum(probe.ends(probed), most))},
            names,
        ),
    ]


def _panel(title, series):
    return plots.panels({title: series}, styles(series) if len(series) > 1 else None)


def pictured(image, boxes):
    """Returns a JPEG's bytes of an image uint8 with its objects' boxes drawn."""
    drawn = drawings.draw_boxes(image, boxes, drawings.COLOURS['object'], 2)
    return drawings.encode_jpeg(drawn, 480, 85)
