"""Labels of anchors against plain loops, and how evenly anchors are drawn."""

import jax
import numpy as np
import pytest
from helpers import KEY, loop_area, loop_iou

from rpn_jax.ops import boxes as box
from rpn_jax.ops import matching
from rpn_jax.ops.anchors import Anchors, base_anchors, grid

PADDING, OBJECT, DIFFICULT, CROWD = range(4)
A, G = 24, 5
SIZE = (10, 14)  # height, width: not square, so that swapped axes show
match = jax.jit(matching.match)


def floats(rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def loop_match(anchors, boxes, kind, positive_iou, negative_iou, crowd_overlap, size, border):
    """Labels and matches one anchor after the other, then one object after the other."""
    labels, matched, ious = [], [], []
    for a in anchors:
        row = [loop_iou(a, b) if k == OBJECT else -1 for b, k in zip(boxes, kind, strict=True)]
        low, high = -border, (size[1] + border, size[0] + border)
        outside = min(a[0], a[1]) < low or a[2] > high[0] or a[3] > high[1]
        row = [-1] * len(row) if border >= 0 and outside else row
        best, label = max(row, default=-1), -1
        background = best < negative_iou and not (border >= 0 and outside)
        for b, k in zip(boxes, kind, strict=True):
            if k == DIFFICULT and loop_iou(a, b) >= negative_iou:
                background = False
            inner = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
            if k == CROWD and loop_area(inner) >= crowd_overlap * loop_area(a):
                background = False
        label = 1 if best >= positive_iou else 0 if background else -1
        labels.append(label)
        matched.append(row.index(best) if row else 0)
        ious.append(row)
    for g in range(len(boxes)):
        best = max(row[g] for row in ious)
        for i, row in enumerate(ious):
            if best > 0 and row[g] == best:
                labels[i] = 1
    return labels, matched


def random_case(seed, rows=G):
    """Draws boxes on a coarse grid, where ties and IoUs equal to a threshold are common."""
    rng = np.random.default_rng(seed)

    def draw(count, least):
        corner = rng.integers(-2, 10, (count, 2))
        return floats(np.concatenate([corner, corner + rng.integers(least, 7, (count, 2))], 1))

    thresholds = {
        'positive_iou': rng.choice([0.4, 0.5, 0.7]),
        'negative_iou': rng.choice([0.2, 0.25, 0.3]),
        'crowd_overlap': rng.choice([0.25, 0.5, 1.0]),
        'size': np.float32(SIZE) - rng.integers(0, 3, 2).astype(np.float32),
        'border': float(rng.choice([-1, 0, 1, 2])),
    }
    kind = rng.choice(4, rows, p=[0.1, 0.5, 0.2, 0.2])
    return draw(A, 1), draw(rows, 0), kind, thresholds


@pytest.mark.parametrize('rows', [1, G, matching.BLOCK, 2 * matching.BLOCK + 3])
def test_match_agrees_with_loops_under_vmap(rows):
    """Ties between objects, and between anchors, across the edges of blocks among them."""
    cases = [random_case(seed, rows) for seed in range(40)]
    anchors, boxes, kind = (np.stack([case[i] for case in cases]) for i in range(3))
    # Thresholds, size and border are values, not shapes: one compilation for all of them.
    thresholds = {key: np.float32([case[3][key] for case in cases]) for key in cases[0][3]}
    mapped = jax.jit(jax.vmap(lambda *rows, **rules: matching.match(*rows, **rules)))
    labels, matched = mapped(anchors, boxes, kind, **thresholds)
    assert labels.dtype == matched.dtype == np.int32 and {*labels.ravel().tolist()} == {-1, 0, 1}
    for i, (of_anchors, of_boxes, kinds, rules) in enumerate(cases):
        loops = loop_match(of_anchors.tolist(), of_boxes.tolist(), kinds, **rules)
        np.testing.assert_array_equal(labels[i], loops[0], err_msg=f'image {i}')
        np.testing.assert_array_equal(matched[i], loops[1], err_msg=f'image {i}')


@pytest.mark.xla
def test_memory_does_not_grow_with_the_objects():
    sizes = []
    for rows in (50, 500):
        shapes = [((250_000, 4), np.float32), ((rows, 4), np.float32), ((rows,), np.int32)]
        lowered = jax.jit(matching.match).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
        sizes.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    every_iou = 250_000 * 500 * 4
    assert sizes[1] < every_iou / 10 and sizes[1] - sizes[0] < every_iou / 400


def labels_of(boxes, kind, anchors=None, **keywords):
    """Returns the labels of a few anchors; up to G objects and A anchors are padded."""
    anchors = ANCHORS if anchors is None else floats(anchors)
    padded = np.pad(anchors, ((0, A - len(anchors)), (0, 0)), constant_values=1000)
    boxes = np.pad(floats(boxes), ((0, G - len(boxes)), (0, 0)))
    kind = np.pad(np.array(kind, int), (0, G - len(kind)))
    labels, _ = match(padded, boxes, kind, **DEFAULTS | keywords)
    return labels.tolist()[: len(anchors)]


DEFAULTS = {'positive_iou': 0.7, 'negative_iou': 0.3, 'crowd_overlap': 0.5}
DEFAULTS |= {'size': np.float32(SIZE), 'border': -1.0}
ANCHORS = floats([[0, 0, 4, 4], [4, 0, 8, 4], [8, 0, 12, 4], [0, 4, 4, 8], [20, 20, 24, 24]])


BOX, MIDDLE, RIGHT, HUGE = [0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [0, 0, 9, 900]
TWO = {'anchors': [BOX, MIDDLE]}  # IoU 1/3
OUTSIDE = {'anchors': [[-1, 0, 3, 4], BOX], 'size': np.float32([8, 12])}
TOUCHING = {'anchors': [BOX, [8, 4, 12, 8], [9, 5, 13, 9]], 'border': 0.0}


@pytest.mark.parametrize(
    ('boxes', 'kind', 'keywords', 'labels'),
    [
        ([MIDDLE], [OBJECT], {}, [1, 1, 0, 0, 0]),  # two tie for its best IoU
        ([[3, 3, 5, 5]], [OBJECT], {}, [1, 1, 0, 1, 0]),  # three, at 1/19
        ([[40, 40, 50, 50]], [OBJECT], {}, [0, 0, 0, 0, 0]),  # it overlaps nothing
        ([[30, 30, 30, 30]], [OBJECT], {}, [0, 0, 0, 0, 0]),
        ([BOX, RIGHT], [PADDING, OBJECT], {}, [0, 1, 0, 0, 0]),
        ([[np.nan] * 4, RIGHT], [PADDING, OBJECT], {}, [0, 1, 0, 0, 0]),
        ([[-np.inf, 0, 4, 4], RIGHT], [PADDING, OBJECT], {}, [0, 1, 0, 0, 0]),
        # Thresholds belong to the foreground but not to the background.
        ([BOX], [OBJECT], TWO | {'positive_iou': 1 / 3, 'negative_iou': 0.1}, [1, 1]),
        ([BOX], [OBJECT], TWO | {'positive_iou': 0.34, 'negative_iou': 1 / 3}, [1, -1]),
        ([BOX], [OBJECT], TWO | {'positive_iou': 0.34, 'negative_iou': 0.34}, [1, 0]),
        ([MIDDLE], [DIFFICULT], {}, [-1, -1, 0, 0, 0]),
        ([MIDDLE], [DIFFICULT], {'negative_iou': 0.34}, [0, 0, 0, 0, 0]),
        ([BOX, BOX], [DIFFICULT, OBJECT], {}, [1, 0, 0, 0, 0]),
        ([HUGE], [CROWD], {}, [-1, -1, 0, -1, 0]),  # at any IoU
        ([HUGE], [CROWD], {'crowd_overlap': 0.25}, [-1, -1, -1, -1, 0]),
        ([HUGE, RIGHT], [CROWD, OBJECT], {}, [-1, 1, 0, -1, 0]),
        # The border is decided before matching; anchors may touch it.
        ([[-1, 0, 3, 4]], [OBJECT], OUTSIDE | {'border': -1.0}, [1, -1]),
        ([[-1, 0, 3, 4]], [OBJECT], OUTSIDE | {'border': 0.0}, [-1, 1]),
        ([[-1, 0, 3, 4]], [OBJECT], OUTSIDE | {'border': 1.0}, [1, -1]),
        ([], [], TOUCHING | {'size': np.float32([8, 12])}, [0, 0, -1]),
        ([], [], TOUCHING | {'size': np.float32([9, 13])}, [0, 0, 0]),
    ],
)
def test_labels_of_a_few_anchors(boxes, kind, keywords, labels):
    assert labels_of(boxes, kind, **keywords) == labels


def test_every_object_that_is_touched_wins_an_anchor():
    """In images of the real size, where each maximum is a compiler's own reduction."""
    anchors = grid(base_anchors((32, 64, 128), (0.5, 1, 2)), (20, 30), 16)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 250, (4, 20, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 60, (4, 20, 2))], -1).astype(np.float32)
    everywhere = jax.jit(jax.vmap(matching.match, (None, 0, 0)))
    labels, matched = everywhere(anchors, boxes, np.ones((4, 20), int))
    for image in range(4):
        ious = np.array(box.iou(anchors, boxes[image]))
        assert np.all(np.any((ious >= ious.max(0) - 1e-6) & (labels[image] == 1)[:, None], 0))
        np.testing.assert_allclose(ious[np.arange(len(ious)), matched[image]], ious.max(1))


SIZES = 'samples', 'positive_fraction'
draw, assign = (jax.jit(f, static_argnames=SIZES) for f in (matching.sample, matching.assign))


def random_labels(seed):
    rng = np.random.default_rng(seed)
    return rng.choice([-1, 0, 1], 40, p=rng.dirichlet([1, 1, 1])).astype(np.int32)


@pytest.mark.parametrize(
    ('samples', 'fraction', 'limit'),
    [(16, 0.5, 8), (10, 0.38, 3), (16, 0.0, 0), (16, 1.0, 16), (100, 0.5, 50), (0, 0.5, 0)],
)
def test_sample_draws_the_right_number_of_each(samples, fraction, limit):
    for seed in range(20):
        labels = random_labels(seed) if seed else np.ones(40, np.int32)  # no background at all
        key = jax.random.key(seed)
        index, drawn = draw(key, labels, samples=samples, positive_fraction=fraction)
        positives = min(np.sum(labels == 1), limit)
        negatives = min(np.sum(labels == 0), samples - positives)
        unused = samples - positives - negatives
        np.testing.assert_array_equal(drawn, [1] * positives + [0] * negatives + [-1] * unused)
        used = np.asarray(index)[np.asarray(drawn) >= 0]
        assert len({*used.tolist()}) == len(used)  # nothing is drawn twice
        np.testing.assert_array_equal(labels[used], drawn[: len(used)])
        np.testing.assert_array_equal(index[len(used) :], 0)
        assert index.dtype == drawn.dtype == np.int32 and len(index) == samples


def test_a_draw_is_a_function_of_its_key_also_under_vmap():
    labels = np.stack([random_labels(seed) for seed in (1, 1, 1)])
    keys = jax.vmap(jax.random.key)(np.array([3, 3, 4]))
    mapped = jax.vmap(lambda k, x: draw(k, x, samples=16))(keys, labels)
    for many, one in zip(mapped, draw(keys[2], labels[2], samples=16), strict=True):
        np.testing.assert_array_equal(many[2], one)
    np.testing.assert_array_equal(mapped[0][0], mapped[0][1])
    assert np.any(mapped[0][0] != mapped[0][2])


def test_every_anchor_is_drawn_equally_often():
    labels = np.array([1] * 10 + [-1] * 5 + [0] * 25, np.int32)
    keys = jax.random.split(KEY, 4000)
    many = jax.jit(jax.vmap(lambda key: matching.sample(key, labels, samples=12)))
    index, drawn = (np.asarray(v) for v in many(keys))
    for label, drawn_each_time in ((1, 6), (0, 6)):
        members = np.flatnonzero(labels == label)
        times = np.bincount(index[drawn == label], minlength=40)[members]
        share = drawn_each_time / len(members)
        assert times.sum() == 4000 * drawn_each_time
        # Each count is binomial: the sum of squares below is about the number of members.
        surprise = np.sum((times - 4000 * share) ** 2 / (4000 * share * (1 - share)))
        assert surprise < len(members) + 4 * np.sqrt(2 * len(members))
        # The first and the last slot are as even: no order among the drawn.
        first = np.bincount(index[:, 0 if label else 6], minlength=40)[members]
        assert np.all(np.abs(first - 4000 / len(members)) < 6 * np.sqrt(4000 / len(members)))


def test_assign_is_match_then_sample():
    """Each keyword changes something in this image, so that none is forgotten."""
    anchors, boxes, _, _ = random_case(7)
    kind = np.array([OBJECT, OBJECT, DIFFICULT, CROWD, PADDING])
    default = assign(KEY, anchors, boxes, kind)
    changes = {'positive_iou': 0.1, 'negative_iou': 0.1, 'crowd_overlap': 0.1, 'border': 0.0}
    rules = [DEFAULTS | {name: np.float32(value)} for name, value in changes.items()]
    for rule, drawing in [*((rule, {}) for rule in rules), ({}, {'positive_fraction': 0.004})]:
        labels, matched = match(anchors, boxes, kind, **rule)
        index, drawn = draw(KEY, labels, **drawing)
        actual = assign(KEY, anchors, boxes, kind, **rule, **drawing)
        for a, b in zip(actual, (index, drawn, matched[index]), strict=True):
            np.testing.assert_array_equal(a, b)
        assert any(not np.array_equal(a, b) for a, b in zip(actual, default, strict=True)), rule


def test_anchors_of_several_levels_are_matched_together():
    anchors = Anchors.of(((5, 7), (3, 4), (1, 1)), (4, 8, 16), ((4,), (8,), (16,)), (1, 2))
    boxes, kind = floats([[0, 0, 3, 5], [3, 4, 12, 11], [-7, -6, 8, 9]]), np.full(3, OBJECT)
    index, labels, _ = map(np.asarray, assign(KEY, anchors, boxes, kind, samples=300))
    loops, _ = loop_match(anchors.boxes.tolist(), boxes.tolist(), kind, **DEFAULTS)
    assert sorted(index[labels == 1]) == list(np.flatnonzero(np.equal(loops, 1)))
    assert {*np.asarray(anchors.level)[index[labels == 1]]} == {0, 1, 2}


def test_assign_works_without_an_object_row():
    boxes, kind = np.zeros((0, 4), np.float32), np.zeros(0, int)
    index, labels, matched = assign(KEY, ANCHORS, boxes, kind, samples=8)
    assert labels.tolist() == [0] * 5 + [-1] * 3 and matched.tolist() == [0] * 8
    assert sorted(index[:5].tolist()) == [0, 1, 2, 3, 4]
