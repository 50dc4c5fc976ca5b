"""Batches: resized, flipped, padded on background threads; a pure function of (seed, step)."""

import functools
from typing import NamedTuple

import cv2
import grain
import numpy as np

from rpn_jax.errors import InputError

THREADS, AHEAD = 2, 4  # batches are made by so many threads, at most so many ahead of the step


class TrainBatches(NamedTuple):
    """The endless training stream: called with a step, returns its batch."""

    source: tuple
    seed: int
    batch_size: int
    canvas: tuple[int, int]
    max_boxes: int
    flip: bool

    def __call__(self, step):
        stream = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(stream, len(self.source.records))
        positions = [
            int(shuffled(self.seed, int(epoch), len(self.source.records))[offset])
            for epoch, offset in zip(epochs, offsets, strict=True)
        ]
        coins = [np.random.default_rng((self.seed, step, p)).random() for p in positions]
        return collate(
            [
                example(self.source, p, self.canvas, self.max_boxes, self.flip and coin < 0.5)
                for p, coin in zip(positions, coins, strict=True)
            ]
        )


class EvaluationBatches(NamedTuple):
    """Every image exactly once, in order; rows that only fill the last batch have index -1."""

    source: tuple
    batch_size: int
    canvas: tuple[int, int]
    max_boxes: int
    images: int

    def __call__(self, step):
        start = step * self.batch_size
        positions = range(start, min(start + self.batch_size, self.images))
        rows = [example(self.source, p, self.canvas, self.max_boxes, False) for p in positions]
        padding = {k: np.zeros_like(v) for k, v in rows[0].items()} | {'index': np.int32(-1)}
        padding['size'] = rows[0]['size']
        return collate(rows + [padding] * (self.batch_size - len(rows)))


def example(source, position, canvas, max_boxes, flip):
    """Returns one image as a dict: image [H, W, 3], boxes [G, 4], kind [G], size [2], index.

    The image is uint8 RGB, resized to the canvas (H, W); boxes are in its pixels, rows beyond the
    record's are zero; size is the real image's (height, width) on the canvas.
    """
    record = source.records[position]
    image = source.read(position)
    height, width = canvas
    if image.shape[:2] != canvas:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    boxes, kind = padded(record, canvas, max_boxes)
    if flip:
        image = cv2.flip(image, 1)
        mirrored = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        boxes = np.where(kind[:, None] > 0, mirrored, 0)
    return {
        'image': image,
        'boxes': boxes,
        'kind': kind,
        'size': np.float32(canvas),
        'index': np.int32(position),
    }


def padded(record, canvas, max_boxes):
    """Returns a record's boxes [G, 4] in canvas pixels and kind [G], zero beyond its own rows."""
    boxes, kind = np.zeros((max_boxes, 4), np.float32), np.zeros(max_boxes, np.int32)
    boxes[: len(record.boxes)] = record.boxes * scale(record, canvas)
    kind[: len(record.kind)] = record.kind
    return boxes, kind


def scale(record, canvas):
    """Returns the factors [4] that carry a record's boxes onto the canvas (height, width)."""
    height, width = record.size
    return np.float32([canvas[1] / width, canvas[0] / height] * 2)


def collate(examples):
    """Stacks examples into a batch: the same keys with a leading axis."""
    return {key: np.stack([row[key] for row in examples]) for key in examples[0]}


@functools.lru_cache(maxsize=4)
def shuffled(seed, epoch, count):
    """Returns the order [count] in which an epoch visits the images."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def threaded(batches, steps):
    """Iterates over batches(step) for the range `steps`, made ahead by background threads."""
    stream = grain.MapDataset.range(steps.start, steps.stop).map(batches)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    return iter(stream.to_iter_dataset(options))


def check_boxes(source, max_boxes):
    """Raises InputError where an image has more boxes than a batch has rows."""
    for record in source.records:
        if len(record.boxes) > max_boxes:
            raise InputError(
                f'image {record.image_id}: {len(record.boxes)} boxes, but config key '
                f'data.max_boxes is {max_boxes}; raise it'
            )
