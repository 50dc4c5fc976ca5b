"""Batches are a function of (seed, step), visit every image, and move boxes with their pixels."""

import collections
import threading
import time

import numpy as np
import pytest

from rpn_jax.data import batches as batching
from rpn_jax.data.batches import TrainBatches, prefetch, threaded
from rpn_jax.data.canvases import Canvases, short_side
from rpn_jax.data.records import Record, Source
from rpn_jax.errors import InputError

CANVAS, ROWS = (40, 60), 3  # height, width; rows of boxes
SIZES = [(40, 60)] * 7 + [(60, 40)] * 5 + [(40, 90)] * 3
MIXED = short_side(SIZES, image_size=64, max_size=128, limit=3)


def bright(sizes):
    """Returns a source of dark images, each with a bright rectangle at its only box.

    The last image has no object; the blue of an image is its position, and its kind goes by that.
    """
    random, records, images = np.random.default_rng(1), [], []
    for position, (height, width) in enumerate(sizes):
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 2] = position + 1
        boxes = np.zeros((0, 4), np.float32)
        if position < len(sizes) - 1:
            y0, x0 = random.integers(0, height // 2), random.integers(0, width // 2)
            y1, x1 = random.integers(y0 + 3, height + 1), random.integers(x0 + 3, width + 1)
            image[y0:y1, x0:x1, :2] = 255
            boxes = np.float32([[x0, y0, x1, y1]])
        kind = np.full(len(boxes), 1 + position % 3, np.int32)
        records.append(Record(f'{position}', (height, width), boxes, kind))
        images.append(image)
    return Source('bright', records, images.__getitem__)


def bright_box(image):
    """Returns the box of the bright pixels of an image."""
    y, x = np.nonzero(image[..., 0] > 127)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def stretched(count):
    """Returns the one canvas onto which every image is stretched."""
    return Canvases((CANVAS,), np.zeros(count, int), np.tile(CANVAS, (count, 1)))


def make(source, canvases=None, *, seed=0, batch_size=4, flip=True, **share):
    settings = {'seed': seed, 'batch_size': batch_size, 'max_boxes': ROWS, 'flip': flip}
    return TrainBatches(source, canvases or stretched(len(source.records)), **settings, **share)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_batch_holds_what_the_update_takes_and_is_a_function_of_seed_and_step():
    batches, again, other = (make(bright([CANVAS] * 5), seed=seed) for seed in (0, 0, 1))
    forward, backward = map(batches, range(4)), list(map(again, (3, 2, 1, 0)))
    order = []
    for step, batch in enumerate(forward):
        assert_equal(batch, backward[3 - step])
        order.append(batch['index'].tolist())
    assert order != [other(step)['index'].tolist() for step in range(4)] and order[0] != order[1]
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        'image': ((4, 40, 60, 3), 'uint8'),
        'boxes': ((4, 3, 4), 'float32'),
        'kind': ((4, 3), 'int32'),
        'size': ((4, 2), 'float32'),
        'index': ((4,), 'int32'),
    }


@pytest.mark.parametrize('flip', [False, True])
def test_a_flip_is_drawn_each_time(flip):
    source, flips = bright([CANVAS] * 5), collections.defaultdict(list)
    batches = make(source, batch_size=8, flip=flip)
    for batch in map(batches, range(8)):
        for index, image in zip(batch['index'].tolist(), batch['image'], strict=True):
            flips[index].append(not np.array_equal(image, source.read(index)))
    shares = [np.mean(flips[index]) for index in range(4)]  # the last image is its mirror image
    assert all((0 < share < 1) == flip for share in shares)


@pytest.mark.parametrize('flip', [False, True])
def test_boxes_move_with_their_pixels_and_the_rest_of_the_canvas_is_zero(flip):
    sizes = [CANVAS, (20, 20), (40, 30), (120, 180)] * 5
    source = bright(sizes)
    for canvases in (stretched(20), short_side(sizes, image_size=64, max_size=128, limit=1)):
        batch = batching.collate(source, canvases, range(19), [flip] * 19, max_boxes=ROWS)
        assert batch['image'].shape[1:3] == canvases.shapes[0]
        np.testing.assert_array_equal(batch['size'], canvases.sizes[:19])
        for position, (image, boxes) in enumerate(zip(batch['image'], batch['boxes'], strict=True)):
            (height, width), record = canvases.sizes[position], source.records[position]
            assert image[:height, :width, 2].min() and image.sum() == image[:height, :width].sum()
            np.testing.assert_allclose(boxes[0], bright_box(image), atol=1.6)
            scale = np.tile(np.divide((width, height), sizes[position][::-1]), 2)
            x0, y0, x1, y1 = record.boxes[0] * scale
            exact = (width - x1, y0, width - x0, y1) if flip else (x0, y0, x1, y1)
            np.testing.assert_allclose(boxes[0], exact, rtol=1e-5)
            assert not boxes[1:].any() and batch['kind'][position].tolist() == [*record.kind, 0, 0]


@pytest.mark.parametrize('batch_size', [1, 3, 8])  # the last is larger than any canvas' share
def test_every_epoch_visits_every_image_once_on_any_canvas(batch_size):
    batches, epochs = make(bright(SIZES), MIXED, batch_size=batch_size), 12
    steps = [batches.positions(step) for step in range(len(SIZES) * epochs // batch_size)]
    for canvas in range(3):
        stream = [p for c, positions in steps if c == canvas for p in positions]
        members = np.flatnonzero(MIXED.of == canvas)
        whole = len(stream) // len(members)
        rounds = np.reshape(stream[: whole * len(members)], (whole, len(members)))
        np.testing.assert_array_equal(np.sort(rounds), [members] * whole)
        assert whole >= epochs - 1 - batch_size // len(members)
        assert len({tuple(row) for row in rounds}) > 3
    order = [canvas for canvas, _ in steps]
    assert len(steps) / 4 < np.count_nonzero(np.diff(order))  # the canvases alternate


def test_hosts_share_a_batch_and_take_the_same_canvas():
    source = bright(SIZES)
    whole = make(source, MIXED, batch_size=4)
    shares = [make(source, MIXED, batch_size=4, host=host, hosts=2) for host in range(2)]
    for step in range(6):
        rows = [share(step) for share in shares]
        joined = {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}
        assert {len(part['index']) for part in rows} == {2}
        assert_equal(joined, whole(step))
        canvas, positions = whole.positions(step)
        assert joined['index'].tolist() == positions and set(MIXED.of[positions]) == {canvas}
        assert joined['image'].shape[1:3] == MIXED.shapes[canvas]


def test_an_image_of_which_something_is_known_is_not_read():
    source, known = bright([CANVAS] * 4), {0: 'a', 3: 'b', 4: 'c', 5: 'd'}.get
    for step in range(4):
        batch, plain = make(source, known=known)(step), make(source)(step)
        numbers, kept = batch.pop('number'), batch.pop('kept')
        assert kept == [known(number) for number in numbers.tolist()] and any(kept)
        for row, number in enumerate(numbers):
            picture = source.read(number // 2)
            picture = picture[:, ::-1] if number % 2 else picture
            np.testing.assert_array_equal(plain['image'][row], picture)
            np.testing.assert_array_equal(batch['image'][row], 0 if kept[row] else picture)
        assert_equal(batch | {'image': 0}, plain | {'image': 0})


def test_a_thread_works_ahead_of_its_reader():
    asked, threads = [], set()

    def double(item):
        asked.append(item)
        threads.add(threading.current_thread())
        return 2 * item

    results = prefetch(double, range(9), count=2)
    assert next(results) == 0
    for _ in range(100):
        if asked == [0, 1, 2]:
            break
        time.sleep(0.01)
    assert asked == [0, 1, 2] and list(results) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert len(threads) == 1 and threading.current_thread() not in threads
    assert list(prefetch(double, [])) == []


def test_an_error_of_a_thread_arrives_as_it_is_after_what_came_before_it(capfd):
    def make(step):
        if step == 3:
            raise InputError('3.jpg: the image is truncated')
        return step

    def items():
        yield from range(3)
        make(3)

    for results in (threaded(make, range(9)), prefetch(make, range(9)), prefetch(make, items())):
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(InputError) as error:
            next(results)
        assert str(error.value) == '3.jpg: the image is truncated'
    assert capfd.readouterr() == ('', '')
