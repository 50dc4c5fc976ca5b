"""Non-maximum suppression against the greedy loop: the same boxes in the same order, always."""

import functools

import jax
import numpy as np
import pytest

from rpn_jax.evaluation import metrics
from rpn_jax.ops.nms import BLOCK, BLOCK_OF_GPU, nms, ranked_nms

N = 40
MANY = 2 * BLOCK + 188  # two full blocks and a part of a third
THRESHOLDS = [-0.5, 0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0]


compiled = jax.jit(nms, static_argnames='limit')


def suppress(boxes, scores, threshold, limit, group=None):
    return compiled(boxes, scores, iou_threshold=threshold, limit=limit, group=group)


def loop_nms(boxes, scores, iou_threshold, limit, group):
    """Takes the best box that no kept one overlaps too much, again and again."""
    kept, rivals = [], rivals_of(boxes, iou_threshold, group)
    ranked = [i for i in range(len(scores)) if scores[i] > -np.inf]  # leaves NaN out as well
    for i in sorted(ranked, key=lambda i: (-scores[i], i)):
        if len(kept) < limit and not rivals[i, kept].any():
            kept.append(i)
    return kept


def rivals_of(boxes, iou_threshold, group):
    """Returns which boxes [N, N] cannot both be kept, in double precision."""
    return (metrics.iou(boxes, boxes) > iou_threshold) & (group[:, None] == group[None, :])


def kept_of(result):
    """Returns the kept indices, after a check of the rows that hold none."""
    indices, valid = map(np.asarray, result)
    count = valid.sum()
    assert indices.dtype == np.int32 and valid.dtype == bool and indices.shape == valid.shape
    assert valid[:count].all() and not indices[count:].any()
    return indices[:count].tolist()


def keep(boxes, scores, threshold, limit=N, group=None):
    """Returns the kept indices; fewer than N boxes are padded, so that one compilation serves."""
    missing = max(N - len(boxes), 0)
    boxes = np.pad(np.float32(boxes), ((0, missing), (0, 0)))
    scores = np.pad(np.float32(scores), (0, missing), constant_values=-np.inf)
    group = np.zeros(len(boxes), np.int32) if group is None else np.int32(group)
    return kept_of(suppress(boxes, scores, threshold, limit, group))


def random_case(seed, count=N, canvas=20, side=9):
    """Draws boxes on a grid and scores from a few values: equal scores and IoUs are common."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, canvas, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, side, (count, 2))], 1)
    few = np.array([-np.inf, np.nan, -3, -0.0, 0.0, 0.5, 1, 2, np.inf], np.float32)
    scores = rng.choice(few, count) if seed % 2 else rng.standard_normal(count)
    group = rng.integers(0, 3, count) if seed % 3 else np.zeros(count)
    return boxes.astype(np.float32), scores.astype(np.float32), group.astype(np.int32)


@pytest.mark.parametrize('limit', [1, 7, N + 20])
def test_nms_agrees_with_loops(limit):
    for seed in range(60):
        boxes, scores, group = random_case(seed)
        threshold = THRESHOLDS[seed % 8]
        kept = keep(boxes, scores, threshold, limit, group)
        assert kept == loop_nms(boxes, scores, threshold, limit, group), (seed, threshold)


@pytest.mark.parametrize(
    ('limit', 'sizes'),
    [
        (100, {}),
        (99, {'CHUNK': 50}),
        (MANY, {'CHUNK': 50}),
        (MANY, {'BLOCK': BLOCK_OF_GPU}),  # a single block
        (MANY, {'BLOCK': 400}),
    ],
)
def test_blocks_and_chunks_agree_with_loops(limit, sizes, monkeypatch):
    for name, value in sizes.items():
        monkeypatch.setattr(f'rpn_jax.ops.nms.{name}', value)
    # Nothing that was traced with other sizes.
    anew = jax.jit(functools.partial(nms, limit=limit))
    for seed, canvas, threshold in [(0, 60, 0.5), (1, 20, 0.7), (2, 60, 0.0), (3, 9, 0.25)]:
        boxes, scores, group = random_case(seed, MANY, canvas)
        kept = kept_of(anew(boxes, scores, iou_threshold=threshold, group=group))
        assert kept == loop_nms(boxes, scores, threshold, limit, group), seed


def test_a_chain_through_all_blocks_loses_every_other_link():
    x = 4 * np.arange(MANY)
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1)
    assert keep(boxes, -x, 0.4, MANY) == list(range(0, MANY, 2))


def test_what_may_not_be_kept_suppresses_nothing_in_any_block():
    corner = np.stack([20 * np.arange(MANY), 0 * np.arange(MANY)], 1)
    boxes = np.concatenate([corner, corner + 10], 1).astype(np.float32)
    boxes[0] = boxes[-1]
    ranked = jax.jit(ranked_nms, static_argnames='limit')
    result = ranked(boxes, np.arange(MANY) > 0, iou_threshold=0.5, limit=MANY)
    assert kept_of(result) == list(range(1, MANY))


def test_without_a_group_all_boxes_are_rivals():
    boxes, scores, _ = random_case(4)
    kept = kept_of(suppress(boxes, scores, 0.25, N))
    assert kept == keep(boxes, scores, 0.25, group=np.full(N, 7))


@pytest.mark.parametrize('hopeless', [-np.inf, np.nan])
def test_a_score_without_hope_is_never_kept(hopeless):
    boxes, _, group = random_case(1)
    nothing = np.full(N, hopeless)
    assert keep(boxes, nothing, 0.5, group=group) == []
    one = np.where(np.arange(N) == 5, -3e38, nothing)
    assert keep(boxes, one, 0.5, group=group) == keep(boxes, one, -0.5) == [5]


@pytest.mark.parametrize('limit', [0, 3])
@pytest.mark.parametrize('count', [0, 1])
def test_none_or_one_box_is_enough(limit, count):
    boxes, scores, group = (values[:count] for values in random_case(0))
    indices, valid = suppress(boxes, scores, 0.5, limit, group)
    assert indices.shape == (limit,)
    assert kept_of((indices, valid)) == [0] * min(count, limit)


def test_vmap_maps_over_images_that_end_at_different_times():
    cases = [random_case(seed, MANY, canvas) for seed, canvas in ((0, 90), (2, 4), (4, 30))]
    cases[1][1][9:] = -np.inf
    boxes, scores, group = map(np.stack, zip(*cases, strict=True))
    thresholds = np.float32([0.0, 0.7, 0.3])

    def one(boxes, scores, threshold, group):
        return nms(boxes, scores, iou_threshold=threshold, limit=100, group=group)

    mapped = jax.jit(jax.vmap(one))
    indices, valid = mapped(boxes, scores, thresholds, group)
    for i in range(3):
        loops = loop_nms(boxes[i], scores[i], float(thresholds[i]), 100, group[i])
        assert kept_of((indices[i], valid[i])) == loops


@pytest.mark.xla
def test_memory_grows_with_the_boxes_alone():
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((250_000, 4), (250_000,))]
    suppressed = functools.partial(nms, iou_threshold=0.7, limit=2000)
    compiled = jax.jit(suppressed).lower(*shapes).compile()
    every_pair = 250_000 * 2000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < every_pair / 50
