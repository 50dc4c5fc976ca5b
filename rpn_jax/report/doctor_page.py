"""The page of the doctor: its findings, worst first, and the pictures behind them."""

import numpy as np

from rpn_jax.diagnosis import alignment
from rpn_jax.diagnosis import probe as probing
from rpn_jax.diagnosis.finding import LABELS
from rpn_jax.report import drawings, pages, plots
from rpn_jax.report.compare_plots import styles

SHOWN = 8  # images
COSTS = {  # what the seconds and bytes of a Study are of
    'input': 'a batch, read and resized',
    'transfer': 'its copy to the device',
    'step': 'a step, estimated from the short trainings',
    'compile': 'a compilation of the update, for each canvas',
    'image evaluated': 'an image evaluated, estimated',
    'state': 'memory of the weights and the optimizer, on each device',
    'step memory': 'memory of a step on each device, as XLA plans it',
    'images': 'memory of the batches that wait, of each device',
    'kept maps': 'memory of kept maps, at most',
    'device': 'memory of the device',
}


def write_page(path, *, title, study):
    """Writes one self-contained HTML file of a doctor.Study, complete or not at all."""
    pages.write(
        path,
        'doctor.html.j2',
        title=title,
        findings=study.findings,
        labels=LABELS,
        counts={level: sum(each.level == level for each in study.findings) for level in LABELS},
        figures=figures(study.probe) if study.probe else [],
        parts=parts(study.probe) if study.probe else [],
        pulls=pulls(study.probe) if study.probe and study.probe.before else '',
        pictures=[_pictured(*each) for each in study.batches[:SHOWN]],
        alignment=study.alignment or {},
        enough=alignment.ENOUGH,
        seconds=study.seconds,
        first=study.advice,
        costs=costs(study.seconds, study.memory),
    )


def parts(probed):
    """Returns rows (name, update over weights, share of dead channels at first, at last)."""
    looks = [look['dead'] if look else {} for look in (probed.before, probed.after)]
    names = dict.fromkeys([*probed.ratios, *looks[0]])
    order = sorted(names, key=lambda name: (name == 'head', name == 'fpn', name != 'stem', name))
    return [
        (name, f'{probed.ratios[name]:.2g}' if name in probed.ratios else '')
        + tuple(f'{float(look[name]):.0%}' if name in look else '' for look in looks)
        for name in order
    ]


def pulls(probed):
    """Returns a sentence on the gradients of the two losses and on what one batch taught."""
    pull = {name: float(value) for name, value in probed.before['gradients'].items()}
    foreground, background = (
        f'{score:.2f}' if np.isfinite(score) else 'nothing, as none was sampled'
        for score in probed.after['scores']
    )
    own, objects = probed.spreads
    return (
        f'Before the first step the gradient of the objectness loss at the maps under the head '
        f'has a norm of {pull["objectness"]:.2g}, that of the box loss {pull["box"]:.2g}. '
        f'Once a batch is learnt, its foreground anchors score {foreground}, its background '
        f'{background}; the log sizes of the best proposals deviate by {own:.2f}, those of its '
        f'objects by {objects:.2f}.'
    )


def costs(seconds, memory):
    """Returns rows (what, value) of times and of the memory that a training needs."""
    named = {name: f'{seconds[name]:.2g} s' for name in seconds}
    sizes = {name: f'{size / 2**30:.2g} GiB' for name, size in memory.items() if size}
    return [(COSTS[name], value) for name, value in (named | sizes).items()]


def figures(probed):
    """Returns the plots of a probe.Probe, as pages.figure does."""
    first = probed.overfit
    steps, most = np.arange(len(first.loss)), 2 * first.loss[0]
    rates, lasting = (_losses(traces, most) for traces in (probed.rates, probed.lasting))
    learnt = 'learnt' if probing.is_learnt(first) else 'not learnt'
    several = 'Several batches'
    for trace in probed.lasting[:1]:
        end = 'diverges' if probing.diverges(trace) else 'stable'
        several += f' at {trace.rate:.2g}, three times the rate for batches of this size: {end}'
    shown = {
        'Loss on one batch by learning rate, up to twice the first (the config’s: middle)': rates,
        f'One batch, {len(steps) - 1} steps at {first.rate:.2g}: {learnt}': {
            'total': (steps, first.loss),
            'objectness': (steps, first.objectness),
            'box': (steps, first.box),
        },
        several: lasting,
    }
    return [plot for title in shown for plot in pages.figure(title, _drawn, 'step', shown[title])]


def _losses(traces, most):
    """Returns the series of Traces' losses by learning rate; `most` is drawn of one that grows."""
    return {
        f'{trace.rate:.2g}': (np.arange(len(trace.loss)), np.minimum(trace.loss, most))
        for trace in traces
    }


def _drawn(series):
    return plots.panels({'loss': series}, styles(series))


def _pictured(image, boxes):
    """Returns a JPEG's bytes of an image uint8 with its objects' boxes drawn."""
    drawn = drawings.draw_boxes(image, boxes, drawings.COLOURS['object'], 2)
    return drawings.encode_jpeg(drawn, 480, 85)
