"""Non-maximum suppression against the greedy loop: the same boxes in the same order, always."""

import functools

import jax
import numpy as np
import pytest
from helpers import QUICK
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax.evaluation import metrics
from rpn_jax.ops.nms import BLOCK, BLOCK_OF_GPU, nms

TRACES = []
N = 40
MANY = 2 * BLOCK + 188  # two full blocks and a part of a third
THRESHOLDS = [-0.5, 0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0]


@functools.partial(jax.jit, static_argnames='limit')
def suppress(boxes, scores, iou_threshold, limit, group=None):
    TRACES.append(limit)
    return nms(boxes, scores, iou_threshold=iou_threshold, limit=limit, group=group)


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
def test_nms_agrees_with_loops_and_compiles_once(limit):
    TRACES.clear()
    for seed in range(60):
        boxes, scores, group = random_case(seed)
        threshold = THRESHOLDS[seed % 8]
        kept = keep(boxes, scores, threshold, limit, group)
        assert kept == loop_nms(boxes, scores, threshold, limit, group), (seed, threshold)
    assert len(TRACES) <= 1  # values change, shapes do not


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
    anew = jax.jit(functools.partial(nms, limit=limit), compiler_options=QUICK)
    for seed, canvas, threshold in [(0, 60, 0.5), (1, 20, 0.7), (2, 60, 0.0), (3, 9, 0.25)]:
        boxes, scores, group = random_case(seed, MANY, canvas)
        kept = kept_of(anew(boxes, scores, iou_threshold=threshold, group=group))
        assert kept == loop_nms(boxes, scores, threshold, limit, group), seed


def test_what_was_suppressed_suppresses_nothing():
    a, b, c = [0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]  # neighbours at 3/7, a and c at 1/9
    assert keep([c, b, a], [1, 2, 3], 0.4) == [2, 0]
    assert keep([c, b, a], [1, 3, 2], 0.4) == [1]


def test_a_chain_through_all_blocks_loses_every_other_link():
    x = 4 * np.arange(MANY)
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1)
    assert keep(boxes, -x, 0.4, MANY) == list(range(0, MANY, 2))
    assert keep(boxes[::-1], x, 0.4, MANY) == list(range(MANY - 1, 0, -2))


def test_equal_scores_rank_by_index():
    boxes = np.tile([[0, 0, 4, 4], [9, 9, 14, 14]], (N // 2, 1))
    assert keep(boxes, np.zeros(N), 0.5, 7) == [0, 1]
    assert keep(boxes, [-0.0, 0.0] * (N // 2), 1.0, 7) == [0, 1, 2, 3, 4, 5, 6]


def test_only_more_than_the_threshold_suppresses():
    boxes = [[0, 0, 4, 4], [0, 0, 4, 2]]  # IoU 1/2, and exactly so
    assert keep(boxes, [0, 0], 0.5) == [0, 1] and keep(boxes, [0, 0], 0.49999997) == [0]


def test_at_threshold_one_even_equal_boxes_stay():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 300, (N // 2, 2, 2)), axis=1).reshape(-1, 4)
    assert len(keep(np.concatenate([boxes, boxes]), rng.standard_normal(N), 1.0)) == N


def test_below_threshold_zero_one_box_of_each_group_stays():
    kept = keep(random_case(0)[0], np.arange(N), -0.5, group=np.arange(N) % 4)
    assert kept == [N - 1, N - 2, N - 3, N - 4]


def test_without_a_group_all_boxes_are_rivals():
    boxes, scores, _ = random_case(4)
    kept = kept_of(suppress(boxes, scores, 0.25, N))
    assert kept == keep(boxes, scores, 0.25, group=np.full(N, 7))
    assert kept_of(suppress(boxes, np.arange(N), 1.0, 3)) == [N - 1, N - 2, N - 3]  # whole numbers


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
    rows = random_case(0)
    boxes, scores, group = (values[:count] for values in rows)
    indices, valid = suppress(boxes, scores, 0.5, limit, group)
    assert indices.shape == (limit,)
    assert kept_of((indices, valid)) == [0] * min(count, limit)


def test_vmap_maps_over_images_that_end_at_different_times():
    cases = [random_case(seed, MANY, canvas) for seed, canvas in ((0, 90), (2, 4), (4, 30))]
    cases[1][1][9:] = -np.inf
    boxes, scores, group = map(np.stack, zip(*cases, strict=True))
    thresholds = np.float32([0.0, 0.7, 0.3])
    mapped = jax.jit(jax.vmap(lambda *rows: suppress(*rows[:3], 100, rows[3])))
    indices, valid = mapped(boxes, scores, thresholds, group)
    for i in range(3):
        loops = loop_nms(boxes[i], scores[i], float(thresholds[i]), 100, group[i])
        assert kept_of((indices[i], valid[i])) == loops


@given(st.integers(0, 2**32), st.sampled_from(THRESHOLDS), st.permutations(range(N)))
def test_kept_boxes_are_apart_the_others_have_a_better_one_nearby(seed, threshold, order):
    boxes, scores, group = random_case(seed)
    kept = keep(boxes, scores, threshold, group=group)
    rivals = rivals_of(boxes, threshold, group)
    assert not np.triu(rivals[np.ix_(kept, kept)], 1).any()
    for i in {*range(N)} - {*kept}:
        better = [j for j in kept if rivals[j, i] and scores[j] >= scores[i]]
        assert better or not scores[i] > -np.inf
    assert keep(boxes, scores, threshold, 7, group) == kept[:7]  # a smaller limit keeps the first
    # The order of the boxes does not matter, where scores differ.
    scores, order = np.random.default_rng(seed).permutation(N), np.array(order)
    again = keep(boxes[order], scores[order], threshold, group=group[order])
    assert order[again].tolist() == keep(boxes, scores, threshold, group=group)


@pytest.mark.xla
def test_memory_grows_with_the_boxes_alone():
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((250_000, 4), (250_000,))]
    compiled = suppress.lower(*shapes, 0.7, 2000).compile()
    every_pair = 250_000 * 2000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < every_pair / 50
