"""Writes a comparison of runs: one HTML page that says which is ahead, and what it differs in."""

from pathlib import Path

import numpy as np

from rpn_jax.data.records import OBJECT
from rpn_jax.evaluation import compare, metrics
from rpn_jax.evaluation.metrics import COUNTS
from rpn_jax.evaluation.misses import REASONS
from rpn_jax.report import compare_plots, pages, plots
from rpn_jax.report.findings import REMEDIES

HEADLINES = ('AR@100', 'AR@10')
LONGEST = 16  # letters of a run's name in a plot
_LOSSES = {
    'loss': 'Total loss over steps, as logged (thin) and smoothed',
    'loss_objectness': 'Objectness loss over steps',
    'loss_box': 'Box loss over steps',
}


def write_page(path, runs, files, tallies, compared):
    """Writes the page; raises OSError where it cannot be written.

    Args:
      path: where to; the folder exists.
      runs: {run: Results}, run being the workdir as it was named; two or more.
      files: {run: RunFiles}; what a run does not know of itself is left out.
      tallies: {run: {figure: Tally}}; compared: {run: {figure: {..}}}; both as compare makes them.
    """
    names = labels(list(runs))
    missed = {run: each.missed for run, each in files.items()}
    histories = {run: each.history for run, each in files.items()}
    changed = config_changes([each.config for each in files.values() if each.config])
    first, shown = next(iter(runs.values())), compare.shown(compared)
    plotted = {
        'difference_figures': _difference_figures(compared, shown, names),
        'curve_figures': _curve_figures(runs, names),
        'loss_figures': _loss_figures(histories, names),
        'miss_figures': _miss_figures(missed, names),
    }
    pages.write(
        path,
        'compare.html.j2',
        names=names,
        steps={run: each.step for run, each in runs.items()},
        dataset=first.dataset,
        images=len(first.image_ids),
        objects=sum(int(np.sum(kinds == OBJECT)) for kinds in first.gt_kinds),
        findings=findings(tallies, names, changed, missed, {r.step for r in runs.values()}),
        compared=compared,
        shown=shown,
        tested=sum(row[f]['low'] is not None for row in [*compared.values()][1:] for f in shown),
        beyond=compare.is_beyond,
        signed=compare.signed,
        left_out=[name for name in compare.FIGURES if name not in next(iter(compared.values()))],
        changed=changed,
        with_config=[run for run in runs if files[run].config],
        without={
            'config.json': [run for run in runs if not files[run].config],
            'metrics.jsonl': [run for run in runs if not histories[run]],
            'evaluation.json': [r for r in runs if not missed[r] and not files[r].stale],
        },
        stale={run: each.stale for run, each in files.items() if each.stale},
        **plotted,
    )


def labels(runs):
    """Names runs by a letter and their folder's name, the middle of a long one left out."""
    found = {}
    for i, run in enumerate(runs):
        name = Path(run).name or str(run)
        if len(name) > LONGEST:
            name = f'{name[: LONGEST // 2]}…{name[-(LONGEST // 2 - 1) :]}'
        found[run] = f'{chr(65 + i) if i < 26 else i + 1} · {name}'
    return found


def config_changes(configs):
    """Returns the keys in which flat configs differ: {key: [a value of each config]}.

    A key that a config lacks has the value None there.
    """
    keys = {key: None for config in configs for key in config}
    found = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}


def findings(tallies, names, changed, missed, steps):
    """Says in words who is ahead, what differs and what to look at: [(sentence, good news)].

    News that is neither good nor bad has None.

    Args:
      tallies: {run: {figure: Tally}}; names: {run: label}.
      changed: as config_changes returns it; missed: {run: {reason: count} or None}.
      steps: set of the steps at which the runs were evaluated.
    """
    figures = [name for name in HEADLINES if name in next(iter(tallies.values()))]
    leads = [lead(tallies, figure) for figure in figures]
    said = [_say_lead(*each, names) for each in zip(figures, leads, strict=True)]
    if not said:
        said = [('Too few proposals were kept to compare AR@10.', False)]
    said.append((_say_config(changed), None))
    if len(steps) > 1:
        between = ' and '.join(f'{step:,}' for step in sorted(steps))
        said.append((f'The runs were evaluated after unequal numbers of steps: {between}.', False))
    if figures:
        said.append((_say_next(figures[0], leads[0], tallies, names, missed), None))
    return [(sentence, good) for sentence, good in said if sentence]


def lead(tallies, figure):
    """Returns the run ahead in a figure and the others' differences from it, nearest first.

    Returns:
      (run, {other run: {value, difference, low, high}}); run is None where no value is defined.
    """
    values = {run: each[figure].value for run, each in tallies.items()}
    known = [run for run, value in values.items() if value is not None]
    if not known:
        return None, {}
    ahead = max(known, key=values.get)
    only = {run: {figure: each[figure]} for run, each in tallies.items()}
    rows = {run: row[figure] for run, row in compare.compare(only, base=ahead).items()}
    order = sorted((run for run in known if run != ahead), key=lambda run: -values[run])
    return ahead, {run: rows[run] for run in order}


def _say_lead(figure, found, names):
    ahead, others = found
    if not others:
        return f'{figure} is not defined: there are no objects.', False
    rival, row = next(iter(others.items()))
    value = row['value'] - row['difference']
    near = [names[run] for run, row in others.items() if not compare.is_beyond(row)]
    said = f'{figure}: {names[ahead]} is ahead with {value:.3f}'
    against = f'{names[rival]} has {row["value"]:.3f}, {_interval(row)}'
    if row['difference'] == 0:
        return f'{figure}: {names[ahead]} and {names[rival]} have the same {value:.3f}.', False
    if not near:
        return f'{said}, beyond noise; {against}.', True
    if len(others) == 1:
        return f'{said}, but within noise; {against}.', False
    return f'{said}, but within noise of {", ".join(near)}; next, {against}.', False


def _say_config(changed):
    if not changed:
        return None
    keys = list(changed)
    said = ', '.join(keys[:4]) + (f' and {len(keys) - 4} more' if len(keys) > 4 else '')
    if keys == ['seed']:
        return 'The configs differ in the seed alone: what differs here is chance.'
    if len(keys) == 1:
        values = ', '.join(map(_text, changed[said]))
        return f'The configs differ in one key: {said} ({values}).'
    said = f'The configs differ in {len(keys)} keys: {said}.'
    return f'{said} No single one of them can be said to make the difference.'


def _say_next(figure, found, tallies, names, missed):
    """Says how the doubt could be resolved, or else what holds the run that is ahead back."""
    ahead, others = found
    if not others:
        return None
    rival, row = next(iter(others.items()))
    if not compare.is_beyond(row):
        images = len(tallies[ahead][figure].numerator)
        said = 'Look next at more images (evaluation.images) and at other seeds'
        half = (row['high'] - row['low']) / 2
        if row['difference'] and half > abs(row['difference']):
            more = images * (half / abs(row['difference'])) ** 2
            said += (
                f': a difference as small as this in {figure} would stand out from '
                f'about {float(f"{more:.1g}"):,.0f} images, instead of {images:,}'
            )
        return f'{said}.'
    reasons = {reason: n for reason, n in (missed[ahead] or {}).items() if reason in REMEDIES and n}
    if not reasons:
        return f'Look next at the report of {names[ahead]}, and repeat with another seed.'
    reason = max(reasons, key=reasons.get)
    share = reasons[reason] / sum(reasons.values())
    return f'Look next at what {names[ahead]} misses. {share:.0%} of it: {REMEDIES[reason]}.'


def _interval(row):
    difference, low, high = (compare.signed(row[key]) for key in ('difference', 'low', 'high'))
    return f'{difference} (95 % interval {low} to {high})'


def _difference_figures(compared, figures, names):
    """Returns the plot of these figures' differences from the first run, with their intervals."""
    first, *others = compared
    keys = ('difference', 'low', 'high')
    rows = {
        names[run]: np.array([[compared[run][f][k] for k in keys] for f in figures], np.float64)
        for run in others
    }
    if not figures or not any(np.any(np.isfinite(row)) for row in rows.values()):
        return []
    title = f'Difference from {names[first]} with 95 % intervals, filled where beyond noise'
    places = np.arange(len(figures))
    series = {
        f'{name} {key}': (places, row[:, i])
        for name, row in rows.items()
        for i, key in enumerate(keys)
    }
    series = {name: xy for name, xy in series.items() if np.any(np.isfinite(xy[1]))}
    return [pages.figure(title, compare_plots.intervals(figures, rows), 'figure', series, figures)]


def _curve_figures(runs, names):
    """Returns the plots of recall over the number of proposals and over IoU, all runs in each."""
    most = {run: max(map(len, each.proposals), default=0) for run, each in runs.items()}
    curves, first = {}, min(100, max(most.values()))
    for run, each in runs.items():
        chosen = [boxes[kinds == OBJECT] for boxes, kinds in _pairs(each)]
        overlaps = metrics.measure(each.proposals, chosen, list(map(metrics.area, chosen)))
        counts = [n for n in COUNTS if n < most[run]] + [most[run]]
        curves[run] = metrics.curves(overlaps, counts)
    styles = {name: compare_plots.style(i) for i, name in enumerate(names.values())}
    found = []
    for key, title in (
        ('AR/count', 'Average recall over number of proposals'),
        ('recall@0.5/count', 'Recall at IoU 0.5 over number of proposals'),
        ('recall@100/iou', f'Recall over IoU, first {first} proposals'),
    ):
        x = key.split('/')[1]
        series = {
            names[run]: (np.array(curve[x], np.float64), np.array(curve[key], np.float64))
            for run, curve in curves.items()
        }
        if not all(np.any(np.isfinite(y)) for _, y in series.values()):
            continue
        xlabel = 'IoU' if x == 'iou' else 'proposals per image'
        options = {'log_x': x == 'count', 'full': x == 'iou', 'styles': styles, 'right': 0.66}
        svg = plots.recalls(series, xlabel=xlabel, **options)
        found.append(pages.figure(title, svg, xlabel, series))
    return found


def _loss_figures(histories, names):
    """Returns the plots of the losses that were recorded, all runs in each."""
    found = []
    for key, title in _LOSSES.items():
        series = {}
        for run, history in histories.items():
            points = plots.finite(plots.column(history, 'step'), plots.column(history, key))
            series[names[run]] = points if len(points[0]) else None
        shown = {name: points for name, points in series.items() if points is not None}
        if shown:
            svg = compare_plots.losses(series)
            found.append(pages.figure(title, svg, 'step', shown))
    return found


def _miss_figures(missed, names):
    """Returns the plot of why objects were missed, all runs that know it side by side."""
    reasons = [reason for reason in REASONS if any((m or {}).get(reason) for m in missed.values())]
    if not reasons:
        return []
    series = {
        names[run]: None if m is None else np.array([m.get(r, 0) for r in reasons], np.float64)
        for run, m in missed.items()
    }
    places = np.arange(len(reasons))
    shown = {name: (places, values) for name, values in series.items() if values is not None}
    title = 'Objects missed at IoU 0.5 by the first 100 proposals, by reason'
    svg = compare_plots.counts(reasons, series)
    return [pages.figure(title, svg, 'reason', shown, reasons)]


def _pairs(run):
    return zip(run.gt_boxes, run.gt_kinds, strict=True)


def _text(value):
    said = 'none' if value is None else f"'{value}'" if isinstance(value, str) else f'{value}'
    return said if len(said) <= 60 else f'{said[:40]}…'
