"""The comparison of runs: one HTML page on which run is ahead, and in what they differ."""

import functools

import numpy as np

from rpn_jax.data.records import Kind
from rpn_jax.evaluation import compare, metrics
from rpn_jax.evaluation.misses import REASONS
from rpn_jax.report import compare_plots, pages, plots
from rpn_jax.report.findings import REMEDIES, best_blind, times

HEADLINES = ('AR@100', 'AR@10')
LONGEST = 16  # letters of a run's name in a plot
_LOSSES = {
    'loss': 'Total loss over steps, as logged (thin) and smoothed',
    'loss_objectness': 'Objectness loss over steps',
    'loss_box': 'Box loss over steps',
}


def write_page(path, runs, files, tallies, compared):
    """Writes the page and returns the sentences at its top; raises OSError if it cannot be written.

    runs is {run: Results}, two or more, each called by its workdir as the user wrote it; files is
    {run: RunFiles}, where what a run lacks is left out; tallies {run: {figure: Tally}} and compared
    {run: {figure: {..}}} are as compare makes them.
    """
    names = labels(list(runs))
    missed = {run: each.missed for run, each in files.items()}
    changed = config_changes([each.config for each in files.values() if each.config])
    first, shown = next(iter(runs.values())), compare.shown(compared)
    blind = {run: each.baselines for run, each in files.items()}
    found = findings(tallies, names, changed, missed, {r.step for r in runs.values()}, blind)
    pages.write(
        path,
        'compare.html.j2',
        names=names,
        steps={run: each.step for run, each in runs.items()},
        dataset=first.dataset,
        images=len(first.image_ids),
        objects=sum(int(np.sum(kinds == Kind.OBJECT)) for kinds in first.gt_kinds),
        findings=found,
        compared=compared,
        shown=shown,
        tested=sum(row[f]['low'] is not None for row in [*compared.values()][1:] for f in shown),
        beyond=compare.is_beyond,
        signed=compare.signed,
        left_out=[name for name in compare.FIGURES if name not in next(iter(compared.values()))],
        changed=changed,
        files=files,
        difference_figures=_difference_figures(compared, shown, names),
        curve_figures=_curve_figures(runs, names),
        loss_figures=_loss_figures({run: each.history for run, each in files.items()}, names),
        miss_figures=_miss_figures(missed, names),
    )
    return [sentence for sentence, _ in found]


def labels(runs):
    """Returns {run: name for plots}: a letter and its folder's name, shortened in the middle."""
    names = {}
    for i, run in enumerate(runs):
        name = compare.name_of(run)
        if len(name) > LONGEST:
            name = f'{name[: LONGEST // 2]}…{name[-(LONGEST // 2 - 1) :]}'
        names[run] = f'{chr(65 + i) if i < 26 else i + 1} · {name}'
    return names


def config_changes(configs):
    """Returns the keys in which flat configs differ: {key: [its value in each config, or None]}."""
    values = {key: [own.get(key) for own in configs] for config in configs for key in config}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def findings(tallies, names, changed, missed, steps, blind=()):
    """Returns a list of (sentence, whether it is good news, None where it is neither).

    They name the run ahead, what the runs differ in and what to do next. tallies is {run: {figure:
    Tally}}, names {run: label}, changed as config_changes returns it, missed {run: {reason: count}
    or None}, steps the set of steps at which the runs were evaluated and blind {run: {baseline:
    {figure: number}}}.
    """
    figures = [name for name in HEADLINES if name in next(iter(tallies.values()))]
    leads = {figure: lead(tallies, figure) for figure in figures}
    sentences = [_lead_sentence(figure, *each, names) for figure, each in leads.items()]
    if not figures:
        sentences.append(('Too few proposals were kept to compare AR@10.', False))
    sentences += _blind_sentence(figures, leads, dict(blind))
    if changed:
        sentences.append((_config_sentence(changed), None))
    if len(steps) > 1:
        between = ' and '.join(f'{step:,}' for step in sorted(steps))
        sentences.append((f'The runs were evaluated at different steps: {between}.', False))
    for figure in figures[:1]:
        if leads[figure][1]:
            sentences.append((_next_sentence(figure, *leads[figure], tallies, names, missed), None))
    return sentences


def lead(tallies, figure):
    """Returns the run ahead in a figure, and how the others differ from it, nearest first.

    These are {run: {value, difference, low, high}}; the run is None where no value is defined.
    """
    values = {run: each[figure].value for run, each in tallies.items()}
    known = sorted((run for run in values if values[run] is not None), key=lambda r: -values[r])
    if not known:
        return None, {}
    own = {run: {figure: each[figure]} for run, each in tallies.items()}
    rows = compare.compare(own, base=known[0])
    return known[0], {run: rows[run][figure] for run in known[1:]}


def _lead_sentence(figure, ahead, others, names):
    if not others:
        return f'{figure} is not defined: there are no objects.', False
    rival, row = next(iter(others.items()))
    value = row['value'] - row['difference']
    if row['difference'] == 0:
        return f'{figure}: {names[ahead]} and {names[rival]} have the same {value:.3f}.', False
    near = [names[run] for run, row in others.items() if not compare.is_beyond(row)]
    difference, low, high = (compare.signed(row[key]) for key in ('difference', 'low', 'high'))
    against = f'{names[rival]} has {row["value"]:.3f}, {difference} (95 % interval {low} to {high})'
    text = f'{figure}: {names[ahead]} is ahead with {value:.3f}'
    if not near:
        seeds = 'another seed may differ as much'
        return f'{text}, beyond the noise of the images ({seeds}); {against}.', True
    if len(others) == 1:
        return f'{text}, but within noise; {against}.', False
    return f'{text}, but within noise of {", ".join(near)}; next, {against}.', False


def _blind_sentence(figures, leads, blind):
    """Returns the sentence on the best blind baseline, and whether it is good news, in a list.

    The list is empty where it is not known.
    """
    figure = next((name for name in figures if leads[name][1]), None)
    baselines = blind.get(leads[figure][0], {}) if figure else {}
    name, value = best_blind({'baselines': baselines}, figure)
    if not value:
        return []
    row = next(iter(leads[figure][1].values()))
    best = row['value'] - row['difference']
    text = f'The best boxes that never see the image ({name}) have {figure} {value:.3f}: the run '
    return [(f'{text}ahead has {times(best, value)} times that.', best > 1.1 * value)]


def _config_sentence(changed):
    keys = list(changed)
    if keys == ['seed']:
        return 'The configs differ in the seed alone: the differences are chance.'
    if len(keys) == 1:
        values = ', '.join(map(_text, changed[keys[0]]))
        return f'The configs differ in one key: {keys[0]} ({values}).'
    listed = ', '.join(keys[:4]) + (f' and {len(keys) - 4} more' if len(keys) > 4 else '')
    text = f'The configs differ in {len(keys)} keys: {listed}.'
    return f'{text} The difference cannot be attributed to a single one.'


def _next_sentence(figure, ahead, others, tallies, names, missed):
    """Returns what could settle the comparison, or else what limits the run that is ahead."""
    row = next(iter(others.values()))
    if not compare.is_beyond(row):
        images = len(tallies[ahead][figure].numerator)
        text = 'Evaluate more images (evaluation.images) and train with other seeds'
        half = (row['high'] - row['low']) / 2
        if row['difference'] and half > abs(row['difference']):
            more = images * (half / abs(row['difference'])) ** 2
            text += (
                f': a difference as small as this in {figure} would be beyond noise from '
                f'about {float(f"{more:.1g}"):,.0f} images, instead of {images:,}'
            )
        return f'{text}.'
    reasons = {reason: n for reason, n in (missed[ahead] or {}).items() if reason in REMEDIES and n}
    if not reasons:
        return f'Next, read the report of {names[ahead]}, and train it with another seed.'
    reason = max(reasons, key=reasons.get)
    share = reasons[reason] / sum(reasons.values())
    text = f'{share:.0%} of the objects that {names[ahead]} misses have the same reason'
    return f'{text}: {REMEDIES[reason]}.'


def _difference_figures(compared, figures, names):
    """Returns the plot of these figures' differences from the first run, with their intervals."""
    first, *others = compared
    keys = ('difference', 'low', 'high')
    rows = {
        names[run]: np.array([[compared[run][f][k] for f in figures] for k in keys], np.float64).T
        for run in others
    }
    series = {
        f'{name} {key}': (np.arange(len(figures)), column)
        for name, row in rows.items()
        for key, column in zip(keys, row.T, strict=True)
    }
    title = f'Difference from {names[first]} with 95 % intervals, filled where beyond noise'
    draw = compare_plots.intervals
    return pages.figure(title, lambda _: draw(figures, rows), 'figure', series, figures)


def _curve_figures(runs, names):
    """Returns the plots of recall over the number of proposals and over IoU, all runs in each."""
    curves, most = {}, 0
    for run, each in runs.items():
        pairs = zip(each.gt_boxes, each.gt_kinds, strict=True)
        objects = [boxes[kinds == Kind.OBJECT] for boxes, kinds in pairs]
        overlaps = metrics.measure(each.proposals, objects, list(map(metrics.area, objects)))
        own = max(map(len, each.proposals), default=0)
        counts = [n for n in metrics.COUNTS if n < own] + [own]
        curves[names[run]], most = metrics.curves(overlaps, counts), max(most, own)
    options = {'styles': compare_plots.styles(names.values()), 'right': 0.66}
    drawn = []
    for key, title in {
        'AR/count': 'Average recall over number of proposals',
        'recall@0.5/count': 'Recall at IoU 0.5 over number of proposals',
        'recall@100/iou': f'Recall over IoU, first {min(100, most)} proposals',
    }.items():
        drawn += pages.recall_figure(title, key, curves, **options)
    return drawn


def _loss_figures(histories, names):
    """Returns the plots of the losses that were recorded, all runs in each."""
    styles, drawn = compare_plots.styles(names.values()), []
    draw = functools.partial(plots.losses, styles=styles, right=0.84)
    for key, title in _LOSSES.items():
        series = {
            names[run]: (plots.column(history, 'step'), plots.column(history, key))
            for run, history in histories.items()
        }
        drawn += pages.figure(title, draw, 'step', series)
    return drawn


def _miss_figures(missed, names):
    """Returns the plot of why objects were missed, of all runs where that is known."""
    reasons = [reason for reason in REASONS if any((m or {}).get(reason) for m in missed.values())]
    series = {
        names[run]: (np.arange(len(reasons)), np.array([m.get(r, 0) for r in reasons], np.float64))
        for run, m in missed.items()
        if m is not None
    }
    title = 'Objects missed at IoU 0.5 by the first 100 proposals, by reason'
    draw = functools.partial(compare_plots.counts, reasons=reasons, runs=list(names.values()))
    return pages.figure(title, draw, 'reason', series, reasons)


def _text(value):
    text = 'none' if value is None else f"'{value}'" if isinstance(value, str) else f'{value}'
    return text if len(text) <= 60 else f'{text[:40]}…'
