"""What an evaluation's numbers mean, in words: the first thing that a report says."""

import numpy as np

from rpn_jax.evaluation.metrics import LIMITS
from rpn_jax.report import anchor_tables, plots

COLLAPSED = (
    0.25  # proposals whose log size spreads less than this share of the objects' are one size
)
REMEDIES = {  # reason of a miss: what it means, what to try
    'no_anchor': 'no anchor comes near them: try other anchors.sizes or aspect_ratios',
    'no_positive_anchor': 'no anchor learns them: try more anchors, or a lower positive_iou',
    'no_decoded_box': 'no box, before clipping, reaches it: the regression is the weakest part',
    'clipped': 'boxes on them are clipped away or too small: look at proposals.min_size',
    'below_pre_nms': 'boxes on them score too low for NMS to see: raise proposals.pre_nms',
    'suppressed': 'NMS removes what covers them: try a higher proposals.nms_iou',
    'beyond_limit': 'boxes on them rank too low: the scores are the weakest part',
}


def headline_count(evaluation):
    """Returns 100, or where fewer proposals were kept, the most that average recall is known at."""
    known = [n for n in LIMITS if n <= 100 and f'AR@{n}' in evaluation['proposals']]
    return max(known, default=100)


def best_blind(evaluation, metric):
    """Returns (name, value) of the best baseline that never sees the image, or (None, None)."""
    values = {
        name: metrics[metric]
        for name, metrics in evaluation['baselines'].items()
        if name not in plots.BOUNDS and metrics.get(metric) is not None
    }
    name = max(values, key=values.get, default=None)
    return name, values.get(name)


def times(value, blind):
    """Writes value / blind, in which the sentence and the number above it must agree.

    To a tenth; to a hundredth where that could round to 1, or below.
    """
    ratio = value / blind
    return f'{ratio:.1f}' if ratio > 1.1 else f'{ratio:.2f}'


def spread_ratio(sizes):
    """Returns how widely proposals spread in size, as a share of how widely objects do.

    Args:
      sizes: {'objects': [n, 2], 'proposals': [m, 2]} float widths and heights, above zero.

    Returns:
      The ratio of the interquartile ranges of log sqrt(area), or None if there are too few boxes.
    """
    if min(len(sizes['objects']), len(sizes['proposals'])) < 2:
        return None
    logs = {name: np.log(np.prod(pairs, 1)) / 2 for name, pairs in sizes.items()}
    ranges = {name: np.subtract(*np.percentile(values, (75, 25))) for name, values in logs.items()}
    return float(ranges['proposals'] / ranges['objects']) if ranges['objects'] > 0 else None


def findings(history, evaluation, sizes):
    """Says in two to six sentences what the numbers mean.

    Args:
      history: as in write_report.
      evaluation: as in write_report; sizes: as in spread_ratio.

    Returns:
      A list of (sentence, whether it is good news).
    """
    found = (
        _say_recall(evaluation),
        _say_found(evaluation),
        _say_missed(evaluation),
        _say_anchors(evaluation),
        _say_loss(history),
        _say_spread(spread_ratio(sizes)),
    )
    return [finding for finding in found if finding]


def _say_recall(evaluation):
    count = headline_count(evaluation)
    value = evaluation['proposals'].get(f'AR@{count}')
    if value is None:
        return 'No objects were evaluated, so the average recall is not defined.', False
    said = f'The first {count} proposals of an image reach an average recall of {value:.3f}'
    name, blind = best_blind(evaluation, f'AR@{count}')
    if not blind:
        return f'{said}; no blind baseline is there to compare it with.', True
    if value > 1.1 * blind:
        said += f', {times(value, blind)} times the {blind:.3f} of {name}'
        return f'{said}, the best baseline that never sees the image.', True
    said += f', only {times(value, blind)} times the {blind:.3f} of {name}'
    knows = 'little more' if value > blind else 'less' if value < blind else 'no more'
    said += ', which never sees the image: the network knows'
    return f'{said} {knows} than where objects tend to be.', False


def _say_found(evaluation):
    metric = f'recall@0.5/{headline_count(evaluation)}'
    value = evaluation['proposals'].get(metric)
    if value is None:
        return None
    name, blind = best_blind(evaluation, metric)
    said = f'They find {value:.1%} of the objects at an IoU of 0.5 or more'
    if name:
        said += f'; {name}: {blind:.1%}'
    bound = evaluation['baselines'].get('oracle', {}).get(metric)
    if bound is not None:
        said += f'; these anchors, scored and moved perfectly: {bound:.1%}'
    return f'{said}.', blind is None or value > blind


def _say_loss(history):
    values = plots.column(history, 'loss')
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return 'Too little training was recorded to say whether the loss fell.', False
    tenth = max(1, len(values) // 10)
    first, last = np.mean(values[:tenth]), np.mean(values[-tenth:])
    if last < 0.95 * first:
        return f'The training loss fell from {first:.3f} to {last:.3f}.', True
    return f'The training loss did not fall: {first:.3f} at first, {last:.3f} at last.', False


def _say_spread(ratio):
    if ratio is None:
        return None
    measure = f'the interquartile range of their log size is {ratio:.2f} times that of the objects'
    if ratio < COLLAPSED:
        return f'The ten best proposals have collapsed to nearly one size: {measure}.', False
    return f'The ten best proposals have not collapsed to one size: {measure}.', True


def _say_missed(evaluation):
    missed = evaluation.get('missed') or {}
    total = sum(missed.values())
    if not total:
        return None
    reason = max(missed, key=missed.get)
    share = f'{missed[reason] / total:.0%} of the {total} objects missed at IoU 0.5'
    return f'{share}: {REMEDIES[reason]}.', False


def _say_anchors(evaluation):
    anchors = evaluation.get('anchors')
    said = anchors and anchor_tables.finding(anchors)
    return (said, False) if said else None
