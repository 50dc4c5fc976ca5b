"""Writes a run's report: one HTML page with its plots, pictures and numbers inside it."""

import re

import cv2
import numpy as np

from rpn_jax.evaluation.metrics import LIMITS
from rpn_jax.report import anchor_tables, drawings, missed, pages, plots
from rpn_jax.report.findings import (
    COLLAPSED,
    best_blind,
    findings,
    headline_count,
    spread_ratio,
    times,
)
from rpn_jax.report.pages import corners, figure

COLUMNS = tuple(f'AR@{n}' for n in LIMITS)
COLUMNS += ('recall@0.5/100', 'recall@0.7/100', 'ABO@100', 'top10_max_iou')
_SIDE = 640  # pixels of a gallery picture's longer side: twice what it takes on the page
_HISTORY = 1000  # most lines of the history that go into the page's data
_PANELS = {
    'learning_rate': 'learning rate',
    'images_per_second': 'images per second',
    'positives': 'positive anchors sampled',
}
_LOST = {'lost': 'the box that might have found it', 'remover': 'the proposal that removed that'}
_CURVES = (
    ('recall@0.5/count', 'Recall at IoU 0.5 over number of proposals'),
    ('recall@0.7/count', 'Recall at IoU 0.7 over number of proposals'),
    ('AR/count', 'Average recall over number of proposals'),
)


def write_report(path, *, title, config, history, evaluation, curves, sizes, gallery, misses=()):
    """Writes one self-contained HTML file, complete or not at all.

    Args:
      path: where to; the folder exists.
      title: str.
      config: nested dict of the run's configuration.
      history: list of dicts, the lines of metrics.jsonl; may be empty or lack keys.
      evaluation: dict with `step`, `dataset`, `images`, `objects`, `proposals` {METRIC: float or
        None} and `baselines` {NAME: {METRIC: float or None}}, as in evaluation.json; perhaps
        `parts`, `intervals`, `missed` and, as coverage.summarise makes them, `anchors`.
      curves: {NAME: {KEY: [n] floats or None}} for `proposals` and the baselines; KEY is `iou`,
        `recall@N/iou` for some N, `count`, `recall@0.5/count`, `recall@0.7/count` or `AR/count`.
      sizes: {'objects': [n, 2], 'proposals': [m, 2]} float widths and heights in pixels.
      gallery: list of dicts with `image` [H, W, 3] uint8 RGB, `image_id`, `group` ('best' or
        'worst'), `boxes` [G, 4] and `kind` [G], `proposals` [P, 4] and `scores` [P], best first,
        `top_iou` (float or None), and how many `objects` there are and, by these proposals at IoU
        0.5, `recalled`.
      misses: list of dicts, an object each that was not found: as in analysis.missed.
    """
    sizes = {name: _above_zero(sizes.get(name, ())) for name in ('objects', 'proposals')}
    count = headline_count(evaluation)
    some = [_scalars(history[i]) for i in plots.evenly(len(history), _HISTORY)]
    anchors = evaluation.get('anchors')
    pages.write(
        path,
        'report.html.j2',
        title=title,
        evaluation=evaluation,
        findings=findings(history, evaluation, sizes),
        count=count,
        best_blind=best_blind(evaluation, f'AR@{count}'),
        times=times,
        spread=spread_ratio(sizes),
        collapsed=COLLAPSED,
        columns=columns(evaluation),
        rows=metric_rows(evaluation),
        training_figures=_training_figures(history),
        recall_figures=_recall_figures(curves, evaluation),
        size_figures=_size_figures(sizes),
        cards=[_card(picture) for picture in gallery],
        part_figures=_part_figures(curves, evaluation),
        missed=missed.rows(misses),
        removers=missed.removers(misses),
        missed_cards=[_missed_card(miss) for miss in missed.examples(misses)],
        anchors=anchors and anchor_tables.rows(anchors),
        stretched=anchors and anchor_tables.sentence(anchors),
        anchor_figures=_anchor_figures(history, anchors),
        config=config,
        data=_plain({'evaluation': evaluation, 'history': some, 'curves': curves}),
    )


def columns(evaluation):
    """Returns those of COLUMNS that the evaluation has, be it without a value."""
    return [column for column in COLUMNS if column in evaluation['proposals']]


def metric_rows(evaluation):
    """Returns the table's rows: proposals, parts, blind baselines from best to worst, bounds.

    Returns:
      A list of dicts: `name`, `group` ('proposals', 'part', 'blind', 'bound') and `cells`, one for
      each of columns: `value` (float or None), `interval` (low and high, or None), `best` (the best
      blind one of the column) and `below` (proposals that are no better than that).
    """
    metric = f'AR@{headline_count(evaluation)}'
    parts = evaluation.get('parts', {})
    sets = {'proposals': evaluation['proposals'], **parts, **evaluation['baselines']}
    intervals = evaluation.get('intervals', {})
    bounds = {'proposals': intervals.get('proposals', {})}
    bounds |= intervals.get('parts', {}) | intervals.get('baselines', {})
    groups = {name: 'bound' if name in plots.BOUNDS else 'blind' for name in sets}
    groups |= {'proposals': 'proposals'} | dict.fromkeys(parts, 'part')
    places = ('proposals', 'part', 'blind', 'bound')
    order = sorted(sets, key=lambda n: (places.index(groups[n]), -(sets[n].get(metric) or 0)))
    shown = columns(evaluation)
    rivals = {column: best_blind(evaluation, column) for column in shown}
    rows = []
    for name in order:
        cells = []
        for column in shown:
            value, (rival, best) = sets[name].get(column), rivals[column]
            below = name == 'proposals' and None not in (value, best) and value <= best
            cell = {'value': value, 'interval': bounds.get(name, {}).get(column)}
            cells.append(cell | {'best': name == rival, 'below': below})
        rows.append({'name': name, 'group': groups[name], 'cells': cells})
    return rows


def _training_figures(history):
    """Returns the losses and, small, what else was recorded; nothing where there is nothing."""
    steps = plots.column(history, 'step')
    series = {}
    for key in (*plots.LOSSES, *_PANELS):
        values = plots.column(history, key)
        if np.any(np.isfinite(values) & np.isfinite(steps)):
            series[key] = (steps, values)
    figures = []
    losses = {key: xy for key, xy in series.items() if key in plots.LOSSES}
    if losses:
        title = 'Loss over steps, as logged (thin) and smoothed'
        figures.append(figure(title, plots.losses(losses), 'step', losses))
    panels = {name: series[key] for key, name in _PANELS.items() if key in series}
    if panels:
        title = 'Learning rate, speed and sampled positives over steps'
        figures.append(figure(title, plots.panels(panels), 'step', panels))
    return figures


def _recall_figures(curves, evaluation):
    """Returns the plots of recall; those over the number of proposals show the bounds as well."""
    figures = []
    numbers = {
        n for curve in curves.values() for n in re.findall(r'@(\d+)/iou', ' '.join(curve or ()))
    }
    over_iou = [
        (f'recall@{n}/iou', f'Recall over IoU, first {n} proposals')
        for n in sorted(numbers, key=int)
    ]
    for key, title in (*over_iou, *_CURVES):
        metric, x = key.split('/')
        series = {
            name: (np.array(curve[x], np.float64), np.array(curve[key], np.float64))
            for name, curve in curves.items()
            if name not in evaluation.get('parts', {})
            if curve and curve.get(x) is not None and curve.get(key) is not None
        }
        series = {name: xy for name, xy in series.items() if np.any(np.isfinite(xy[1]))}
        if not series:
            continue
        if x == 'count':
            series = _bound_lines(evaluation, metric) | series
        xlabel = 'IoU' if x == 'iou' else 'proposals per image'
        svg = plots.recalls(series, xlabel=xlabel, log_x=x == 'count', full=x == 'iou')
        figures.append(figure(title, svg, xlabel, series))
    return figures + _object_size_figures(evaluation)


def _part_figures(curves, evaluation):
    """Returns the plot of what each part of the network is worth, if it was measured."""
    series = {
        name: tuple(np.array(curves[name][key], np.float64) for key in ('count', 'AR/count'))
        for name in ('proposals', *evaluation.get('parts', {}))
        if curves.get(name) and curves[name].get('AR/count') is not None
    }
    if len(series) < 2 or not any(np.any(np.isfinite(y)) for _, y in series.values()):
        return []
    svg = plots.recalls(series, xlabel='proposals per image', log_x=True)
    title = 'Average recall over number of proposals, part by part'
    return [figure(title, svg, 'proposals per image', series)]


def _anchor_figures(history, anchors):
    """Returns how far anchors stretch, and what each size learnt in training, where known."""
    if not anchors:
        return []
    found = anchor_tables.stretch_figure(anchors), anchor_tables.training_figure(history, anchors)
    return [figure(*parts) for parts in found if parts]


def _scalars(line):
    """Returns a line of the history without what is by anchor type: its plot has the numbers."""
    return {key: value for key, value in line.items() if key != 'anchors'}


def _bound_lines(evaluation, metric):
    """Returns {NAME: (counts, values)} of the bounds for 'AR' or 'recall@IOU'."""
    found = {}
    for name in plots.BOUNDS:
        metrics = evaluation['baselines'].get(name, {})
        points = [
            (n, metrics[key])
            for n in LIMITS
            if metrics.get(key := f'AR@{n}' if metric == 'AR' else f'{metric}/{n}') is not None
        ]
        if points:
            found[name] = tuple(np.array(points, np.float64).T)
    return found


def _object_size_figures(evaluation):
    """Returns the plot of AR@100 for small, medium and large objects, if any of them is known."""
    names = ('small', 'medium', 'large')
    sets = {'proposals': evaluation['proposals'], **evaluation['baselines']}
    series = {
        name: (np.arange(3), np.array([metrics.get(f'AR@100/{n}') for n in names], np.float64))
        for name, metrics in sets.items()
    }
    series = {name: xy for name, xy in series.items() if np.any(np.isfinite(xy[1]))}
    if not series:
        return []
    svg = plots.recalls(series, xlabel='object size', names=names)
    return [figure('AR@100 over object size', svg, 'object size', series, names)]


def _size_figures(sizes):
    """Returns the plot of how boxes spread in size, with percentiles as its data."""
    if min(len(pairs) for pairs in sizes.values()) == 0:
        return []
    percents = np.array((5, 25, 50, 75, 95))
    series = {}
    for name, pairs in sizes.items():
        sides = np.sqrt(np.prod(pairs, 1))
        for key, values in zip(('width', 'height', 'sqrt(area)'), (*pairs.T, sides), strict=True):
            series[f'{name}: {key}'] = (percents, np.percentile(values, percents))
    title = 'Sizes of all objects and of the ten best proposals of each image'
    columns = {
        f'{name}: {key}': pairs[:, i].tolist()
        for name, pairs in sizes.items()
        for i, key in enumerate(('width', 'height'))
    }
    return [figure(title, plots.sizes(**sizes), 'percentile', series, columns=columns)]


def _card(picture):
    """Returns what the template shows of one gallery picture: boxes stay vectors over the photo."""
    kinds = np.asarray(picture['kind']).reshape(-1).tolist()
    objects = zip(kinds, corners(picture['boxes']), strict=True)
    outlines = [(f'object {drawings.KINDS[k]}', drawings.KINDS[k], box) for k, box in objects if k]
    scores = np.asarray(picture['scores'], np.float64).reshape(-1).tolist()
    proposals = list(zip(scores, corners(picture['proposals']), strict=True))[:10]
    said = f'{picture["recalled"]} of {picture["objects"]} recalled'
    if picture['top_iou'] is not None:
        said += f' · top-10 IoU {picture["top_iou"]:.2f}'
    alt = f'with {len(outlines)} annotated boxes and {len(proposals)} proposals'
    return _photo(picture, said, alt) | {'outlines': outlines, 'proposals': proposals}


def _missed_card(miss):
    """Returns what the template shows of a missed object, as of a gallery picture."""
    picture, said = miss['picture'], missed.caption(miss)
    names = [('object', 'the missed object'), ('object other', 'another object')]
    outlines = [(*n, b) for n, b in zip(names, corners(picture['boxes']), strict=False)]
    for name, title in _LOST.items():
        if picture[name] is not None:
            outlines.append((name, title, *corners(picture[name])))
    alt = f'with a missed object and the box that might have found it; {said}'
    return _photo(picture, said, alt) | {'outlines': outlines, 'proposals': []}


def _photo(picture, said, alt):
    """Returns a picture's photograph, of a size for the page, and its words."""
    height, width = picture['image'].shape[:2]
    scale = min(1, _SIDE / max(height, width))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(picture['image'], shape, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    words = {'said': said, 'alt': f'Image {picture["image_id"]} {alt}.'}
    known = {key: picture[key] for key in ('image_id', 'group')}
    return known | words | {'jpeg': jpeg, 'width': width, 'height': height}


def _above_zero(pairs):
    """Returns those of the [n, 2] widths and heights that have a logarithm."""
    pairs = np.asarray(pairs, np.float64).reshape(-1, 2)
    return pairs[np.all(np.isfinite(pairs) & (pairs > 0), 1)]


def _plain(value):
    """Returns nested data as what JSON can hold: no arrays, no NaN, floats to six digits."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f'{value:.6g}') if np.isfinite(value) else None
    return value
