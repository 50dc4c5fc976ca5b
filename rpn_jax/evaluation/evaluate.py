"""Evaluation: proposals over a split, measured beside boxes that never saw an image."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from rpn_jax import data
from rpn_jax.data.batches import counted, padded, scale
from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.data.records import Source
from rpn_jax.evaluation import anchor_coverage, baselines, gallery, metrics, misses
from rpn_jax.evaluation.ablations import PARTS, propose_parts
from rpn_jax.evaluation.bootstrap import intervals
from rpn_jax.evaluation.results import Results
from rpn_jax.models import resnet, rpn
from rpn_jax.ops.proposals import propose

COUNTS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000)
MISSED = {'iou': 0.5, 'limit': 100}  # what counts as found, where misses are explained


class Evaluation(NamedTuple):
    """What one evaluation found: the contents of evaluation.json, and what the report draws."""

    summary: dict
    curves: dict  # {'proposals' or baseline: metrics.curves}
    sizes: dict  # {'objects': [n, 2], 'proposals': [m, 2]} widths and heights in canvas pixels
    gallery: list  # dicts of one image each, best and worst
    misses: list  # dicts of missed objects, at MISSED, some with a picture
    results: Results  # proposals and objects, for any evaluator


def make_predict(model, config, devices):
    """Returns predict(variables, batch) -> Proposals of NumPy arrays [N, P, ..] in canvas pixels.

    batch is a global batch as the data modules make it; its N is a multiple of the number of
    devices. With dense=True it returns (Proposals, logits [N, A], deltas [N, A, 4]).
    """
    pixels = pixel_family(config.data.pixels, config.data.mean, config.data.std)
    settings = dict(config.proposals)

    def predict(variables, batch):
        images = normalise(batch['image'], batch['size'], pixels)
        anchors = rpn.anchors_of(model, images.shape[1:3])
        logits, deltas = model.apply(variables, images)
        each = functools.partial(propose, **settings)
        proposals = jax.vmap(each, (0, 0, None, 0))(logits, deltas, anchors, batch['size'])
        return proposals, logits, deltas

    mapped = jax.pmap(predict, resnet.AXIS, in_axes=(None, 0), devices=list(devices))

    def sharded(variables, batch, dense=False):
        count = len(batch['image'])
        rows = {k: batch[k] for k in ('image', 'size')}
        shards = {k: v.reshape(len(devices), -1, *v.shape[1:]) for k, v in rows.items()}
        found = mapped(variables, shards)
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(count, *x.shape[2:]), found if dense else found[0]
        )

    sharded.mapped = mapped
    return sharded


def make_evaluate(model, config, train_records, *, devices, print=print):
    """Returns evaluate(variables, step) -> Evaluation over config.data.eval_split.

    Built once for a run, so that its function compiles once and the annotations are read once. The
    baselines that know where objects usually are learn it from train_records. With brief=True
    what takes longer is left out: the parts' contributions, the reasons of misses, the anchors.
    """
    # A run on many devices may be evaluated where they do not divide its batch.
    devices = devices[: math.gcd(config.data.batch_size, len(devices))]
    predict = make_predict(model, config, devices)
    split = _open(model, config, print)
    fitted = baselines.fit_gaussian(
        [r.boxes[r.kind == 1] for r in train_records], [r.size for r in train_records]
    )
    limit = config.proposals.post_nms
    bounds = {name: _look_up(o, limit) for name, o in _bounds(config, split).items()}
    look = _Look(predict, split, config)

    def evaluate(variables, step, brief=False):
        kept, parts, missed, anchors = look(variables, brief, print)
        boxes = [proposals.boxes[proposals.valid] for proposals in kept]
        ranked = {'proposals': boxes}, _blind(config.seed, split, boxes, fitted), parts
        own, blind, parts = (
            {name: _look_up(split.measure(found), limit) for name, found in sets.items()}
            for sets in ranked
        )
        blind |= bounds
        summary = {
            'step': int(step),
            'dataset': split.source.name,
            'images': len(split.objects),
            'objects': sum(map(len, split.objects)),
            'proposals': own['proposals'].figures,
            'baselines': {name: found.figures for name, found in blind.items()},
        }
        if not brief:
            summary['parts'] = {name: found.figures for name, found in parts.items()}
            summary['intervals'] = _intervals(own, blind, parts)
            summary['missed'] = misses.counts(missed)
            summary['removed_by'] = misses.removers(missed)
            summary['anchors'] = anchor_coverage.summarise(anchors, config)
        return Evaluation(
            summary,
            {name: found.curves for name, found in (own | blind | parts).items() if found.curves},
            {'objects': _sides(split.objects), 'proposals': _sides([b[:10] for b in boxes])},
            gallery.extremes(split, kept),
            gallery.missed_objects(split, missed),
            _store(split, kept, step, limit),
        )

    evaluate.predict, evaluate.source = predict, split.source
    return evaluate


class _Split(NamedTuple):
    """The images that are evaluated, and what the host must know of each."""

    source: Source
    options: data.Options
    sizes: list  # (height, width) of each image on its canvas
    anchors: list  # [A, 4] float64 of each image's canvas
    objects: list  # [n, 4] float64, kind 1, in pixels of the canvas
    areas: list  # [n] of the objects in the original image

    def measure(self, boxes):
        """Returns the Overlaps of ranked boxes of each image with its objects."""
        return metrics.measure(boxes, self.objects, self.areas)

    def padded(self, position):
        """Returns boxes [G, 4] and kind [G] of an image, and its size, as the network has them."""
        size = np.float32(self.sizes[position])
        return *padded(self.source.records[position], size, self.options.max_boxes), size


class _Found(NamedTuple):
    """What is said of one set of boxes: all that is kept of its Overlaps, which are large."""

    figures: dict
    tallies: dict
    curves: dict | None  # None for boxes without a rank


def _look_up(overlaps, limit):
    """Returns the _Found of Overlaps, where images have at most `limit` proposals."""
    counts = [n for n in COUNTS if n <= limit]
    return _Found(
        metrics.summarise(overlaps, post_nms=limit),
        metrics.tallies(overlaps, post_nms=limit),
        None if overlaps.tops is None else metrics.curves(overlaps, counts, limit),
    )


def _intervals(own, blind, parts):
    """Returns 95 % intervals over images, all on the same resamples, as evaluation.json has them.

    {'proposals': {figure: (low, high) or None}, 'baselines': and 'parts': {name: the same}}.
    """
    sets = {'proposals': own, 'baselines': blind, 'parts': parts}
    bounds = intervals(
        {
            (group, name, figure): tally
            for group, found in sets.items()
            for name, each in found.items()
            for figure, tally in each.tallies.items()
        }
    )
    said = {
        group: {
            name: {
                figure: bounds[group, name, figure] and list(bounds[group, name, figure])
                for figure in each.figures
            }
            for name, each in found.items()
        }
        for group, found in sets.items()
    }
    return said | {'proposals': said['proposals']['proposals']}


def _open(model, config, print):
    """Returns the _Split of a config's evaluation."""
    options = data.check(data.Options(**config.data))
    settings = dict(seed=config.seed, training=False)
    source = data.open_split(options, options.eval_split, **settings)
    for note in source.notes:
        print(f'note: {note}')
    records = source.records[: config.evaluation.images or None]
    canvases = data.evaluation_plan(source, options, len(records))
    grids = [
        np.asarray(rpn.anchors_of(model, shape).boxes, np.float64) for shape in canvases.shapes
    ]
    sizes = [tuple(size.tolist()) for size in canvases.sizes]
    return _Split(
        source,
        options,
        sizes,
        [grids[canvas] for canvas in canvases.of],
        [_objects(record, size, options) for record, size in zip(records, sizes, strict=True)],
        [_areas(record) for record in records],
    )


def _blind(seed, split, boxes, fitted):
    """Returns {name: boxes of each image} of the blind baselines: as many as the network kept."""
    return {
        name: [
            baselines.draw(name, seed, i, len(b), split.sizes[i], split.anchors[i], fitted)
            for i, b in enumerate(boxes)
        ]
        for name in baselines.BLIND
    }


def table(summary):
    """Returns the lines of a table: the proposals, each blind baseline, and the bounds."""
    columns = *(f'AR@{n}' for n in metrics.LIMITS), 'recall@0.5/100', 'recall@0.7/100', 'ABO@100'
    columns = [c for c in (*columns, 'top10_max_iou') if c in summary['proposals']]
    head = '{dataset}, step {step}: {images} images, {objects} objects'.format(**summary)
    lines = [head, ' ' * 16 + ''.join(f'{c:>16}' for c in columns)]
    sets = {'proposals': summary['proposals'], **summary.get('parts', {}), **summary['baselines']}
    rows = {n: ['-' if f[c] is None else f'{f[c]:.3f}' for c in columns] for n, f in sets.items()}
    if 'intervals' in summary:
        bounds = [summary['intervals']['proposals'][c] for c in columns]
        halves = ['-' if b is None else f'±{(b[1] - b[0]) / 2:.3f}' for b in bounds]
        rows = {'proposals': rows.pop('proposals'), 'interval': halves, **rows}
    for name, cells in rows.items():
        lines.append(f'{name:<16}' + ''.join(f'{cell:>16}' for cell in cells))
    if missed := {reason: n for reason, n in summary.get('missed', {}).items() if n}:
        said = ', '.join(f'{reason} {number}' for reason, number in missed.items())
        where = f'IoU {MISSED["iou"]} and {MISSED["limit"]} proposals'
        lines.append(f'missed at {where}: {sum(missed.values())} ({said})')
    if sum((anchors := summary.get('anchors', {})).get('recalled', ())):
        shares = anchor_coverage.by_size(anchors, 'recall_share')
        said = (
            f'{size:g}: {share:.0%}' for size, share in zip(anchors['sizes'], shares, strict=True)
        )
        lines.append(f'found by anchors of (pixels): {", ".join(said)}')
    return lines


class _Look:
    """Predicts over a split; unless brief, looks at what the parts bring and at what is missed."""

    def __init__(self, predict, split, config):
        self._predict, self._split, self._config = predict, split, config
        self._parts = jax.jit(functools.partial(propose_parts, **config.proposals))

    def __call__(self, variables, brief, print):
        """Returns Proposals, {part: boxes}, Misses and sums by anchor type, images in order."""
        images = len(self._split.objects)
        rows = counted(self._rows(variables, images, brief), images, 'evaluated', print)
        found = {position: rest for position, *rest in rows}
        kept, parts, missed, anchors = zip(*(found[i] for i in range(images)), strict=True)
        parts = {name: [part[name] for part in parts] for name in (() if brief else PARTS)}
        return list(kept), parts, sum(missed, []), anchors

    def _rows(self, variables, images, brief):
        source, options = self._split.source, self._split.options
        settings = dict(batch_size=options.batch_size, images=images)
        for batch in data.evaluation_batches(source, options, **settings):
            found = self._predict(variables, batch, dense=not brief)
            for row in np.flatnonzero(batch['index'] >= 0):
                position = int(batch['index'][row])
                own = jax.tree.map(lambda x, row=row: x[row], found)
                if brief:
                    yield position, own, {}, [], {}
                else:
                    yield position, own[0], *self._explain(position, own[0], own[1:])

    def _explain(self, position, proposals, maps):
        """Returns the boxes of each part, the Misses and the sums by anchor type of one image."""
        anchors, objects = np.float32(self._split.anchors[position]), self._split.padded(position)
        key = jax.random.fold_in(jax.random.key(self._config.seed), position)
        parts = jax.device_get(self._parts(key, *maps, anchors, *objects))
        boxes = {name: part.boxes[part.valid] for name, part in parts.items()}
        inputs, rules = (proposals, *maps, anchors, *objects), MISSED | {'config': self._config}
        return (
            boxes,
            misses.find(position, *inputs, **rules),
            anchor_coverage.measure(*inputs, **rules),
        )


def _bounds(config, split):
    """Returns the Overlaps of the bounds: all anchors, and anchors with perfect deltas."""
    every, moved = [], []
    for position, (size, boxes) in enumerate(zip(split.sizes, split.anchors, strict=True)):
        every.append(np.clip(boxes, 0, [*size[::-1]] * 2))
        moved.append(baselines.oracle(boxes, *split.padded(position), **config.targets))
    return {
        name: metrics.bound(metrics.best_overlaps(found, split.objects), split.areas)
        for name, found in (('anchors', every), ('oracle', moved))
    }


def _store(split, kept, step, limit):
    """Returns the Results proposals and objects, in pixels of the original images."""
    records = split.source.records[: len(kept)]
    pairs = zip(records, split.sizes, kept, strict=True)
    return Results(
        dataset=split.source.name,
        step=int(step),
        image_ids=[record.image_id for record in records],
        sizes=np.array([record.size for record in records]),
        proposals=[p.boxes[p.valid] / scale(record, size) for record, size, p in pairs],
        scores=[p.scores[p.valid] for p in kept],
        gt_boxes=[record.boxes for record in records],
        gt_kinds=[record.kind for record in records],
        post_nms=limit,
    )


def _objects(record, size, options):
    boxes, kind = padded(record, size, options.max_boxes)
    return boxes[kind == 1].astype(np.float64)


def _areas(record):
    boxes = np.asarray(record.boxes[record.kind == 1], np.float64)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _sides(boxes):
    return np.concatenate([np.zeros((0, 2)), *(b[:, 2:] - b[:, :2] for b in boxes)])
