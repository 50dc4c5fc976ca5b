"""Checks of the ground truth and of the anchors against it, from records alone: no pixel is read.

Each function returns a list of Findings. Boxes are those after the resize, in pixels of the canvas.
"""

import numpy as np

from rpn_jax.data.batches import scale
from rpn_jax.data.records import Kind
from rpn_jax.diagnosis.finding import ANCHORS, TRUTH, Finding
from rpn_jax.evaluation.metrics import area, iou

EXAMINED = 200  # images whose anchors are compared with their objects
TINY = 4  # pixels of a side after the resize


def findings(records, sizes, max_boxes):
    """Returns the Findings on the records of a split; sizes [n, 2] are theirs after the resize."""
    kinds = np.concatenate([np.zeros(0, int), *(record.kind for record in records)])
    count = {name: int(np.sum(kinds == code)) for name, code in CODES.items()}
    total, found = len(kinds), []
    shown = ', '.join(f'{number} {name}' for name, number in count.items())
    if not count['objects']:
        what = 'No image has an object' if not total else 'No box counts as an object'
        found.append(
            Finding(
                'error',
                f'{what}: there is nothing to learn.',
                f'{len(records)} images, {shown}',
                'a few objects in most images',
                'config.data.path, data.annotations or data.train_split: other annotations',
                TRUTH + 5,
            )
        )
        return found
    empty = sum(not np.any(record.kind == Kind.OBJECT) for record in records)
    for share, what, usual in (
        (empty / len(records), 'images have no object', 'less than half'),
        (count['difficult'] / total, 'boxes are difficult, and so no objects', 'a fifth'),
        (count['crowd'] / total, 'boxes are crowds, and so no objects', 'a hundredth'),
    ):
        if share > 0.5:
            found.append(
                Finding(
                    'error' if share > 0.95 else 'warning',
                    f'Most {what}.',
                    f'{share:.0%}; {len(records)} images, {shown}',
                    usual,
                    'config.data.train_split or data.annotations: look at what was annotated',
                    TRUTH + 4,
                )
            )
    pairs = zip(records, sizes, strict=True)
    boxes = [(r.boxes * scale(r, size))[r.kind == Kind.OBJECT] for r, size in pairs]
    return found + _boxes(records, boxes, sizes, max_boxes)


CODES = {'objects': Kind.OBJECT, 'difficult': Kind.DIFFICULT, 'crowd': Kind.CROWD}


def _boxes(records, boxes, sizes, max_boxes):
    """Returns the Findings on the objects' boxes of each image."""
    every = np.concatenate([np.zeros((0, 4)), *boxes])
    sides, found = every[:, 2:] - every[:, :2], []
    twice = sum(len(own) - len(np.unique(own, axis=0)) for own in boxes)
    logs = np.log(np.maximum(area(every), 1e-6)) / 2
    wholes = np.concatenate([np.zeros(0), *(a / np.prod(s) for a, s in _areas(boxes, sizes))])
    if (share := np.mean(np.min(sides, axis=1) < TINY)) > 0.2:
        found.append(
            Finding(
                'error' if share > 0.6 else 'warning',
                'Many objects are tiny after the resize.',
                f'{share:.0%} have a side below {TINY} pixels',
                'a few of a hundred',
                'config.data.image_size: larger; or check whether boxes are scaled to 0..1',
                TRUTH + 3,
            )
        )
    if len(every) >= 20 and np.std(logs) < 0.02:
        found.append(
            Finding(
                'warning',
                'All objects are of one size.',
                f'the deviation of log sqrt(area) is {np.std(logs):.3f} over {len(every)} objects',
                '0.5 and more',
                'config.data.annotations: check that the boxes are real ones',
                TRUTH + 2,
            )
        )
    if len(every) >= 20 and np.mean(wholes > 0.98) > 0.6:
        found.append(
            Finding(
                'warning',
                'Most boxes cover their whole image.',
                f'{np.mean(wholes > 0.98):.0%} of {len(every)} objects',
                'a few of a hundred',
                'config.data.annotations: labels of images are no boxes of objects',
                TRUTH + 2,
            )
        )
    if twice > 0.2 * len(every):
        found.append(
            Finding(
                'warning',
                'Many boxes are there twice.',
                f'{twice} of {len(every)}',
                'none',
                'config.data.annotations: remove the copies',
                TRUTH + 1,
            )
        )
    if (most := max(len(record.boxes) for record in records)) > max_boxes:
        found.append(
            Finding(
                'error',
                'An image has more boxes than a batch has rows for.',
                f'{most} boxes, data.max_boxes is {max_boxes}',
                f'{most} or more rows',
                f'config.data.max_boxes = {most}',
                TRUTH + 1,
            )
        )
    return found


def _areas(boxes, sizes):
    return ((area(own), size) for own, size in zip(boxes, sizes, strict=True))


def anchors(examined, targets):
    """Returns the Findings on anchors against objects.

    examined holds (Anchors in NumPy, objects' boxes [n, 4]) of some images, targets are keywords of
    matching.assign.
    """
    best, positives, images = [], 0.0, 0
    types = np.zeros(len(examined[0][0].types), int) if examined else np.zeros(0, int)
    for own, boxes in examined:
        if len(boxes):
            overlaps = iou(np.float64(boxes), np.float64(own.boxes))
            best.append(overlaps.max(axis=1))
            ties = (overlaps == overlaps.max(axis=1, keepdims=True)) & (overlaps > 0)
            matched = ((overlaps >= targets['positive_iou']) | ties).any(axis=0)
            types += np.bincount(own.type[matched], minlength=len(types))
            positives += matched.sum()
            images += 1
    if not best:
        return []
    best = np.concatenate(best)
    none = np.mean(best < targets['negative_iou'])
    only_best = np.mean(best < targets['positive_iou'])
    shown = (
        f'the best anchor of an object has an IoU of {best.mean():.2f} on average; {none:.0%} of '
        f'{len(best)} objects have none of {targets["negative_iou"]:g}; {positives / images:.1f} '
        'foreground anchors an image'
    )
    remedy = f'config.anchors.sizes = {_suggested(examined)}; aspect_ratios = (0.5, 1.0, 2.0)'
    if best.mean() < 0.6 or none > 0.1:
        is_error = best.mean() < 0.5 or none > 0.25
        return [
            Finding(
                'error' if is_error else 'warning',
                f'The anchors do not fit the objects: {_how(examined)}.',
                shown,
                'an IoU of 0.65 and more, and none below the background threshold',
                remedy,
                ANCHORS,
            )
        ]
    found, unused = [], [own.types[k] for k in np.flatnonzero(types == 0)]
    if unused:
        names = ', '.join(f'{size:g} at {ratio:g}' for size, ratio in unused[:6])
        found.append(
            Finding(
                'info',
                'Some anchor types are never foreground.',
                f'{len(unused)} of {len(types)} ({names}) in {images} images',
                'all are, now and then',
                'config.anchors: drop them, or choose sizes nearer to the objects',
                ANCHORS,
            )
        )
    if only_best > 0.7:
        found.append(
            Finding(
                'info',
                'Most objects have no anchor above the foreground threshold, but for their best.',
                f'{only_best:.0%} of {len(best)} objects; {shown}',
                'less than two thirds',
                f'config.targets.positive_iou = {min(0.6, targets["positive_iou"]):g}',
                ANCHORS,
            )
        )
    return found


def _sizes(examined):
    """Returns the square roots of the areas of the objects, and of the anchors' types."""
    objects = np.concatenate([np.sqrt(area(boxes)) for _, boxes in examined])
    return objects, np.array([size for size, _ in examined[0][0].types])


def _how(examined):
    """Says in what the anchors differ from the objects."""
    objects, sizes = _sizes(examined)
    low, high = np.percentile(objects, (10, 90))
    span = f'objects have {low:.0f} to {high:.0f} pixels, anchors {sizes.min():g} to'
    span += f' {sizes.max():g}'
    if sizes.max() < 0.6 * high:
        return f'they are too small ({span})'
    if sizes.min() > 2 * low and sizes.min() > np.median(objects):
        return f'they are too large ({span})'
    shapes = sorted({ratio for _, ratio in examined[0][0].types})
    wide = np.concatenate([(b[:, 3] - b[:, 1]) / (b[:, 2] - b[:, 0]) for _, b in examined])
    ends = np.percentile(wide, (10, 90))
    return (
        f'their shapes or sizes are others (height / width {ends[0]:.2g} to {ends[1]:.2g}, '
        f'aspect ratios {", ".join(f"{shape:g}" for shape in shapes)}; {span})'
    )


def _suggested(examined):
    """Returns sizes that cover the objects, as a config has them: for each level, or together."""
    objects, _ = _sizes(examined)
    low, high = np.percentile(objects, (5, 95))
    levels = len(examined[0][0].levels)
    count = levels if levels > 1 else 5
    sizes = [int(round(size)) for size in np.geomspace(max(low, 8), max(high, 16), count)]
    return tuple((size,) for size in sizes) if levels > 1 else tuple(sizes)
