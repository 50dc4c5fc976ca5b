"""The page of the doctor: its findings, worst first, and the pictures behind them."""

import numpy as np

from rpn_jax.diagnosis import alignment
from rpn_jax.diagnosis.finding import LEVELS
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
        counts={level: sum(each.level == level for each in study.findings) for level in LEVELS},
        figures=figures(study.probe) if study.probe else [],
        ratios=study.probe.ratios if study.probe else {},
        pictures=[_pictured(*each) for each in study.batches[:SHOWN]],
        alignment=study.alignment or {},
        enough=alignment.ENOUGH,
        seconds=study.seconds,
    )


def figures(probed):
    """Returns the plots of a probe.Probe, as pages.figure does."""
    first = probed.overfit
    most = 2 * first.loss[0]  # what is drawn of a loss that grows
    rates = {
        f'{trace.rate:.2g}': (np.arange(len(trace.loss)), np.minimum(trace.loss, most))
        for trace in probed.rates
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
            _drawn,
            'step',
            rates,
        ),
        *pages.figure(
            f'One batch, {len(steps) - 1} steps at {first.rate:.2g}: is it learnt?',
            _drawn,
            'step',
            learnt,
        ),
    ]


def _drawn(series):
    return plots.panels({'loss': series}, styles(series))


def _pictured(image, boxes):
    """Returns a JPEG's bytes of an image uint8 with its objects' boxes drawn."""
    drawn = drawings.draw_boxes(image, boxes, drawings.COLOURS['object'], 2)
    return drawings.encode_jpeg(drawn, 480, 85)
