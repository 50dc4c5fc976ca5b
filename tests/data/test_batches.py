"""Batches are a function of (seed, step), visit every image, and move boxes with their pixels."""

import collections
import threading
import time

import numpy as np
import pytest

from rpn_jax.data import batches as batching
from rpn_jax.data.batches import EvaluationBatches, TrainBatches, prefetch, threaded
from rpn_jax.data.canvases import Canvases, short_side
from rpn_jax.data.records import Record, Source
from rpn_jax.errors import InputError

CANVAS, ROWS = (40, 60), 3  # height, width; rows of boxes


def bright(count, size=CANVAS):
    """Returns a source of dark images, each with a bright rectangle at its only box.

    The last image has no object; the blue of an image is its position.
    """
    random, records, images = np.random.default_rng(1), [], []
    for position in range(count):
        image = np.zeros((*size, 3), np.uint8)
        image[..., 2] = position
        boxes = np.zeros((0, 4), np.float32)
        if position < count - 1:
            y0, x0 = random.integers(0, size[0] // 2), random.integers(0, size[1] // 2)
            y1, x1 = random.integers(y0 + 3, size[0] + 1), random.integers(x0 + 3, size[1] + 1)
            image[y0:y1, x0:x1, :2] = 255
            boxes = np.float32([[x0, y0, x1, y1]])
        records.append(Record(f'{position}', size, boxes, np.ones(len(boxes), np.int32)))
        images.append(image)
    return Source('bright', records, images.__getitem__)


def bright_box(image):
    """Returns the box of the bright pixels of an image, or None."""
    y, x = np.nonzero(image[..., 0] > 127)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(y) else None


def stretched(count, canvas=CANVAS):
    """Returns the one canvas onto which every image is stretched."""
    return Canvases((canvas,), np.zeros(count, int), np.tile(canvas, (count, 1)))


def make(source, *, canvases=None, seed=0, batch_size=4, flip=True, **hosts):
    canvases = canvases or stretched(len(source.records))
    settings = {'seed': seed, 'batch_size': batch_size, 'max_boxes': ROWS, 'flip': flip}
    return TrainBatches(source, canvases, **settings, **hosts)


def one_image(source, position, flip, canvases=None):
    """Returns the batch of one image, without its leading axis."""
    canvases = canvases or stretched(len(source.records))
    batch = batching.collate(source, canvases, [position], [flip], max_boxes=ROWS)
    return {key: value[0] for key, value in batch.items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_batch_holds_what_the_update_takes_and_is_a_function_of_seed_and_step():
    source = bright(5)
    first, second, other = make(source), make(bright(5)), make(source, seed=1)
    forward = [first(step) for step in range(4)]
    backward = [second(step) for step in reversed(range(4))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert_equal(a, b)
    orders = [[batch['index'].tolist() for batch in forward]]
    orders.append([other(step)['index'].tolist() for step in range(4)])
    assert orders[0] != orders[1] and orders[0][0] != orders[0][1]
    shapes = {key: (value.shape, value.dtype.name) for key, value in forward[0].items()}
    assert shapes == {
        'image': ((4, 40, 60, 3), 'uint8'),
        'boxes': ((4, 3, 4), 'float32'),
        'kind': ((4, 3), 'int32'),
        'size': ((4, 2), 'float32'),
        'index': ((4,), 'int32'),
    }
    np.testing.assert_array_equal(forward[0]['size'], [CANVAS] * 4)


@pytest.mark.parametrize('flip', [False, True])
def test_a_flip_takes_the_box_along_and_is_drawn_each_time(flip):
    source, flips = bright(5), collections.defaultdict(list)
    batches = make(source, batch_size=8, flip=flip)
    for step in range(8):
        batch = batches(step)
        rows = (batch[key] for key in ('image', 'boxes', 'kind', 'index'))
        for image, boxes, kind, index in zip(*rows, strict=True):
            original, record = source.read(index), source.records[index]
            is_flipped = not np.array_equal(image, original)
            np.testing.assert_array_equal(image, original[:, ::-1] if is_flipped else original)
            count = len(record.boxes)
            assert kind.tolist() == [1] * count + [0] * (ROWS - count)
            np.testing.assert_array_equal(boxes[count:], 0)
            if count:
                np.testing.assert_array_equal(boxes[0], bright_box(image))
                flips[index].append(is_flipped)
    shares = [np.mean(each) for each in flips.values()]
    assert len(shares) == 4 and all((0 < share < 1) == flip for share in shares)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('size', [(20, 20), (40, 30), (120, 180)])
def test_a_resize_takes_the_box_along(size, flip):
    source = bright(9, size)
    for position in range(8):
        row = one_image(source, position, flip)
        assert row['image'].shape == (*CANVAS, 3)
        np.testing.assert_allclose(row['boxes'][0], bright_box(row['image']), atol=1.01)
        scale = np.tile(np.divide(CANVAS[::-1], size[::-1]), 2)
        x0, y0, x1, y1 = source.records[position].boxes[0] * scale
        exact = (60 - x1, y0, 60 - x0, y1) if flip else (x0, y0, x1, y1)
        np.testing.assert_allclose(row['boxes'][0], exact, rtol=1e-6)


SIZES = [(40, 60)] * 7 + [(60, 40)] * 5 + [(40, 90)] * 3
MIXED = short_side(SIZES, image_size=64, max_size=128, limit=3)


def mixed():
    """Returns a source of images of several shapes, each bright but for its last rows."""
    records = [
        Record(f'{i}', size, np.float32([[0, 0, size[1] / 2, size[0]]]), np.int32([1]))
        for i, size in enumerate(SIZES)
    ]
    images = [np.full((*size, 3), 100 + i, np.uint8) for i, size in enumerate(SIZES)]
    for image in images:
        image[:, : image.shape[1] // 2, 0] = 255
    return Source('mixed', records, images.__getitem__)


def test_images_keep_their_shape_and_their_canvas_is_zero_beside_them():
    source = mixed()
    assert len(MIXED.shapes) == 3
    batches = make(source, canvases=MIXED, batch_size=2)
    for step in range(30):
        batch = batches(step)
        canvas, positions = batches.positions(step)
        assert batch['image'].shape[1:3] == MIXED.shapes[canvas]
        assert batch['index'].tolist() == positions
        assert set(MIXED.of[positions]) == {canvas}
        for image, size, boxes in zip(batch['image'], batch['size'], batch['boxes'], strict=True):
            height, width = size.astype(int)
            assert image[:height, :width].min() >= 100
            assert not image[height:].any() and not image[:, width:].any()
            left = image[height // 2, 2, 0] > 220
            middle = pytest.approx(width / 2, abs=0.51)
            assert boxes[0, 1::2].tolist() == [0, height]
            assert boxes[0, 2 if left else 0] == middle and boxes[0, 0 if left else 2] in (0, width)


@pytest.mark.parametrize('batch_size', [1, 3, 8])  # the last is larger than any canvas' share
def test_every_epoch_visits_every_image_once_on_any_canvas(batch_size):
    batches = make(mixed(), canvases=MIXED, batch_size=batch_size)
    epochs = 12
    steps = [batches.positions(step) for step in range(len(SIZES) * epochs // batch_size)]
    for canvas in range(3):
        stream = [p for c, positions in steps if c == canvas for p in positions]
        members = np.flatnonzero(MIXED.of == canvas)
        whole = len(stream) // len(members)
        rounds = np.reshape(stream[: whole * len(members)], (whole, len(members)))
        np.testing.assert_array_equal(np.sort(rounds), [members] * whole)
        assert (
            whole >= epochs - 1 - batch_size // len(members)
            and len({tuple(row) for row in rounds}) > 3
        )
    order = [canvas for canvas, _ in steps]
    assert 15 < np.count_nonzero(np.diff(order))  # the canvases alternate
    assert steps[7] == make(mixed(), canvases=MIXED, batch_size=batch_size).positions(7)


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_a_batch_and_take_the_same_canvas(hosts):
    source = mixed()
    whole = make(source, canvases=MIXED, batch_size=4)
    shares = [
        make(source, canvases=MIXED, batch_size=4, host=host, hosts=hosts) for host in range(hosts)
    ]
    for step in range(6):
        rows = [share(step) for share in shares]
        joined = {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}
        assert {len(part['index']) for part in rows} == {4 // hosts}
        assert_equal(joined, whole(step))


@pytest.mark.parametrize(
    ('source', 'canvases', 'size', 'images'),
    [
        *((bright(5), stretched(5), 2, images) for images in (5, 4, 3, 1)),
        *((mixed(), MIXED, 4, images) for images in (15, 9, 1)),
    ],
)
def test_evaluation_covers_every_image_once_and_marks_padding(source, canvases, size, images):
    positions = []
    batches = EvaluationBatches(source, canvases, batch_size=size, max_boxes=ROWS, images=images)
    for batch in map(batches, range(len(batches))):
        real = batch['index'] >= 0
        positions += batch['index'][real].tolist()
        (canvas,) = {canvases.of[position] for position in batch['index'][real]}
        assert real[0] and batch['image'].shape == (size, *canvases.shapes[canvas], 3)
        for key in ('image', 'boxes', 'kind'):
            assert not batch[key][~real].any()
        assert batch['size'][~real].tolist() == [batch['size'][0].tolist()] * np.sum(~real)
        assert batch['index'][~real].tolist() == [-1] * np.sum(~real)
        for position, row in zip(positions[-np.sum(real) :], range(size), strict=False):
            flat = one_image(source, position, False, canvases)
            assert_equal({key: value[row] for key, value in batch.items()}, flat)
    assert sorted(positions) == list(range(images))


@pytest.mark.parametrize('start', [0, 7])
def test_threads_give_the_same_batches_in_order(start):
    batches, steps = make(bright(5)), range(start, start + 12)
    for step, batch in zip(steps, threaded(batches, steps), strict=True):
        assert_equal(batch, batches(step))
    assert list(threaded(batches, range(4, 4))) == []


def test_a_thread_works_ahead_of_its_reader():
    asked, threads = [], set()

    def double(item):
        asked.append(item)
        threads.add(threading.current_thread())
        if item == 4:
            raise InputError('four')
        return 2 * item

    results = prefetch(double, range(9), count=2)
    assert next(results) == 0
    for _ in range(100):
        if asked == [0, 1, 2]:
            break
        time.sleep(0.01)
    assert asked == [0, 1, 2]
    assert [next(results) for _ in range(3)] == [2, 4, 6]
    with pytest.raises(InputError, match='four'):
        next(results)
    assert len(threads) == 1 and threading.current_thread() not in threads

    def items():
        yield from range(3)
        raise InputError('three')

    results = prefetch(str, items(), count=2)
    assert [next(results) for _ in range(3)] == ['0', '1', '2']
    with pytest.raises(InputError, match='three'):
        next(results)
    assert list(prefetch(double, [1, 2, 3])) == [2, 4, 6] and list(prefetch(double, [])) == []


def test_an_error_in_a_thread_arrives_as_it_is(capfd):
    source = bright(5)

    def read(position):
        if position == 3:
            raise InputError('3.jpg: the image is truncated')
        return source.read(position)

    batches = make(source._replace(read=read), batch_size=1)
    order = [int(make(source, batch_size=1)(step)['index'][0]) for step in range(5)]
    stream = threaded(batches, range(5))
    for index in order[: order.index(3)]:
        assert next(stream)['index'] == [index]
    with pytest.raises(InputError) as error:
        next(stream)
    assert str(error.value) == '3.jpg: the image is truncated'
    assert capfd.readouterr() == ('', '')


def test_more_boxes_than_rows_are_refused_by_the_image():
    source = bright(3)
    crowded = source.records[1]._replace(image_id='crowded', boxes=np.zeros((4, 4), np.float32))
    source.records[1] = crowded
    batching.check_boxes(source, 4)
    with pytest.raises(InputError, match=r'image crowded: 4 boxes, .* max_boxes is 3; raise'):
        batching.check_boxes(source, 3)
