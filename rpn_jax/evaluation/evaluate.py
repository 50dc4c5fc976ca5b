"""Evaluation: proposals over a split, measured beside boxes that never saw an image.

A network's predictions become an ImageResult for each image; all figures, tables and pictures of an
Evaluation are functions of these and of the Split.
"""

import functools
import logging
import math
from typing import NamedTuple

import jax
import numpy as np

from rpn_jax import console, data
from rpn_jax.data.batches import padded, scale
from rpn_jax.data.records import OBJECT, Source
from rpn_jax.evaluation import anchor_coverage, baselines, gallery, metrics, misses, summary
from rpn_jax.evaluation.ablations import ABLATIONS, ablate
from rpn_jax.evaluation.predict import Prediction, make_predict
from rpn_jax.evaluation.results import Results
from rpn_jax.evaluation.summary import MISSED
from rpn_jax.models import rpn
from rpn_jax.ops.proposals import Proposals
from rpn_jax.training import hosts
from rpn_jax.training.parallel import check_divides, replicate

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """An evaluation: the contents of evaluation.json and proposals.npz, and what a report draws."""

    summary: dict
    curves: dict  # {'proposals' or baseline or ablation: metrics.curves}
    sizes: dict  # {'objects': [n, 2], 'proposals': [m, 2]} widths and heights in canvas pixels
    gallery: list  # dicts of one image each, best and worst
    misses: list  # dicts of missed objects, at MISSED, some with a picture
    results: Results  # proposals and ground truth, for any evaluator


class Split(NamedTuple):
    """The images that are evaluated, with their ground truth in canvas pixels."""

    source: Source
    options: data.Options
    sizes: list  # (height, width) of each image on its canvas
    anchors: list  # NumPy Anchors of each image's canvas
    gt_boxes: list  # [n, 4] float64, objects only (kind 1)
    areas: list  # [n] of these objects in the original image

    def padded(self, position):
        """Returns gt_boxes [G, 4] and gt_kind [G] of an image, padded, and its size."""
        size = np.float32(self.sizes[position])
        return *padded(self.source.records[position], size, self.options.max_boxes), size


class ImageResult(NamedTuple):
    """What is kept of the prediction for one image, in canvas pixels."""

    proposals: Proposals
    ablations: dict  # {ablation: boxes [P, 4]}; these and what follows are empty where brief
    misses: list  # of misses.Miss
    anchors: dict  # sums by anchor type, as anchor_coverage.measure returns them


def make_evaluate(
    model,
    source,
    *,
    options,
    proposals,
    gaussian,
    targets=None,
    loss=None,
    pixels=None,
    seed=0,
    images=0,
    devices=None,
):
    """Returns evaluate(variables, step, brief=False) -> Evaluation over the first `images` or all.

    Made once for a run, so that its function compiles once for each canvas. With brief=True what
    takes longer is left out: the ablations, the reasons of misses, the anchors. Its keyword
    `between` is called after each batch; what that raises ends the evaluation.

    source is the split that is evaluated, options a data.Options, proposals keywords of propose,
    targets those of matching.assign, loss those of ops.losses.LOSS, gaussian what
    baselines.fit_gaussian makes of the training records, seed that of baselines and random order;
    pixels and devices as in make_predict. Several processes all call evaluate: each predicts its
    rows of every batch, and process 0 gets the Evaluation, the others None.
    """
    targets = dict(targets or {})
    devices = list(devices or jax.local_devices()[:1])
    if hosts.several():
        check_divides(options.batch_size, len(devices))
    # A run on many devices may be evaluated where they do not divide its batch.
    devices = devices[: math.gcd(options.batch_size, len(devices))]
    predict = make_predict(model, proposals=proposals, pixels=pixels, devices=devices)
    for note in source.notes:
        logger.info(f'note: {note}')
    split = open_split(model, source, options, images)
    limit = proposals['post_nms']
    bounds = {name: summary.figures_of(o, limit) for name, o in _bounds(split, targets).items()}
    examine = _make_examine(split, seed, targets, proposals, loss)

    def evaluate(variables, step, brief=False, between=lambda: None):
        variables = replicate(variables, devices)  # once, not with every batch
        predicted = _predict_all(predict, variables, split, dense=not brief, between=between)
        if not hosts.is_first():
            for _ in predicted:
                pass
            return None
        rows = console.progress(predicted, len(split.sizes), 'evaluated')
        results = {position: examine(position, *outputs) for position, *outputs in rows}
        results = [results[position] for position in range(len(split.sizes))]
        boxes = [each.proposals.boxes[each.proposals.valid] for each in results]
        blind = {
            name: [
                baselines.draw(name, seed, i, len(b), split.sizes[i], split.anchors[i], gaussian)
                for i, b in enumerate(boxes)
            ]
            for name in baselines.BLIND
        }
        return _evaluation(split, results, boxes, blind, bounds, int(step), limit)

    evaluate.source = source
    return evaluate


def open_split(model, source, options, images=0):
    """Returns the Split of the first `images` of a source, of all where that is 0."""
    records = source.records[: images or None]
    canvases = data.canvases_of(source, options, len(records))
    anchors = [jax.device_get(rpn.anchors_of(model, shape)) for shape in canvases.shapes]
    sizes = [tuple(size.tolist()) for size in canvases.sizes]
    truth = [padded(r, size, options.max_boxes) for r, size in zip(records, sizes, strict=True)]
    return Split(
        source,
        options,
        sizes,
        [anchors[canvas] for canvas in canvases.of],
        [np.float64(boxes[kind == OBJECT]) for boxes, kind in truth],
        [metrics.area(record.boxes[record.kind == OBJECT]) for record in records],
    )


def _predict_all(predict, variables, split, dense, between):
    """Yields (position, Proposals) of every image, with dense also its (logits, deltas)."""
    settings = dict(batch_size=split.options.batch_size, images=len(split.sizes))
    settings |= dict(host=jax.process_index(), hosts=jax.process_count())
    for batch in data.evaluation_batches(split.source, split.options, **settings):
        hosts.begin_batch()
        outputs = predict(variables, batch, dense=dense)
        for row in np.flatnonzero(batch['index'] >= 0):
            own = jax.tree.map(lambda x, row=row: x[row], outputs)
            yield int(batch['index'][row]), *((own[0], own[1:]) if dense else (own,))
        between()


def _make_examine(split, seed, targets, proposals, loss):
    """Returns examine(position, Proposals, (logits, deltas)) -> ImageResult, brief without maps."""
    ablated = jax.jit(functools.partial(ablate, **proposals))
    negative_iou = targets.get('negative_iou', 0.3)

    def examine(position, proposed, maps=None):
        if maps is None:
            return ImageResult(proposed, {}, [], {})
        image = split.anchors[position], *split.padded(position)
        key = jax.random.fold_in(jax.random.key(seed), position)
        own = jax.device_get(ablated(key, *maps, *image))
        prediction = Prediction.of(position, proposed, maps, *image, targets)
        return ImageResult(
            proposed,
            {name: own[name].boxes[own[name].valid] for name in ABLATIONS},
            misses.find(prediction, **MISSED, negative_iou=negative_iou, proposals=proposals),
            anchor_coverage.measure(prediction, **MISSED, loss=loss),
        )

    return examine


def _bounds(split, targets):
    """Returns the Overlaps of the bounds: all anchors, and anchors with perfect deltas."""

    def bound(boxes_of):
        best = [
            metrics.best_overlaps([boxes_of(position)], [gt_boxes])
            for position, gt_boxes in enumerate(split.gt_boxes)
        ]
        return metrics.bound(np.concatenate([np.zeros(0), *best]), split.areas)

    def clipped(position):
        height, width = split.sizes[position]
        return np.clip(np.float64(split.anchors[position].boxes), 0, [width, height] * 2)

    def oracle(position):
        return baselines.oracle(split.anchors[position], *split.padded(position), **targets)

    return {'anchors': bound(clipped), 'oracle': bound(oracle)}


def _evaluation(split, images, boxes, blind, bounds, step, limit):
    """Returns the Evaluation of a split's ImageResults, beside the boxes of the blind baselines.

    boxes are the valid proposals of each image, bounds the Figures of those without a rank.
    """
    ablations = {name: [each.ablations[name] for each in images] for name in images[0].ablations}

    def figures(own):
        return summary.figures_of(metrics.measure(own, split.gt_boxes, split.areas), limit)

    measured = {
        group: {name: figures(own) for name, own in sets.items()}
        for group, sets in (
            ('proposals', {'proposals': boxes}),
            ('baselines', blind),
            ('parts', ablations),
        )
    }
    measured['baselines'] |= bounds
    missed = sum((each.misses for each in images), [])
    contents = {
        'step': step,
        'dataset': split.source.name,
        'images': len(images),
        'objects': sum(map(len, split.gt_boxes)),
    }
    types = anchor_coverage.types_of(split.anchors[0])
    contents |= summary.summarise(measured, missed, [each.anchors for each in images], types)
    return Evaluation(
        contents,
        {n: own.curves for sets in measured.values() for n, own in sets.items() if own.curves},
        {'objects': _sides(split.gt_boxes), 'proposals': _sides([b[:10] for b in boxes])},
        gallery.extremes(split, [each.proposals for each in images]),
        gallery.missed_objects(split, missed),
        _results(split, images, step, limit),
    )


def _results(split, images, step, limit):
    """Returns the Results of a split's ImageResults, in pixels of the original images."""
    records = split.source.records[: len(images)]
    factors = [scale(record, size) for record, size in zip(records, split.sizes, strict=True)]
    kept = [each.proposals for each in images]
    return Results(
        dataset=split.source.name,
        step=step,
        image_ids=[record.image_id for record in records],
        sizes=np.array([record.size for record in records]),
        proposals=[p.boxes[p.valid] / f for p, f in zip(kept, factors, strict=True)],
        scores=[p.scores[p.valid] for p in kept],
        gt_boxes=[record.boxes for record in records],
        gt_kinds=[record.kind for record in records],
        gt_areas=_known([record.areas for record in records]),
        coco_ids=_known([record.coco_id for record in records]),
        post_nms=limit,
    )


def _known(column):
    return None if any(value is None for value in column) else column


def _sides(boxes):
    return np.concatenate([np.zeros((0, 2)), *(b[:, 2:] - b[:, :2] for b in boxes)])
