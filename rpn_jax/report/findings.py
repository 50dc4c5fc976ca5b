"""What the figures of an evaluation mean, in sentences: the first section of a report."""

import numpy as np

from rpn_jax.evaluation.metrics import LIMITS
from rpn_jax.report import anchor_tables, plots

ENDS = '(means of the first and of the last tenth of the log)'
SMALL = 0.05  # gain of a mean IoU
COLLAPSED = 0.25  # spread_ratio below which proposals count as all of one size
REMEDIES = {  # reason of a miss: what it means, what to try
    'no_anchor': 'no anchor is near them; try other anchors.sizes or anchors.aspect_ratios',
    'no_positive_anchor': 'no anchor is matched to them; try more anchors, or a lower positive_iou',
    'no_decoded_box': 'no box reaches the IoU before clipping; the regression is the weakest step',
    'clipped': 'their boxes are clipped away or too small; check proposals.min_size',
    'below_pre_nms': 'their boxes score too low to enter NMS; raise proposals.pre_nms',
    'suppressed': 'NMS suppresses their boxes; try a higher proposals.nms_iou',
    'beyond_limit': 'their boxes rank too low; the scores are the weakest step',
}


def headline_count(evaluation):
    """Returns the number of proposals of the headline: 100, or the most that AR is known at."""
    known = [n for n in LIMITS if n <= 100 and f'AR@{n}' in evaluation['proposals']]
    return max(known, default=100)


def best_blind(evaluation, figure):
    """Returns (name, value) of the best baseline that never sees the image, or (None, None)."""
    values = {
        name: figures[figure]
        for name, figures in evaluation['baselines'].items()
        if name not in plots.BOUNDS and figures.get(figure) is not None
    }
    name = max(values, key=values.get, default=None)
    return name, values.get(name)


def times(value, blind):
    """Writes value / blind to a tenth, or to a hundredth where a tenth could round to 1."""
    ratio = value / blind
    return f'{ratio:.1f}' if ratio > 1.1 else f'{ratio:.2f}'


def spread_ratio(sizes):
    """Returns how widely the sizes of proposals spread, relative to those of the objects.

    That is the ratio of the interquartile ranges of log sqrt(area); None for too few boxes.
    sizes: {'objects': [n, 2], 'proposals': [m, 2]} float widths and heights, above zero.
    """
    if min(len(sizes['objects']), len(sizes['proposals'])) < 2:
        return None
    logs = {name: np.log(np.prod(pairs, 1)) / 2 for name, pairs in sizes.items()}
    ranges = {name: np.subtract(*np.percentile(values, (75, 25))) for name, values in logs.items()}
    return float(ranges['proposals'] / ranges['objects']) if ranges['objects'] > 0 else None


def findings(history, evaluation, sizes):
    """Returns sentences on an evaluation: a list of (sentence, whether it is good news).

    history and evaluation are as in report.write_page, sizes as in spread_ratio.
    """
    deceived = _deceived(history, evaluation)
    sentences = [
        each(evaluation) for each in (_average_recall, _recall, _misses, _regression, _anchors)
    ]
    sentences += [None if deceived else _loss(history), _skipped(history)]
    sentences += [_spread(spread_ratio(sizes))]
    return [sentence for sentence in (deceived, *sentences) if sentence]


def _deceived(history, evaluation):
    """Returns the sentence on a loss that fell while boxes became no better than blind ones."""
    figure = f'AR@{headline_count(evaluation)}'
    value, (name, blind) = evaluation['proposals'].get(figure), best_blind(evaluation, figure)
    first, last = _ends(history)
    if None in (value, blind, first) or value > blind or last >= 0.95 * first:
        return None
    text = f'The training loss fell from {first:.3f} to {last:.3f}, yet the proposals recall no '
    text += f'more than boxes that never see the image ({figure} {value:.3f}, {name} {blind:.3f}). '
    return f'{text}The mode doctor looks for the cause.', False


def _skipped(history):
    """Returns the sentence on steps that were skipped, None where there are none."""
    if not (count := int(sum(line.get('skipped', 0) for line in history))):
        return None
    text = f'{count} {"step was" if count == 1 else "steps were"} skipped, as loss or gradient was'
    return f'{text} not finite: the folder nonfinite holds their batches.', False


def _average_recall(evaluation):
    count = headline_count(evaluation)
    value = evaluation['proposals'].get(f'AR@{count}')
    if value is None:
        return 'No objects were evaluated, so the average recall is not defined.', False
    text = f'The first {count} proposals of an image reach an average recall of {value:.3f}'
    name, blind = best_blind(evaluation, f'AR@{count}')
    if not blind:
        return f'{text}; there is no blind baseline to compare it with.', True
    against = f'{times(value, blind)} times the {blind:.3f} of {name}'
    if value > 1.1 * blind:
        return f'{text}, {against}, the best baseline that never sees the image.', True
    more = 'little more' if value > blind else 'less' if value < blind else 'no more'
    text += f', only {against}, which never sees the image: the network knows {more}'
    return f'{text} than where objects tend to be.', False


def _recall(evaluation):
    figure = f'recall@0.5/{headline_count(evaluation)}'
    value = evaluation['proposals'].get(figure)
    if value is None:
        return None
    name, blind = best_blind(evaluation, figure)
    text = f'They recall {value:.1%} of the objects at an IoU of 0.5'
    if name:
        text += f', {name} {blind:.1%}'
    bound = evaluation['baselines'].get('oracle', {}).get(figure)
    if bound is not None:
        text += f'; with perfect scores and regression these anchors would recall {bound:.1%}'
    return f'{text}.', blind is None or value > blind


def _misses(evaluation):
    counts = evaluation.get('missed') or {}
    total = sum(counts.values())
    if not total:
        return None
    reason = max(counts, key=counts.get)
    share = f'{counts[reason] / total:.0%} of the {total:,} objects missed at IoU 0.5'
    return f'{share} have the same reason: {REMEDIES[reason]}.', False


def _regression(evaluation):
    """Returns the sentence on how much regression moves foreground anchors onto their objects."""
    anchors = evaluation.get('anchors') or {}
    positives = np.array(anchors.get('positives', ()), np.float64)
    if not positives.sum():
        return None
    before, after = (
        np.nansum(np.array(anchors[name], np.float64) * positives) / positives.sum()
        for name in ('iou_before', 'iou_after')
    )
    text = f'Regression takes the mean IoU of foreground anchors from {before:.2f} to {after:.2f}'
    if after - before < SMALL:
        return f'{text}, hardly at all: train longer, as boxes are learnt after scores.', False
    return f'{text}.', True


def _anchors(evaluation):
    anchors = evaluation.get('anchors')
    text = anchors and anchor_tables.finding(anchors)
    return (text, False) if text else None


def _loss(history):
    first, last = _ends(history)
    if first is None:
        return 'Too little training was recorded to know whether the loss fell.', False
    if last < 0.95 * first:
        return f'The training loss fell from {first:.3f} to {last:.3f} {ENDS}.', True
    return f'The training loss did not fall: from {first:.3f} to {last:.3f} {ENDS}.', False


def _ends(history):
    """Returns the mean losses of the first and the last tenth of a history; None of none."""
    values = plots.column(history, 'loss')
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None, None
    tenth = max(1, len(values) // 10)
    return np.mean(values[:tenth]), np.mean(values[-tenth:])


def _spread(ratio):
    if ratio is None:
        return None
    measure = f'the interquartile range of their log size is {ratio:.2f} times that of the objects'
    if ratio < COLLAPSED:
        return f'The ten best proposals have collapsed to nearly one size: {measure}.', False
    return f'The ten best proposals have not collapsed to one size: {measure}.', True
