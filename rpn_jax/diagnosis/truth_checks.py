"""Checks the ground truth, and the anchors against it, without reading an image.

Each function yields Findings. Boxes are those after the resize, in pixels of the canvas.
"""

import numpy as np

from rpn_jax.data.batches import scale
from rpn_jax.data.records import Kind
from rpn_jax.diagnosis import anchor_fit, anchor_grid
from rpn_jax.diagnosis.finding import ANCHORS, MEASURE, TARGETS, TRUTH, Finding
from rpn_jax.evaluation.metrics import area

EXAMINED = 1000  # objects that are compared with anchors
TINY = 4  # pixels of a side after the resize


def findings(records, sizes, min_size=0.0):
    """Yields the Findings on the records of a split; sizes [n, 2] are theirs after the resize.

    min_size is the pixels below which proposals are dropped.
    """
    kinds = np.concatenate([np.zeros(0, int), *(record.kind for record in records)])
    count = {name: int(np.sum(kinds == code)) for name, code in CODES.items()}
    total = len(kinds)
    shown = ', '.join(f'{number} {name}' for name, number in count.items())
    if not count['objects']:
        what = 'No image has an object' if not total else 'No box counts as an object'
        yield Finding(
            'error',
            f'{what}: there is nothing to learn.',
            f'{len(records)} images, {shown}',
            'a few objects in most images',
            'config.data.path, data.annotations or data.train_split: other annotations',
            TRUTH + 5,
        )
        return
    empty = sum(not np.any(record.kind == Kind.OBJECT) for record in records)
    for share, what, usual in (
        (empty / len(records), 'images have no object', 'less than half'),
        (count['difficult'] / total, 'boxes are difficult, and so no objects', 'a fifth'),
        (count['crowd'] / total, 'boxes are crowds, and so no objects', 'a hundredth'),
    ):
        if share > 0.5:
            yield Finding(
                'error' if share > 0.95 else 'warning',
                f'Most {what}.',
                f'{share:.0%}; {len(records)} images, {shown}',
                usual,
                'config.data.train_split or data.annotations: look at what was annotated',
                TRUTH + 4,
            )
    pairs = zip(records, sizes, strict=True)
    boxes = [(r.boxes * scale(r, size))[r.kind == Kind.OBJECT] for r, size in pairs]
    yield from _dropped(np.concatenate([np.zeros((0, 4)), *boxes]), min_size)
    yield from _boxes(boxes, sizes)


CODES = {'objects': Kind.OBJECT, 'difficult': Kind.DIFFICULT, 'crowd': Kind.CROWD}


def _dropped(boxes, min_size):
    """Yields a Finding where proposals of the size of objects [n, 4] are dropped."""
    share = np.mean(np.min(boxes[:, 2:] - boxes[:, :2], axis=1) < min_size)
    if share >= 0.02:
        yield Finding(
            'error' if share > 0.3 else 'warning',
            'Proposals of the size of objects are dropped.',
            f'{share:.0%} of the objects have a side below proposals.min_size, {min_size:g} pixels',
            'none',
            'config.proposals.min_size = 0.001',
            MEASURE + 2,
        )


def sampled(counts, targets):
    """Yields the Findings on the sampled anchors [n, 2] (foreground, background) of n images.

    targets are keywords of matching.assign.
    """
    samples = targets['samples']
    share = np.mean(counts[:, 1] < min(8, samples / 8))
    if share > 0.02:
        yield Finding(
            'error' if share > 0.3 else 'warning',
            'Images teach hardly any background: anchors that could are ignored.',
            f'{share:.0%} of {len(counts)} images have fewer than {min(8, samples / 8):g} '
            f'background anchors among {samples} samples; a mean of {counts[:, 1].mean():.0f}',
            'half of the samples and more',
            'config.targets.crowd_overlap = 0.5, border = -1, negative_iou = 0.3, '
            'positive_fraction = 0.5',
            TARGETS,
        )
    positive = counts[:, 0].mean()
    if 0 < positive < 0.01 * samples:
        yield Finding(
            'info',
            'Few of the anchors that a step learns from are foreground.',
            f'{positive:.1f} of {samples} samples of an image',
            '5 to 50 %',
            f'config.targets.samples = {2 ** int(np.log2(max(32, 20 * positive)))}; or anchors '
            'that fit better',
            TARGETS - 1,
        )


def resized(objects, stride, shrunk):
    """Yields a Finding where objects become too small for the finest map, of this stride.

    shrunk is the factor by which the images were resized.
    """
    sides = np.sqrt(area(objects.boxes))
    share, pyramid = np.mean(sides < 1.5 * stride), 'config.model.fpn_stages = (2, 3, 4)'
    if share >= 0.4:
        yield Finding(
            'error' if share > 0.5 and shrunk < 0.3 else 'warning',
            'The images are made so small that objects hardly have a cell of their own.'
            if shrunk < 0.5
            else 'Most objects hardly have a cell of their own on the finest map.',
            f'{share:.0%} of the objects are below {1.5 * stride:g} pixels, their median is '
            f'{np.median(sides):.0f}; a cell has {stride}, and images are resized by {shrunk:.2f}',
            'a few cells for most objects',
            'config.data.image_size: larger'
            if shrunk < 0.5
            else f'{pyramid}, or a larger image_size',
            ANCHORS + 1,
        )


def _boxes(boxes, sizes):
    """Yields the Findings on the objects' boxes of each image."""
    every = np.concatenate([np.zeros((0, 4)), *boxes])
    sides = every[:, 2:] - every[:, :2]
    twice = sum(len(own) - len(np.unique(own, axis=0)) for own in boxes)
    logs = np.log(np.maximum(area(every), 1e-6)) / 2
    pairs = zip(boxes, sizes, strict=True)
    shares = np.concatenate([np.zeros(0), *(area(own) / np.prod(size) for own, size in pairs)])
    if (share := np.mean(np.min(sides, axis=1) < TINY)) > 0.2:
        yield Finding(
            'error' if share > 0.6 else 'warning',
            'Many objects are tiny after the resize.',
            f'{share:.0%} have a side below {TINY} pixels',
            'a few of a hundred',
            'config.data.image_size: larger; or check whether boxes are scaled to 0..1',
            TRUTH + 3,
        )
    if len(every) >= 20 and np.std(logs) < 0.02:
        yield Finding(
            'warning',
            'All objects are of one size.',
            f'the deviation of log sqrt(area) is {np.std(logs):.3f} over {len(every)} objects',
            '0.5 and more',
            'config.data.annotations: check that the boxes are real ones',
            TRUTH + 2,
        )
    if len(every) >= 20 and np.mean(shares > 0.98) > 0.6:
        yield Finding(
            'warning',
            'Most boxes cover their whole image.',
            f'{np.mean(shares > 0.98):.0%} of {len(every)} objects',
            'a few of a hundred',
            'config.data.annotations: labels of images are no boxes of objects',
            TRUTH + 2,
        )
    if twice > 0.2 * len(every):
        yield Finding(
            'warning',
            'Many boxes are there twice.',
            f'{twice} of {len(every)}',
            'none',
            'config.data.annotations: remove the copies',
            TRUTH + 1,
        )


def anchors(objects, model, targets):
    """Yields the Findings on a model's anchors against anchor_fit's Objects, one or more.

    targets are keywords of matching.assign.
    """
    drawn = objects.take(slice(0, EXAMINED))
    fit = anchor_fit.measure(drawn, anchor_grid.Layout.of(model), **targets)
    figures = anchor_fit.figures(fit, drawn, **targets)
    mean, none = figures['mean_best_iou'], figures['below_negative_iou']
    if targets.get('border', -1) >= 0:
        free = anchor_fit.measure(drawn, fit.layout, **dict(targets) | {'border': -1}).best
        if np.mean(free) - mean > 0.05:
            yield _bordered(fit, free, targets)
            return
    shown = (
        f'the best anchor of an object has an IoU of {mean:.2f} on average; {none:.0%} of '
        f'{len(drawn.boxes)} objects have none of {targets["negative_iou"]:g}; '
        f'{figures["positives_per_image"]:.1f} foreground anchors an image'
    )
    if mean < 0.6 or none > 0.1:
        better = anchor_fit.suggest(drawn, fit, **targets)
        remedy = (
            ' '.join(anchor_fit.flags(better.layout)) if better else 'python main.py anchors ..'
        )
        yield Finding(
            'error' if mean < 0.5 or none > 0.25 else 'warning',
            f'The anchors do not fit the objects: {_how(fit.layout, drawn)}.',
            shown,
            'an IoU of 0.65 and more, and none below the background threshold',
            remedy,
            ANCHORS,
        )
        return
    if unused := [each for each in figures['types'] if not each['positives']]:
        names = ', '.join(f'{each["size"]:g} at {each["aspect_ratio"]:g}' for each in unused[:6])
        yield Finding(
            'info',
            'Some anchor types are never foreground.',
            f'{len(unused)} of {len(figures["types"])} ({names})',
            'all are, now and then',
            'python main.py anchors .. suggests others',
            ANCHORS,
        )
    if figures['low_quality'] > 0.7:
        yield Finding(
            'info',
            'Most objects have no anchor above the foreground threshold, but for their best.',
            f'{figures["low_quality"]:.0%} of the objects; {shown}',
            'less than two thirds',
            'python main.py anchors .. suggests others; or a lower config.targets.positive_iou',
            ANCHORS,
        )


def _bordered(fit, free, targets):
    """Returns the Finding on objects whose anchors do not count, as they reach out of the image."""
    lost = np.mean(free - fit.best > 0.1)
    return Finding(
        'error' if lost > 0.2 else 'warning',
        'Objects lose their anchors, as those that reach out of the image do not count.',
        f'targets.border is {targets["border"]}: the best anchor of {lost:.0%} of the objects is '
        f'another, at a mean IoU of {fit.best.mean():.2f} instead of {free.mean():.2f}',
        'hardly any',
        'config.targets.border = -1; or smaller anchors.sizes',
        ANCHORS + 1,
    )


def _how(layout, objects):
    """Says in what the anchors of a Layout differ from Objects."""
    shapes = anchor_fit.grouped_by(objects)
    sizes, ratios = np.concatenate([*layout.sizes]), sorted(layout.aspect_ratios)
    low, high = np.percentile(shapes['size'], (10, 90))
    own = f'{min(sizes):g}' + (f' to {max(sizes):g}' if len(sizes) > 1 else '')
    span = f'objects have {low:.0f} to {high:.0f} pixels, anchors {own}'
    if max(sizes) < 0.6 * high:
        return f'they are too small ({span})'
    if min(sizes) > 2 * low and min(sizes) > np.median(shapes['size']):
        return f'they are too large ({span})'
    first, last = np.percentile(shapes['ratio'], (10, 90))
    return (
        f'their shapes or sizes are others (height / width {first:.2g} to {last:.2g}, aspect '
        f'ratios {", ".join(f"{ratio:g}" for ratio in ratios)}; {span})'
    )
