"""Batches of images, resized, flipped and padded by background threads."""

import collections
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from rpn_jax.data.images import in_flight

# Batches are made by so many threads, at most so many ahead of the step. Of 16 threads on as many
# cores 8 make 95 % of the images.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
THREADS = min(max(CORES or 2, 2), 8)
AHEAD = THREADS + 2


class TrainBatches:
    """The training batches: called with a step, returns its batch, a function of (seed, step).

    An epoch visits every image once, in an order of its own. A batch is emitted once batch_size
    images of one canvas were drawn; leftovers carry over to the next epoch. Of several hosts each
    gets its share of the rows.

    With known(2 * position + flip), which returns what is known of an image (such as its feature
    maps) or None, a batch also holds `number` [N], that argument, and `kept`, a list of what is
    known. An image of which something is known is not read but zero.
    """

    def __init__(
        self, source, canvases, *, seed, batch_size, max_boxes, flip, host=0, hosts=1, known=None
    ):
        self._canvases, self._seed, self._flip, self._known = canvases, seed, flip, known
        self._batch_size = batch_size
        self._rows = slice(batch_size * host // hosts, batch_size * (host + 1) // hosts)
        self._counts = np.bincount(canvases.of, minlength=len(canvases.shapes))
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)
        self._collate = functools.partial(collate, source, canvases, max_boxes=max_boxes)

    def __call__(self, step):
        positions = self.positions(step)[1][self._rows]
        flips = [
            self._flip and np.random.default_rng((self._seed, step, position)).random() < 0.5
            for position in positions
        ]
        if self._known is None:
            return self._collate(positions, flips)
        numbers = [2 * position + flip for position, flip in zip(positions, flips, strict=True)]
        kept = [self._known(number) for number in numbers]
        batch = self._collate(positions, flips, unread=[each is not None for each in kept])
        return batch | {'number': np.int64(numbers), 'kept': kept}

    def positions(self, step):
        """Returns the canvas of a step and the positions of its images, on all hosts together."""
        epoch = step * self._batch_size // len(self._canvases.of)
        while self._steps_before(epoch + 1) <= step:
            epoch += 1
        canvas, number = self._epoch(epoch)[1][step - self._steps_before(epoch)]
        stream = np.arange(number * self._batch_size, (number + 1) * self._batch_size)
        epochs, offsets = np.divmod(stream, self._counts[canvas])
        rows = zip(epochs.tolist(), offsets, strict=True)
        return canvas, [int(self._epoch(own)[0][canvas][offset]) for own, offset in rows]

    def _steps_before(self, epoch):
        return int(np.sum(epoch * self._counts // self._batch_size))

    def _make_epoch(self, epoch):
        """Returns what an epoch draws, in its order.

        These are, of each canvas, the positions of its images, and, of each step that the epoch
        completes, (canvas, number of its batch).
        """
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._canvases.of))
        orders, steps = [], []
        for canvas, count in enumerate(self._counts):
            drawn = np.flatnonzero(self._canvases.of[order] == canvas)
            orders.append(order[drawn])
            first, last = epoch * count // self._batch_size, (epoch + 1) * count // self._batch_size
            for number in range(int(first), int(last)):
                complete = drawn[(number + 1) * self._batch_size - 1 - epoch * count]
                steps.append((complete, canvas, number))
        return orders, [step[1:] for step in sorted(steps)]


def collate(source, canvases, positions, flips=(), *, max_boxes, rows=0, unread=()):
    """Returns the batch of the images at these positions, which share a canvas.

    A dict of image [N, H, W, 3] uint8 RGB and, with the same leading axis, what `example` returns.
    flips says which images are mirrored, none by default; unread says which are zero instead of
    read. Where rows is more than the images, the rest of the N = rows rows has index -1.
    """
    flips = flips or [False] * len(positions)
    unread = unread or [False] * len(positions)
    shape = canvases.shapes[canvases.of[positions[0]]]
    images = np.zeros((max(rows, len(positions)), *shape, 3), np.uint8)
    examples = [
        example(source, canvases, position, flip, max_boxes, out, skipped)
        for position, flip, skipped, out in zip(positions, flips, unread, images, strict=False)
    ]
    padding = {k: np.zeros_like(v) for k, v in examples[0].items()} | {'index': np.int32(-1)}
    padding['size'] = examples[0]['size']
    examples += [padding] * (len(images) - len(examples))
    return {'image': images} | {k: np.stack([row[k] for row in examples]) for k in padding}


def example(source, canvases, position, flip, max_boxes, out, unread=False):
    """Puts one image on its canvas `out`, unless it is unread; returns the rest as a dict.

    out [H, W, 3] uint8, all zero, gets the RGB image, resized to `size` (height, width), in its
    upper left corner. The dict holds boxes [G, 4] in pixels of the canvas and kind [G], both zero
    beyond the record's rows, size [2] and index.
    """
    height, width = map(int, canvases.sizes[position])
    if not unread:
        with in_flight(source.records[position].size):
            image = source.read(position)
            image = cv2.flip(image, 1) if flip else image
            cv2.resize(image, (width, height), dst=out[:height, :width])
            del image
    boxes, kind = padded(source.records[position], (height, width), max_boxes)
    if flip:
        real = kind > 0
        boxes[real, 0], boxes[real, 2] = width - boxes[real, 2], width - boxes[real, 0]
    return {
        'boxes': boxes,
        'kind': kind,
        'size': np.float32([height, width]),
        'index': np.int32(position),
    }


def padded(record, size, max_boxes):
    """Returns a record's boxes [G, 4], resized, and kind [G], zero beyond its own rows.

    size is the (height, width) that its image is resized to, G is max_boxes.
    """
    boxes, kind = np.zeros((max_boxes, 4), np.float32), np.zeros(max_boxes, np.int32)
    boxes[: len(record.boxes)] = record.boxes * scale(record, size)
    kind[: len(record.kind)] = record.kind
    return boxes, kind


def scale(record, size):
    """Returns the factors [4] that resize a record's boxes to an image of size (height, width)."""
    height, width = record.size
    return np.float32([size[1] / width, size[0] / height] * 2)


def threaded(batches, steps):
    """Iterates over batches(step) for the range `steps`, made ahead by background threads."""
    import grain  # here: inference needs no Grain, and does not install it

    cv2.setNumThreads(1)  # in the whole process: cv2's threads would get in the way of these
    stream = grain.MapDataset.range(steps.start, steps.stop).map(batches)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    return iter(stream.to_iter_dataset(options))


def prefetch(function, items, count=2):
    """Yields function(item) of every item, computed by a thread up to `count` items ahead.

    The thread draws the items, too. An error arrives after all results that came before it.
    """
    results, end, thread = map(function, items), object(), ThreadPoolExecutor(1)
    try:
        waiting = collections.deque(thread.submit(next, results, end) for _ in range(count))
        while (result := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, results, end))
            yield result
    finally:
        thread.shutdown(cancel_futures=True)
