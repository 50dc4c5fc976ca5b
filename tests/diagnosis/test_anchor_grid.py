"""Overlaps in closed form are those with all anchors of the grid, positives those of matching."""

import jax
import numpy as np
import pytest
from helpers import data_options

from rpn_jax.data.records import Source, record_of
from rpn_jax.diagnosis import anchor_grid
from rpn_jax.diagnosis.anchor_grid import Layout, Objects, types_of
from rpn_jax.evaluation import baselines, metrics
from rpn_jax.ops import matching
from rpn_jax.ops.anchors import Anchors

match = jax.jit(matching.match)
CANVAS = (96, 128)
LAYOUTS = {
    'one level': Layout((16,), ((3, 20, 64, 200),), (0.5, 1, 2.3)),
    'dense': Layout((8,), ((16, 40),), (1,)),
    'pyramid': Layout((4, 8, 16), ((8,), (40,), (90,)), (0.4, 1, 2)),
}


def case(name, seed):
    """Returns Objects of one image, smaller than its canvas, their Layout, and all its Anchors.

    Objects of every second seed have whole corners, where many overlaps are equal; some fill the
    image, some touch its border.
    """
    random, layout = np.random.default_rng(seed), LAYOUTS[name]
    height, width = size = (int(random.integers(60, 97)), int(random.integers(70, 129)))
    boxes = np.sort(random.uniform(0, 1, (6, 2, 2)), axis=1).reshape(-1, 4)
    boxes[0], boxes[1, :2] = (0, 0, 1, 1), 0
    boxes *= [width, height] * 2
    boxes = boxes.round() if seed % 2 else boxes
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    boxes = np.float64(np.float32(boxes))
    sizes, canvases = (np.tile(each, (6, 1)) for each in (size, CANVAS))
    objects = Objects(boxes, np.zeros(6, int), sizes, canvases, metrics.area(boxes))
    shapes = [tuple(-(-side // stride) for side in CANVAS) for stride in layout.strides]
    return objects, layout, jax.device_get(Anchors.of(shapes, *layout))


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('name', LAYOUTS)
def test_the_best_overlaps_are_those_with_all_anchors(name, seed):
    objects, layout, anchors = case(name, seed)
    types, (height, width) = types_of(layout), objects.sizes[0]
    assert types.names == anchors.types
    boxes = np.float64(anchors.boxes)
    for border in (-1, 0, 12):
        inside = np.all(boxes[:, :2] >= -border, axis=1)
        inside &= (boxes[:, 2] <= width + border) & (boxes[:, 3] <= height + border)
        overlaps = metrics.iou(objects.boxes, boxes) * (inside | (border < 0))
        expected = [overlaps[:, anchors.type == k].max(axis=1) for k in range(len(types.level))]
        found = anchor_grid.best_overlaps(objects, types, border)
        np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-12)
    clipped = np.clip(boxes, 0, [width, height] * 2)
    expected = metrics.best_overlaps([clipped], [objects.boxes])
    np.testing.assert_allclose(anchor_grid.clipped_overlaps(objects, types), expected, atol=1e-12)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize(('positive_iou', 'border'), [(0.7, -1), (0.3, 12), (0, -1), (1, 0)])
def test_positives_and_their_objects_are_those_of_matching(name, seed, positive_iou, border):
    objects, layout, anchors = case(name, seed)
    types, size = types_of(layout), np.float32(objects.sizes[0])
    rules = dict(positive_iou=positive_iou, negative_iou=0, border=border)
    own = np.float32(objects.boxes), np.ones(6, np.int32)
    labels, rows = jax.device_get(match(anchors.boxes, *own, size=size, **rules))
    position, matched = anchor_grid.positives(
        objects, types, positive_iou=positive_iou, border=border
    )
    widths = -(-CANVAS[1] // types.stride[position[:, 0]])
    cells = position[:, 0], position[:, 1] * widths + position[:, 2], matched
    found = sorted(zip(*(each.astype(int).tolist() for each in cells), strict=True))
    expected = (each[labels == 1].tolist() for each in (anchors.type, anchors.cell, rows))
    assert found == sorted(zip(*expected, strict=True))
    oracle = baselines.oracle(anchors, *own, size, **rules)
    best = metrics.best_overlaps([oracle], [objects.boxes])
    found = anchor_grid.regressed(objects, types, position, matched)
    np.testing.assert_allclose(found, best, atol=1e-4)


def test_objects_are_resized_as_in_training_and_alone():
    record = record_of(
        'a', (100, 200), [[0, 0, 20, 50], [0, 0, 9, 9], [100, 50, 200, 100]], [1, 2, 1]
    )
    crowd, empty = record_of('b', (50, 50), [[0, 0, 9, 9]], [3]), record_of('c', (100, 200), [], [])
    last = record_of('d', (200, 100), [[0, 0, 100, 200]], [1])
    source = Source('four', [record, crowd, empty, last], None)
    sides = dict(resize='short_side', image_size=50, max_size=90, canvases=2, batch_size=1)
    options = data_options(**sides)
    objects = anchor_grid.objects_of(source, options)
    assert objects.image.tolist() == [0, 0, 3] and objects.areas.tolist() == [1000, 5000, 20000]
    assert objects.sizes.tolist() == [[45, 90]] * 2 + [[90, 45]]
    assert (objects.canvases % 32 == 0).all() and (objects.canvases >= objects.sizes).all()
    expected = [[0, 0, 9, 22.5], [45, 22.5, 90, 45], [0, 0, 45, 90]]
    np.testing.assert_allclose(objects.boxes, expected, rtol=1e-6)
    assert [len(own.boxes) for own in objects.by_image()] == [2, 1]
    none = anchor_grid.objects_of(source._replace(records=[crowd, empty]), options)
    assert len(none.boxes) == 0 and list(none.by_image()) == []
    types = types_of(LAYOUTS['pyramid'])
    assert anchor_grid.best_overlaps(none, types).shape == (0, 9)
    assert anchor_grid.clipped_overlaps(none, types).shape == (0,)
