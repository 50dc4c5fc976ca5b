"""Non-maximum suppression against the greedy loop: the same boxes in the same order, always."""

import functools

import jax
import numpy as np
import pytest
from helpers import loop_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from rpn_jax.ops.nms import BLOCK, BLOCK_OF_GPU, nms

TRACES = []
N = 40
MANY = 2 * BLOCK + 188  # two full blocks and a part of a third
THRESHOLDS = [-0.5, 0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0]
few = settings(max_examples=25)


@functools.partial(jax.jit, static_argnames='limit')
def suppress(boxes, scores, iou_threshold, limit, group=None):
    TRACES.append(limit)
    return nms(boxes, scores, iou_threshold=iou_threshold, limit=limit, group=group)


def loop_nms(boxes, scores, iou_threshold, limit, group):
    """Takes the best box that no kept one overlaps too much, again and again."""
    boxes, group, kept = boxes.tolist(), group.tolist(), []
    ranked = [i for i in range(len(scores)) if scores[i] > -np.inf]  # leaves NaN out as well
    for i in sorted(ranked, key=lambda i: (-scores[i], i)):
        if len(kept) < limit and not any(
            group[i] == group[j] and loop_iou(boxes[i], boxes[j]) > iou_threshold for j in kept
        ):
            kept.append(i)
    return kept


def kept_of(result):
    """Returns the kept indices, after a look at the rows that hold none."""
    indices, valid = (np.asarray(part) for part in result)
    count = valid.sum()
    assert indices.dtype == np.int32 and valid.dtype == bool and indices.shape == valid.shape
    assert valid[:count].all() and not indices[count:].any()
    return indices[:count].tolist()


def random_case(seed, count=N, canvas=20, side=9):
    """Draws boxes on a grid and scores from a few values: equal scores and IoUs are common."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, canvas, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, side, (count, 2))], 1)
    few = np.array([-np.inf, np.nan, -3, -0.0, 0.0, 0.5, 1, 2, np.inf], np.float32)
    scores = rng.choice(few, count) if seed % 2 else rng.standard_normal(count)
    group = rng.integers(0, 3, count) if seed % 3 else np.zeros(count)
    return boxes.astype(np.float32), scores.astype(np.float32), group.astype(np.int32)


@pytest.mark.parametrize('limit', [1, 7, N, N + 20])
def test_nms_agrees_with_loops_and_compiles_once(limit):
    TRACES.clear()
    for seed in range(60):
        boxes, scores, group = random_case(seed)
        threshold = THRESHOLDS[seed % 8]
        kept = kept_of(suppress(boxes, scores, threshold, limit, group))
        loops = loop_nms(boxes, scores, threshold, limit, group)
        assert kept == loops, (seed, threshold)
    assert len(TRACES) <= 1  # values change, shapes do not


@pytest.mark.parametrize('limit', [100, MANY])
def test_many_blocks_agree_with_loops(limit):
    for seed, canvas, threshold in [(0, 60, 0.5), (1, 20, 0.7), (2, 60, 0.0), (3, 9, 0.25)]:
        boxes, scores, group = random_case(seed, MANY, canvas)
        kept = kept_of(suppress(boxes, scores, threshold, limit, group))
        assert kept == loop_nms(boxes, scores, threshold, limit, group), seed


def test_a_gpus_blocks_keep_the_same_boxes(monkeypatch):
    boxes, scores, group = random_case(5, BLOCK_OF_GPU + 300, 120)  # two blocks, one of them short
    keywords = dict(iou_threshold=0.5, limit=1500, group=group)
    found = nms(boxes, scores, **keywords)
    assert found[1].sum() > 1000
    monkeypatch.setattr('rpn_jax.ops.nms.BLOCK', BLOCK_OF_GPU)
    for ours, theirs in zip(nms(boxes, scores, **keywords), found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('limit', [99, 100, MANY])
def test_many_chunks_of_kept_boxes_agree_with_loops(limit, monkeypatch):
    monkeypatch.setattr('rpn_jax.ops.nms.CHUNK', 50)
    anew = jax.jit(functools.partial(nms, limit=limit))  # nothing traced with another chunk
    for seed, canvas, threshold in [(0, 60, 0.5), (1, 20, 0.7), (2, 60, 0.0)]:
        boxes, scores, group = random_case(seed, MANY, canvas)
        kept = kept_of(anew(boxes, scores, iou_threshold=threshold, group=group))
        assert kept == loop_nms(boxes, scores, threshold, limit, group), seed


def test_what_was_suppressed_suppresses_nothing():
    a, b, c = [0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]  # neighbours at 3/7, a and c at 1/9
    boxes = np.array([c, b, a], np.float32)
    assert kept_of(suppress(boxes, np.float32([1, 2, 3]), 0.4, 3)) == [2, 0]
    assert kept_of(suppress(boxes, np.float32([1, 3, 2]), 0.4, 3)) == [1]


def test_a_chain_through_all_blocks_loses_every_other_link():
    x = 4 * np.arange(MANY, dtype=np.float32)
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1)
    scores, group = -x, np.zeros(MANY, np.int32)
    kept = kept_of(suppress(boxes, scores, 0.4, MANY, group))
    assert kept == list(range(0, MANY, 2))
    kept = kept_of(suppress(boxes[::-1], scores[::-1], 0.4, 100, group))
    assert kept == list(range(MANY - 1, MANY - 201, -2))


def test_equal_scores_rank_by_index():
    boxes = np.tile(np.float32([[0, 0, 4, 4], [9, 9, 14, 14]]), (N // 2, 1))
    group = np.zeros(N, np.int32)
    assert kept_of(suppress(boxes, np.zeros(N, np.float32), 0.5, 7, group)) == [0, 1]
    zeros = np.float32([-0.0, 0.0] * (N // 2))
    assert kept_of(suppress(boxes, zeros, 1.0, 7, group)) == [0, 1, 2, 3, 4, 5, 6]


def test_only_more_than_the_threshold_suppresses():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]], np.float32)  # IoU 1/2, and exactly so
    for threshold, kept in [(0.5, [0, 1]), (0.49999997, [0])]:
        assert kept_of(suppress(boxes, np.zeros(2, np.float32), threshold, 2)) == kept


def test_at_threshold_one_even_equal_boxes_stay():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 300, (N // 2, 2, 2)), axis=1).reshape(-1, 4)
    boxes = np.concatenate([boxes, boxes]).astype(np.float32)
    scores, group = rng.standard_normal(N).astype(np.float32), np.zeros(N, np.int32)
    assert len(kept_of(suppress(boxes, scores, 1.0, N, group))) == N


def test_below_threshold_zero_one_box_of_each_group_stays():
    boxes, _, _ = random_case(0)
    scores, group = np.arange(N, dtype=np.float32), np.arange(N, dtype=np.int32) % 4
    assert kept_of(suppress(boxes, scores, -0.5, N, group)) == [N - 1, N - 2, N - 3, N - 4]


def test_without_a_group_all_boxes_are_rivals():
    boxes, scores, _ = random_case(4)
    alone = kept_of(suppress(boxes, scores, 0.25, N))
    assert alone == kept_of(suppress(boxes, scores, 0.25, N, np.full(N, 7, np.int32)))


@pytest.mark.parametrize('hopeless', [-np.inf, np.nan])
def test_a_score_without_hope_is_never_kept(hopeless):
    boxes, _, group = random_case(1)
    nothing = np.full(N, hopeless, np.float32)
    assert kept_of(suppress(boxes, nothing, 0.5, N, group)) == []
    one = np.where(np.arange(N) == 5, -3e38, nothing).astype(np.float32)
    assert kept_of(suppress(boxes, one, 0.5, N, group)) == [5]
    assert kept_of(suppress(boxes, one, -0.5, N, 0 * group)) == [5]


@pytest.mark.parametrize('limit', [0, 1, 3])
def test_none_or_one_box_is_enough(limit):
    boxes, scores, group = random_case(0)
    for count in (0, 1):
        rows = (boxes[:count], scores[:count], 0.5, limit, group[:count])
        indices, valid = suppress(*rows)
        assert indices.shape == (limit,)
        assert kept_of((indices, valid)) == [0] * min(count, limit)


def test_vmap_maps_over_images_that_end_at_different_times():
    cases = [random_case(seed, MANY, canvas) for seed, canvas in ((0, 90), (2, 4), (4, 30))]
    cases[1][1][9:] = -np.inf
    boxes, scores, group = (np.stack(parts) for parts in zip(*cases, strict=True))
    thresholds = np.array([0.0, 0.7, 0.3], np.float32)
    mapped = jax.jit(jax.vmap(lambda *rows: suppress(*rows[:3], 100, rows[3])))
    indices, valid = mapped(boxes, scores, thresholds, group)
    for i in range(3):
        loops = loop_nms(boxes[i], scores[i], float(thresholds[i]), 100, group[i])
        assert kept_of((indices[i], valid[i])) == loops


seeds, thresholds = st.integers(0, 2**32), st.sampled_from(THRESHOLDS)


@few
@given(seeds, thresholds)
def test_kept_boxes_are_apart_and_the_others_have_a_better_one_nearby(seed, threshold):
    boxes, scores, group = random_case(seed)
    kept = kept_of(suppress(boxes, scores, threshold, N, group))
    rivals = np.array([[loop_iou(a, b) > threshold for b in boxes] for a in boxes])
    rivals &= group[:, None] == group[None, :]
    assert not np.triu(rivals[np.ix_(kept, kept)], 1).any()
    for i in {*range(N)} - {*kept}:
        better = [j for j in kept if rivals[j, i] and scores[j] >= scores[i]]
        assert better or not scores[i] > -np.inf


@few
@given(seeds, thresholds)
def test_a_smaller_limit_keeps_the_first_of_a_larger(seed, threshold):
    case = random_case(seed)
    whole = kept_of(suppress(*case[:2], threshold, N, case[2]))
    assert kept_of(suppress(*case[:2], threshold, 7, case[2])) == whole[:7]


@few
@given(seeds, thresholds, st.permutations(range(N)))
def test_the_order_of_the_boxes_does_not_matter(seed, threshold, order):
    boxes, _, group = random_case(seed)
    scores, order = np.random.default_rng(seed).permutation(N).astype(np.float32), np.array(order)
    kept = kept_of(suppress(boxes, scores, threshold, N, group))
    again = kept_of(suppress(boxes[order], scores[order], threshold, N, group[order]))
    assert order[again].tolist() == kept


def test_whole_numbers_are_scores_too():
    boxes, _, _ = random_case(0)
    scores = np.arange(N)
    assert kept_of(suppress(boxes, scores, 1.0, 3)) == [N - 1, N - 2, N - 3]


@pytest.mark.xla
def test_memory_grows_with_the_boxes_only():
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((250_000, 4), (250_000,))]
    compiled = suppress.lower(*shapes, 0.7, 2000).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 30 * 2**20  # 2 GB compare all with kept
