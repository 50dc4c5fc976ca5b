"""The summary of an evaluation: the contents of evaluation.json, and its table in text."""

from typing import NamedTuple

from rpn_jax.evaluation import anchor_coverage, metrics, misses
from rpn_jax.evaluation.ablations import ABLATIONS
from rpn_jax.evaluation.baselines import BLIND
from rpn_jax.evaluation.bootstrap import estimates

MISSED = {'iou': 0.5, 'limit': 100}  # missed: the first 100 proposals do not reach this IoU


GROUPS = {  # the first row of a group of the table: what the group is
    ABLATIONS[0]: 'ablations: a part of the network removed or made perfect',
    BLIND[0]: 'blind baselines: boxes that never see the image',
    'anchors': 'bounds: all anchors as they are, and moved exactly onto their objects',
}


class Figures(NamedTuple):
    """The figures of one set of boxes: what is kept of its Overlaps, which are large."""

    figures: dict
    tallies: dict
    curves: dict | None  # None for boxes without a rank


def figures_of(overlaps, limit):
    """Returns the Figures of metrics.Overlaps, where images have at most `limit` proposals."""
    counts = [n for n in metrics.COUNTS if n <= limit]
    return Figures(
        metrics.summarise(overlaps, post_nms=limit),
        metrics.tallies(overlaps, post_nms=limit),
        None if overlaps.tops is None else metrics.curves(overlaps, counts, limit),
    )


def summarise(measured, missed, anchors, types):
    """Returns the figures of evaluation.json.

    measured is {'proposals', 'baselines' or 'parts' (the ablations): {name: Figures}}, missed a
    list of misses.Miss, anchors the sums of each image and types the anchor types, as
    anchor_coverage takes them. Without ablations, as where an evaluation is brief, only the figures
    of proposals and baselines are there.
    """
    figures = {
        group: {name: each.figures for name, each in sets.items()}
        for group, sets in measured.items()
    }
    summary = {'proposals': figures['proposals']['proposals'], 'baselines': figures['baselines']}
    if figures['parts']:
        summary['parts'] = figures['parts']
        summary['intervals'] = _intervals(measured)
        summary['missed'] = misses.counts(missed)
        summary['removed_by'] = misses.removers(missed)
        summary['anchors'] = anchor_coverage.summarise(anchors, types)
    return summary


def table(summary):
    """Returns the lines of a table: the proposals, ablations, each blind baseline, the bounds."""
    columns = metrics.columns(summary['proposals'], sizes=False)
    head = '{dataset}, step {step}: {images} images, {objects} objects'.format(**summary)
    lines = [head, *other_keys_sentence(summary), ' ' * 16 + ''.join(f'{c:>16}' for c in columns)]
    sets = {'proposals': summary['proposals'], **summary.get('parts', {}), **summary['baselines']}
    rows = {n: ['-' if f[c] is None else f'{f[c]:.3f}' for c in columns] for n, f in sets.items()}
    if 'intervals' in summary:
        bounds = [summary['intervals']['proposals'][c] for c in columns]
        halves = ['-' if b is None else f'±{(b[1] - b[0]) / 2:.3f}' for b in bounds]
        rows = {'proposals': rows.pop('proposals'), 'interval': halves, **rows}
    for name, cells in rows.items():
        lines += [GROUPS[name]] if name in GROUPS else []
        lines.append(f'{name:<16}' + ''.join(f'{cell:>16}' for cell in cells))
    if missed := {reason: n for reason, n in summary.get('missed', {}).items() if n}:
        reasons = ', '.join(f'{reason} {count}' for reason, count in missed.items())
        rule = f'IoU {MISSED["iou"]} and {MISSED["limit"]} proposals'
        lines.append(f'missed at {rule}: {sum(missed.values())} ({reasons})')
    if sum((anchors := summary.get('anchors', {})).get('recalled', ())):
        shares = anchor_coverage.by_size(anchors, 'recall_share')
        sizes = '; '.join(f'{name}: {share:.0%}' for name, share in shares.items())
        lines.append(f'found by anchors of {sizes}')
    return lines


def other_keys_sentence(summary):
    """Returns a sentence on the keys in which an evaluation differs from its run, in a list."""
    changes = [
        f'{key} is {here!r}, in the run {run!r}'
        for key, (run, here) in summary.get('other_keys', {}).items()
    ]
    return (
        [f'Evaluated with other values of keys than the run: {"; ".join(changes)}.']
        if changes
        else []
    )


def _intervals(measured):
    """Returns 95 % intervals over images, all on the same resamples, as evaluation.json has them.

    {'proposals': {figure: [low, high] or None}, 'baselines': and 'parts': {name: the same}}.
    """
    tallies = {
        (group, name, figure): tally
        for group, sets in measured.items()
        for name, each in sets.items()
        for figure, tally in each.tallies.items()
    }
    nested = {group: {name: {} for name in sets} for group, sets in measured.items()}
    for (group, name, figure), (_, low, high) in estimates(tallies).items():
        nested[group][name][figure] = None if low is None else [low, high]
    return nested | {'proposals': nested['proposals']['proposals']}
