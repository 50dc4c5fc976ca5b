"""The report of a run: one HTML page with its figures, plots and pictures."""

import numpy as np

from rpn_jax.diagnosis.finding import LABELS, ranked
from rpn_jax.diagnosis.statistics import evenly
from rpn_jax.evaluation import metrics
from rpn_jax.evaluation.summary import other_keys_sentence
from rpn_jax.report import anchor_tables, drawings, findings, missed, pages, plots
from rpn_jax.report.pages import figure, recall_figure

_HISTORY = 1000  # most lines of the history in the page's data
_PANELS = {
    'learning_rate': 'learning rate',
    'images_per_second': 'images per second',
    'positives': 'positive anchors sampled',
}
_CURVES = {
    'recall@0.5/count': 'Recall at IoU 0.5 over number of proposals',
    'recall@0.7/count': 'Recall at IoU 0.7 over number of proposals',
    'AR/count': 'Average recall over number of proposals',
}


def write_page(
    path, *, title, config, history, evaluation, curves, sizes, gallery, misses=(), doctor=()
):
    """Writes one self-contained HTML file, complete or not at all.

    Returns the sentences at its top, as a list.

    Args:
      path: where to; the folder exists.
      title: str.
      config: nested dict of the run's configuration.
      history: list of dicts, the lines of metrics.jsonl; may be empty or lack keys.
      evaluation: dict with `step`, `dataset`, `images`, `objects`, `proposals` {figure: float or
        None} and `baselines` {name: {figure: float or None}}, as in evaluation.json; perhaps
        `parts`, `intervals`, `missed`, `other_keys` and, as anchor_coverage.summarise makes
        them, `anchors`.
      curves: {name: {key: [n] floats or None}} for `proposals`, ablations and baselines; the key is
        `iou`, `recall@N/iou` for some N, `count`, or one of _CURVES.
      sizes: {'objects': [n, 2], 'proposals': [m, 2]} float widths and heights in pixels.
      gallery: list of dicts with `image` [H, W, 3] uint8 RGB, which may be shrunk, the original's
        `size` (height, width), `image_id`, `group` ('best' or 'worst'), `boxes` [G, 4] and `kind`
        [G], `proposals` [P, 4] and `scores` [P], best first, the number of `objects`, `covered`,
        the mean of their best IoUs, and how many the proposals `recalled` at IoU 0.5.
      misses: list of dicts, one for each missed object, as in rpn_jax.report.missed.
      doctor: Findings on the config, as diagnosis.config_checks yields them.
    """
    sizes = {name: _above_zero(sizes.get(name, ())) for name in ('objects', 'proposals')}
    anchors = evaluation.get('anchors')
    some = [  # without the lists by anchor type, which their plot has
        {key: value for key, value in history[i].items() if key != 'anchors'}
        for i in evenly(len(history), _HISTORY)
    ]
    found = findings.findings(history, evaluation, sizes)
    pages.write(
        path,
        'report.html.j2',
        title=title,
        evaluation=evaluation,
        findings=_ordered(found, doctor, other_keys_sentence(evaluation)),
        count=findings.headline_count(evaluation),
        best_blind=findings.best_blind,
        times=findings.times,
        spread=findings.spread_ratio(sizes),
        collapsed=findings.COLLAPSED,
        columns=metrics.columns(evaluation['proposals'], sizes=False),
        rows=rows(evaluation),
        training_figures=_training_figures(history),
        recall_figures=_recall_figures(curves, evaluation),
        size_figures=_size_figures(sizes),
        gallery=gallery,
        jpeg=drawings.encode_jpeg,
        ablation_figures=_ablation_figures(curves, evaluation),
        missed=missed.rows(misses),
        removers=missed.removers(misses),
        misses=misses,
        missed_caption=missed.caption,
        anchors=anchors and anchor_tables.rows(anchors),
        stretched=anchors and anchor_tables.sentence(anchors),
        anchor_figures=anchor_tables.figures(history, anchors) if anchors else [],
        config=config,
        data=pages.plain({'evaluation': evaluation, 'history': some, 'curves': curves}),
    )
    return [sentence for sentence, _ in found]


def _ordered(found, doctor, notes):
    """Returns (sentence, label) of the verdict, of what the doctor warns of, and of the rest."""
    sentences = [(sentence, '' if good else LABELS['warning']) for sentence, good in found]
    labelled = [(each.line(), LABELS[each.level]) for each in ranked(doctor)]
    warnings = [each for each in labelled if each[1] != LABELS['info']]
    infos = [*((note, LABELS['info']) for note in notes), *labelled[len(warnings) :]]
    return [*sentences[:1], *warnings, *sentences[1:], *infos]


def rows(evaluation):
    """Returns the table's rows as a list of dicts, group by group, the best of a group first.

    Each has `name`, `group` ('proposals', 'ablation', 'blind' or 'bound'), `figures` {figure: float
    or None} and `intervals` {figure: (low, high) or None}.
    """
    own, intervals = {'proposals': evaluation['proposals']}, evaluation.get('intervals', {})
    groups = {'proposals': (own, {'proposals': intervals.get('proposals', {})})}
    groups['ablation'] = evaluation.get('parts', {}), intervals.get('parts', {})
    for group, is_bound in (('blind', False), ('bound', True)):
        sets = {n: f for n, f in evaluation['baselines'].items() if (n in plots.BOUNDS) == is_bound}
        groups[group] = sets, intervals.get('baselines', {})
    headline = f'AR@{findings.headline_count(evaluation)}'
    return [
        {'name': name, 'group': group, 'figures': sets[name], 'intervals': known.get(name, {})}
        for group, (sets, known) in groups.items()
        for name in sorted(sets, key=lambda name: -(sets[name].get(headline) or 0))
    ]


def _training_figures(history):
    """Returns the plots of the losses, and of what else was logged over steps."""
    steps = plots.column(history, 'step')
    losses = {key: (steps, plots.column(history, key)) for key in plots.LOSSES}
    others = {name: (steps, plots.column(history, key)) for key, name in _PANELS.items()}

    def draw_others(series):
        return plots.panels({name: {name: xy} for name, xy in series.items()})

    return [
        *figure('Loss over steps, as logged (thin) and smoothed', plots.losses, 'step', losses),
        *figure(
            'Learning rate, speed and sampled positives over steps', draw_others, 'step', others
        ),
    ]


def _recall_figures(curves, evaluation):
    """Returns the plots of recall; those over the number of proposals show the bounds as well."""
    own = {name: curve for name, curve in curves.items() if name not in evaluation.get('parts', {})}
    over_iou = {key for curve in own.values() for key in curve or () if key.endswith('/iou')}
    drawn = []
    for key in sorted(over_iou, key=lambda key: (len(key), key)):
        count = key.removeprefix('recall@').removesuffix('/iou')
        drawn += recall_figure(f'Recall over IoU, first {count} proposals', key, own)
    for key, title in _CURVES.items():
        bounds = _bound_lines(evaluation, key.removesuffix('/count'))
        drawn += recall_figure(title, key, own, bounds)
    sets = evaluation['baselines'] | {'proposals': evaluation['proposals']}
    sizes = {
        name: {'size': [0, 1, 2], 'AR@100/size': [figures.get(size) for size in metrics.SIZES]}
        for name, figures in sets.items()
    }
    return drawn + recall_figure('AR@100 over object size', 'AR@100/size', sizes)


def _ablation_figures(curves, evaluation):
    """Returns the plot of the ablations beside the proposals; [] where none was measured."""
    own = {name: curves.get(name) for name in ('proposals', *evaluation.get('parts', {}))}
    title = 'Average recall over number of proposals, with ablations'
    return recall_figure(title, 'AR/count', own) if len(own) > 1 else []


def _bound_lines(evaluation, metric):
    """Returns {name: (counts, values)} of the bounds for 'AR' or 'recall@IOU'."""
    counts = np.array(metrics.LIMITS)
    names = [f'AR@{n}' if metric == 'AR' else f'{metric}/{n}' for n in counts]
    sets = {bound: evaluation['baselines'].get(bound, {}) for bound in plots.BOUNDS}
    return {
        bound: (counts, np.array([figures.get(name) for name in names], np.float64))
        for bound, figures in sets.items()
    }


def _size_figures(sizes):
    """Returns the plot of the sizes of boxes; below it stand percentiles, in its file all sizes."""
    if not all(map(len, sizes.values())):
        return []
    percents, series, columns = np.array((5, 25, 50, 75, 95)), {}, {}
    for name, pairs in sizes.items():
        columns |= {f'{name}: width': pairs[:, 0].tolist(), f'{name}: height': pairs[:, 1].tolist()}
        roots = np.sqrt(np.prod(pairs, 1))
        for key, values in zip(('width', 'height', 'sqrt(area)'), (*pairs.T, roots), strict=True):
            series[f'{name}: {key}'] = (percents, np.percentile(values, percents))
    title = 'Sizes of all objects and of the ten best proposals of each image'
    draw = plots.sizes
    return figure(title, lambda _: draw(**sizes), 'percentile', series, columns=columns)


def _above_zero(pairs):
    """Returns those of [n, 2] widths and heights that have a logarithm."""
    pairs = np.asarray(pairs, np.float64).reshape(-1, 2)
    return pairs[np.all(np.isfinite(pairs) & (pairs > 0), 1)]
