"""Proposals against the pipeline in plain loops, and the promises about order, levels and gaps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PYRAMIDS, loop_decode, loop_iou
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax.ops.anchors import Anchors, boxes_of
from rpn_jax.ops.proposals import Proposals, propose

TRACES = []
A, PRE_NMS, POST_NMS = 60, 25, 12
LEVELS = (36, 18, 6)  # the last is smaller than pre_nms
SIZE = np.float32([60, 90])  # height, width: not square, so that swapped axes show


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def compiled(logits, deltas, anchors, size, nms_iou, min_size, pre_nms, post_nms, levels):
    TRACES.append(levels)
    counts = dict(pre_nms=pre_nms, post_nms=post_nms, levels=levels)
    return propose(logits, deltas, anchors, size, nms_iou=nms_iou, min_size=min_size, **counts)


def run(
    *case, size=SIZE, nms_iou=0.5, min_size=1e-3, pre_nms=PRE_NMS, post_nms=POST_NMS, levels=None
):
    """Calls what is compiled once for all sizes and thresholds."""
    return compiled(*case, size, nms_iou, min_size, pre_nms, post_nms, levels)


def loop_propose(logits, deltas, anchors, size, nms_iou, min_size, levels):
    """Returns the boxes and the anchors of the proposals, in double precision."""
    level_of = np.repeat(np.arange(len(levels)), levels)

    def by_logit(indices):
        return sorted(indices, key=lambda i: (-logits[i], i))

    candidates = []
    for level in range(len(levels)):
        members = [i for i in range(len(logits)) if level_of[i] == level and logits[i] > -np.inf]
        candidates += by_logit(members)[:PRE_NMS]
    boxes = {}
    for i in candidates:
        x0, y0, x1, y1 = loop_decode(deltas[i], anchors[i])
        x0, x1 = (min(max(x, 0), float(size[1])) for x in (x0, x1))
        y0, y1 = (min(max(y, 0), float(size[0])) for y in (y0, y1))
        if x1 - x0 >= min_size and y1 - y0 >= min_size:
            boxes[i] = (x0, y0, x1, y1)
    kept = []
    for i in by_logit(boxes):
        rivals = [j for j in kept if level_of[i] == level_of[j]]
        if all(loop_iou(boxes[i], boxes[j]) <= nms_iou for j in rivals):
            kept.append(i)
    return [boxes[i] for i in kept[:POST_NMS]], kept[:POST_NMS]


def random_case(seed, anchors=None):
    rng = np.random.default_rng(seed)
    count = A if anchors is None else len(anchors.boxes)
    logits, deltas = rng.normal(0, 2, count), rng.normal(0, 0.4, (count, 4))
    if anchors is None:
        centre, half = rng.uniform(-20, 110, (A, 2)), rng.uniform(4, 30, (A, 2))
        anchors = np.float32(np.concatenate([centre - half, centre + half], 1))
    return np.float32(logits), np.float32(deltas), anchors


def apart(count=A):
    """Makes anchors that do not touch each other, all inside the image."""
    x, y = np.divmod(np.arange(count), 6)
    corner = np.stack([9 * x, 9 * y], 1)
    return np.concatenate([corner, corner + 8], 1).astype(np.float32)


STILL = np.zeros((A, 4), np.float32)


def check_form(proposals):
    """Returns the valid proposals, after a check of the rows that hold none."""
    proposals = Proposals(*map(np.asarray, proposals))
    count = proposals.valid.sum()
    assert [part.dtype for part in proposals] == [np.float32, np.float32, bool, np.int32]
    assert proposals.boxes.shape == (len(proposals.valid), 4)
    assert proposals.valid[:count].all() and not proposals.valid[count:].any()
    for part in (proposals.boxes, proposals.scores, proposals.index):
        assert len(part) == len(proposals.valid) and np.all(part[count:] == 0)
    return Proposals(*(part[:count] for part in proposals))


@pytest.mark.parametrize('case', ['array', 'array of levels', *PYRAMIDS])
def test_propose_agrees_with_loops_and_compiles_once(case):
    """The loops do what torchvision does level by level."""
    TRACES.clear()
    counts, anchors = set(), Anchors.of(*PYRAMIDS[case]) if case in PYRAMIDS else None
    levels = LEVELS if case == 'array of levels' else None
    of_loops = levels or (anchors.levels if anchors else (A,))
    for seed in range(40 if anchors is None else 12):
        rows = random_case(seed, anchors)
        thresholds = [0.0, 0.2, 0.5, 0.9][seed % 4], [1e-3, 4.0, 12.0][seed % 3]
        rules = dict(zip(('size', 'nms_iou', 'min_size'), (SIZE - seed, *thresholds), strict=True))
        kept = check_form(run(*rows, **rules, levels=levels))
        rows = *rows[:2], np.asarray(boxes_of(rows[2]))
        boxes, index = loop_propose(*rows, **rules, levels=of_loops)
        assert kept.index.tolist() == index, seed
        np.testing.assert_allclose(kept.boxes, boxes, atol=1e-3)
        np.testing.assert_allclose(kept.scores, 1 / (1 + np.exp(-rows[0][index])), rtol=1e-5)
        counts.add(len(index))
    assert min(counts) < POST_NMS == max(counts)  # with rows to spare and without
    assert len(TRACES) <= 1  # thresholds and sizes are values, not shapes


def test_vmap_maps_over_images_of_different_size():
    cases = [random_case(seed) for seed in range(3)]
    sizes = np.stack([SIZE, SIZE / 2, 0 * SIZE])
    many = jax.vmap(lambda *case: run(*case[:3], size=case[3], levels=LEVELS))
    mapped = many(*map(np.stack, zip(*cases, strict=True)), sizes)
    for i in range(3):
        one = check_form(run(*cases[i], size=sizes[i], levels=LEVELS))
        kept = check_form(Proposals(*(part[i] for part in mapped)))
        assert kept.index.tolist() == one.index.tolist()
        np.testing.assert_allclose(kept.boxes, one.boxes, atol=1e-4)
    assert not mapped.valid[2].any()  # an image of no size has no proposals


def test_small_boxes_go_after_clipping_and_before_nms():
    anchors = apart()
    anchors[0] = [80, 10, 100, 20]  # half outside
    anchors[1] = [82, 10, 90, 20]  # suppressed by the first, unless that is too small
    logits = -np.arange(A, dtype=np.float32)
    for left, first in [(80, [0, 2, 3]), (82.5, [1, 2, 3])]:
        anchors[0, 0] = left
        assert check_form(run(logits, STILL, anchors, min_size=8.0)).index[:3].tolist() == first
    outside = anchors + np.float32([90, 0, 90, 0])
    assert not run(logits, STILL, outside).valid.any()


def test_ranks_by_logit_where_scores_saturate():
    logits = np.full(A, -np.float32(3e38))
    logits[[7, 3, 9]] = [40, 300, 90]
    kept = check_form(run(logits, STILL, apart()))
    assert kept.index.tolist() == [3, 9, 7, 0, 1, 2, 4, 5, 6, 8, 10, 11]
    assert kept.scores.tolist() == [1] * 3 + [0] * 9


@pytest.mark.parametrize('levels', [None, LEVELS])
def test_equal_logits_rank_by_index(levels):
    first = list(range(POST_NMS))
    assert run(0 * STILL[:, 0], STILL, apart(), levels=levels).index.tolist() == first
    zeros = np.where(np.arange(A) % 3, 0.0, -0.0).astype(np.float32)
    assert run(zeros, STILL, apart(), levels=levels).index.tolist() == first
    late = np.zeros(A, np.float32)
    late[[2, 50, 58]] = 1  # one in each level
    assert run(late, STILL, apart(), levels=levels).index[:4].tolist() == [2, 50, 58, 0]


@given(st.integers(0, 2**32), st.sampled_from([None, LEVELS]))
def test_proposals_lie_inside_the_image_and_name_their_anchors(seed, levels):
    logits, deltas, anchors = random_case(seed)
    kept = check_form(run(logits, 9 * deltas, anchors, levels=levels))
    assert np.all((kept.boxes >= 0) & (kept.boxes <= SIZE[[1, 0, 1, 0]]))
    assert np.all(kept.boxes[:, 2:] - kept.boxes[:, :2] >= 1e-3)
    kept = check_form(run(logits, STILL, anchors, levels=levels))
    clipped = np.clip(anchors, 0, SIZE[[1, 0, 1, 0]])
    np.testing.assert_allclose(kept.boxes, clipped[kept.index], atol=1e-4)
    assert len({*kept.index.tolist()}) == len(kept.index)
    assert np.all(np.diff(logits[kept.index]) <= 0) and np.all(np.diff(kept.scores) <= 0)


@pytest.mark.parametrize('levels', [None, LEVELS])
@pytest.mark.parametrize('hopeless', [np.nan, -np.inf])
def test_a_logit_without_hope_is_no_proposal(hopeless, levels):
    logits = np.full(A, hopeless, np.float32)
    assert not run(logits, STILL, apart(), levels=levels).valid.any()
    logits[[40, 4, 59]] = [-9, 8, np.inf]
    kept = check_form(run(logits, STILL, apart(), levels=levels))
    assert kept.index.tolist() == [59, 4, 40] and kept.scores[0] == 1


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_broken_deltas_break_only_their_own_proposal(broken):
    logits = -np.arange(A, dtype=np.float32)
    for column in range(4):
        deltas = STILL.copy()
        deltas[1, column] = broken
        kept = check_form(run(logits, deltas, apart()))
        assert np.all(np.isfinite(kept.boxes))
        # Growth is clamped, so that box is whole: as wide or as high as the image.
        grown = column > 1 and broken == np.inf
        first = range(POST_NMS) if grown else [0, *range(2, POST_NMS + 1)]
        assert kept.index.tolist() == [*first]


def test_only_the_best_pre_nms_compete():
    anchors = np.tile(np.float32([[10, 10, 30, 30]]), (A, 1))
    anchors[PRE_NMS] = [50, 10, 70, 30]  # just too late: all before it are copies of one box
    logits = -np.arange(A, dtype=np.float32)
    assert check_form(run(logits, STILL, anchors)).index.tolist() == [0]
    logits[PRE_NMS] = -PRE_NMS + 1.5
    assert check_form(run(logits, STILL, anchors)).index.tolist() == [0, PRE_NMS]


def test_pre_and_post_nms_may_exceed_the_anchors():
    case = random_case(0)
    all_of_them, more = (run(*case, pre_nms=count, post_nms=A + 20) for count in (A, A + 5))
    for a, b in zip(all_of_them, more, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(check_form(more).index) < A + 20 == len(more.valid)


def test_levels_are_ranked_together_but_suppressed_apart():
    logits, anchors = -np.arange(A, dtype=np.float32), apart()
    anchors[[36, 54]] = anchors[0]  # the same box in every level
    kept = check_form(run(logits, STILL, anchors, post_nms=A, levels=LEVELS)).index.tolist()
    # The best 25 of 36, then all of the smaller levels: a weak level keeps its candidates.
    assert kept == [*range(PRE_NMS), *range(36, 60)]
    backwards = check_form(run(-logits, STILL, anchors, post_nms=A, levels=LEVELS))
    assert backwards.index.tolist() == sorted([*range(11, 36), *range(36, 60)], reverse=True)
    of_one = check_form(run(logits, STILL, anchors, post_nms=A + 20, pre_nms=A)).index.tolist()
    assert of_one == [i for i in range(A) if i not in (36, 54)]
    with pytest.raises(AssertionError, match='levels'):
        run(*random_case(0), levels=(36, 18))  # they do not add up


def test_half_precision_goes_in_and_single_comes_out():
    logits, deltas, anchors = random_case(0)
    halves = jnp.bfloat16(logits), jnp.bfloat16(deltas)
    kept = check_form(run(*halves, anchors))
    same = check_form(run(*(np.float32(half) for half in halves), anchors))
    for a, b in zip(kept, same, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('levels', [None, (0, 0)])
def test_no_anchors_give_no_proposals(levels):
    nothing = np.zeros((0, 4), np.float32)
    proposals = check_form(run(nothing[:, 0], nothing, nothing, levels=levels))
    assert len(proposals.index) == 0


def test_a_level_may_be_empty():
    anchors = apart(2)
    proposals = run(STILL[:2, 0], STILL[:2], anchors, levels=(0, 2, 0))
    np.testing.assert_array_equal(check_form(proposals).boxes, anchors)
