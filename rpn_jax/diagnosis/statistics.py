"""Statistics of a data set: pixels of each channel, sizes and shapes of the boxes, exactly."""

import math

import numpy as np

from rpn_jax.console import progress
from rpn_jax.data import images
from rpn_jax.data.batches import threaded
from rpn_jax.data.records import Kind
from rpn_jax.evaluation.metrics import AREAS

BLOCK = 2**22  # levels that are counted at once: counting makes int64 of them
PERCENTILES = (5, 25, 50, 75, 95)


def statistics(source):
    """Returns the statistics of a source as a dict that json can hold.

    Pixels are those of the files, before any resize, RGB in 0..255; mean and deviation are exact,
    because the levels of every channel are counted. Boxes are in pixels of the original images.
    """

    def count(position):
        record = source.records[position]
        with images.in_flight(record.size):
            pixels = source.read(position)
            blocks = np.array_split(pixels, -(-pixels.size // BLOCK))
            return sum(
                np.stack([np.bincount(block[..., c].ravel(), minlength=256) for c in range(3)])
                for block in blocks
            )

    number = len(source.records)
    counts = progress(threaded(count, range(number)), number, 'read')
    levels = sum(counts, np.zeros((3, 256), np.int64))
    mean, std = zip(*map(moments, levels), strict=True)
    return {
        'dataset': source.name,
        'images': number,
        'pixels': int(levels[0].sum()),
        'mean': list(mean),
        'std': list(std),
        'levels': levels.tolist(),
        'boxes': box_statistics(source.records),
    }


def moments(levels):
    """Returns (mean, standard deviation) of values 0..255 that occur `levels` [256] times each.

    All are Python's whole numbers until the last division, so that nothing is rounded before.
    """
    counts, values = levels.astype(object), np.arange(256, dtype=object)
    number, first, second = (counts @ values**power for power in range(3))
    return first / number, math.sqrt(number * second - first * first) / number


def box_statistics(records):
    """Returns counts by kind and size, and percentiles of sizes and shapes of the objects.

    None where no image has any box.
    """
    if not any(len(record.boxes) for record in records):
        return None
    kinds = np.concatenate([record.kind for record in records])
    boxes = np.concatenate([record.boxes for record in records]).astype(np.float64)
    per_image = np.array([np.sum(record.kind == Kind.OBJECT) for record in records])
    objects = boxes[kinds == Kind.OBJECT]
    width, height = (objects[:, 2:] - objects[:, :2]).T
    area = width * height
    return {
        'objects': len(objects),
        'difficult': int(np.sum(kinds == Kind.DIFFICULT)),
        'crowd': int(np.sum(kinds == Kind.CROWD)),
        **{name: int(np.sum((low <= area) & (area < high))) for name, (low, high) in AREAS.items()},
        'images_without_objects': int(np.sum(per_image == 0)),
        'most_boxes': max(len(record.boxes) for record in records),
        'per_image': _percentiles(per_image),
        'size': _percentiles(np.sqrt(area)),
        'aspect_ratio': _percentiles(height / width),
    }


def lines(figures):
    """Returns the statistics as lines of text, the last one with the keys that a config can set."""
    text = [f'{figures["dataset"]}: {figures["images"]} images, {figures["pixels"]} pixels']
    text += [_row('', ('red', 'green', 'blue'))]
    text += [_row(key, [f'{value:.4f}' for value in figures[key]]) for key in ('mean', 'std')]
    if boxes := figures['boxes']:
        counts = ('objects', 'small', 'medium', 'large', 'difficult', 'crowd')
        text.append(
            ', '.join(f'{boxes[key]} {key}' for key in counts)
            + f'; {boxes["images_without_objects"]} images without objects, '
            f'at most {boxes["most_boxes"]} boxes in one'
        )
        text.append(_row('percentile', PERCENTILES))
        rows = {'per_image': 'per image', 'size': 'size (px)', 'aspect_ratio': 'height / width'}
        for key, name in rows.items():
            values = boxes[key].values()
            text.append(_row(name, ['-' if v is None else f'{v:.2f}' for v in values]))
    mean, std = (','.join(f'{value:.4f}' for value in figures[key]) for key in ('mean', 'std'))
    return [
        *text,
        'to train from scratch with these: '
        f"--config.data.pixels=torchvision '--config.data.mean=({mean})' "
        f"'--config.data.std=({std})'",
    ]


def _row(name, cells):
    return f'{name:16}' + ''.join(f'{cell:>10}' for cell in cells)


def _percentiles(values):
    if not len(values):
        return {f'{p}': None for p in PERCENTILES}
    return {f'{p}': float(np.percentile(values, p)) for p in PERCENTILES}


def evenly(count, limit):
    """Returns at most `limit` evenly spaced indices of `count` items, with the first and last."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))
