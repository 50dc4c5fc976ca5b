"""Evaluation: proposals over a split, measured beside boxes that never saw an image."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from rpn_jax import baselines, data, metrics, resnet, rpn
from rpn_jax.data.batches import counted, padded, scale
from rpn_jax.data.pixels import normalise, pixel_family
from rpn_jax.proposals import propose

COUNTS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000)
GALLERY = 8  # best and as many worst images in the report


class Evaluation(NamedTuple):
    """What one evaluation found: the contents of evaluation.json, and what the report draws."""

    summary: dict
    curves: dict  # {'proposals' or baseline: metrics.curves}
    sizes: dict  # {'objects': [n, 2], 'proposals': [m, 2]} widths and heights in canvas pixels
    gallery: list  # dicts of one image each, best and worst


def make_predict(model, config, devices):
    """Returns predict(variables, batch) -> Proposals of NumPy arrays [N, P, ..] in canvas pixels.

    batch is a global batch as the data modules make it; its N is a multiple of the number of
    devices.
    """
    pixels = pixel_family(config.data.pixels, config.data.mean, config.data.std)
    settings = dict(config.proposals)

    def predict(variables, batch):
        images = normalise(batch['image'], batch['size'], pixels)
        anchors = rpn.anchors(model, images.shape[1:3])
        logits, deltas = model.apply(variables, images)
        each = functools.partial(propose, **settings)
        return jax.vmap(each, (0, 0, None, 0))(logits, deltas, anchors, batch['size'])

    mapped = jax.pmap(predict, resnet.AXIS, in_axes=(None, 0), devices=list(devices))

    def sharded(variables, batch):
        count = len(batch['image'])
        rows = {k: batch[k] for k in ('image', 'size')}
        shards = {k: v.reshape(len(devices), -1, *v.shape[1:]) for k, v in rows.items()}
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(count, *x.shape[2:]), mapped(variables, shards)
        )

    sharded.mapped = mapped
    return sharded


def make_evaluate(model, config, train_records, *, devices, print=print):
    """Returns evaluate(variables, step) -> Evaluation over config.data.eval_split.

    Built once for a run, so that its function compiles once and the annotations are read once. The
    baselines that know where objects usually are learn it from train_records.
    """
    options = data.check(data.Options(**config.data))
    settings = dict(seed=config.seed, training=False, print=print)
    source = data.open_split(options, options.eval_split, **settings)
    # A run on many devices may be evaluated where they do not divide its batch.
    devices = devices[: math.gcd(options.batch_size, len(devices))]
    predict = make_predict(model, config, devices)
    images = min(config.evaluation.images or len(source.records), len(source.records))
    canvases = data.evaluation_plan(source, options, images)
    sizes = [tuple(size.tolist()) for size in canvases.sizes]
    objects = [
        _objects(record, size, options) for record, size in zip(source.records, sizes, strict=False)
    ]
    areas = [_areas(record) for record in source.records[:images]]
    fitted = baselines.fit_gaussian(
        [r.boxes[r.kind == 1] for r in train_records], [r.size for r in train_records]
    )
    grids = [np.asarray(rpn.anchors(model, shape), np.float64) for shape in canvases.shapes]
    anchors = [grids[canvas] for canvas in canvases.of]
    bounds = _bounds(config, source, options, sizes, anchors, objects, areas)

    def evaluate(variables, step):
        kept = _predict_all(predict, variables, source, options, images, print)
        boxes = [proposals.boxes[proposals.valid] for proposals in kept]
        overlaps = {'proposals': metrics.measure(boxes, objects, areas)}
        for name in baselines.BLIND:
            blind = [
                baselines.draw(name, config.seed, i, len(b), sizes[i], anchors[i], fitted)
                for i, b in enumerate(boxes)
            ]
            overlaps[name] = metrics.measure(blind, objects, areas)
        limit = config.proposals.post_nms
        counts = [n for n in COUNTS if n <= limit]
        figures = {k: metrics.summarise(v, post_nms=limit) for k, v in (overlaps | bounds).items()}
        summary = {
            'step': int(step),
            'dataset': source.name,
            'images': images,
            'objects': sum(map(len, objects)),
            'proposals': figures.pop('proposals'),
            'baselines': figures,
        }
        return Evaluation(
            summary,
            {name: metrics.curves(o, counts) for name, o in overlaps.items()},
            {'objects': _sides(objects), 'proposals': _sides([b[:10] for b in boxes])},
            _gallery(source, sizes, kept, objects),
        )

    evaluate.predict = predict
    return evaluate


def table(summary):
    """Returns the lines of a table: the proposals, each blind baseline, and the bounds."""
    columns = (
        'AR@10',
        'AR@100',
        'AR@300',
        'AR@1000',
        'recall@0.5/100',
        'recall@0.7/100',
        'ABO@100',
    )
    columns = [c for c in (*columns, 'top10_max_iou') if c in summary['proposals']]
    head = '{dataset}, step {step}: {images} images, {objects} objects'.format(**summary)
    lines = [head, ' ' * 16 + ''.join(f'{c:>16}' for c in columns)]
    for name, figures in {'proposals': summary['proposals'], **summary['baselines']}.items():
        cells = ('-' if figures[c] is None else f'{figures[c]:.3f}' for c in columns)
        lines.append(f'{name:<16}' + ''.join(f'{cell:>16}' for cell in cells))
    return lines


def _predict_all(predict, variables, source, options, images, print):
    """Returns the Proposals of the first `images` of a source, in its order."""
    batches = data.evaluation_batches(source, options, batch_size=options.batch_size, images=images)

    def rows():
        for batch in batches:
            proposals = predict(variables, batch)
            for row in np.flatnonzero(batch['index'] >= 0):
                yield int(batch['index'][row]), jax.tree.map(lambda x, row=row: x[row], proposals)

    kept = dict(counted(rows(), images, 'evaluated', print))
    return [kept[position] for position in range(images)]


def _bounds(config, source, options, sizes, anchors, objects, areas):
    """Returns the Overlaps of the bounds: all anchors, and anchors with perfect deltas."""
    every, moved = [], []
    for record, size, boxes in zip(source.records, sizes, anchors, strict=False):
        every.append(np.clip(boxes, 0, [*size[::-1]] * 2))
        moved.append(
            baselines.oracle(
                boxes, *padded(record, size, options.max_boxes), size, **config.targets
            )
        )
    return {
        'anchors': metrics.bound(metrics.best_overlaps(every, objects), areas),
        'oracle': metrics.bound(metrics.best_overlaps(moved, objects), areas),
    }


def _gallery(source, sizes, kept, objects):
    """Returns the images whose ten best proposals cover the objects best, and worst."""
    best = [
        metrics.best_overlaps(p.boxes[p.valid], o, 10) for p, o in zip(kept, objects, strict=True)
    ]
    ranked = sorted((i for i, b in enumerate(best) if len(b)), key=lambda i: -best[i].mean())
    count = min(GALLERY, len(ranked) // 2)
    rows = [('best', i) for i in ranked[:count]]
    rows += [('worst', i) for i in ranked[::-1][: count or len(ranked)]]
    return [_picture(source, sizes[i], i, group, kept[i], best[i], objects[i]) for group, i in rows]


def _picture(source, size, position, group, proposals, best, objects):
    record = source.records[position]
    valid = int(proposals.valid[:10].sum())
    return {
        'image': source.read(position),
        'image_id': record.image_id,
        'group': group,
        'boxes': record.boxes,
        'kind': record.kind,
        'proposals': proposals.boxes[:valid] / scale(record, size),
        'scores': proposals.scores[:valid],
        'top_iou': metrics.top_iou(proposals.boxes[:valid], objects),
        'recalled': int((best >= 0.5).sum()),
        'objects': len(best),
    }


def _objects(record, size, options):
    boxes, kind = padded(record, size, options.max_boxes)
    return boxes[kind == 1].astype(np.float64)


def _areas(record):
    boxes = np.asarray(record.boxes[record.kind == 1], np.float64)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _sides(boxes):
    return np.concatenate([np.zeros((0, 2)), *(b[:, 2:] - b[:, :2] for b in boxes)])
