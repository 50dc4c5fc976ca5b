"""Proposals against the pipeline in plain loops, and the promises about order, levels and gaps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PYRAMIDS, loop_decode, loop_propose

from rpn_jax.ops.anchors import Anchors, boxes_of
from rpn_jax.ops.proposals import Proposals, propose

A, PRE_NMS, POST_NMS = 60, 25, 12
LEVELS = (36, 18, 6)  # the last is smaller than pre_nms
SIZE = np.float32([60, 90])  # height, width: not square, so that swapped axes show


compiled = jax.jit(propose, static_argnames=('pre_nms', 'post_nms', 'levels'))


def run(logits, deltas, anchors, size=SIZE, *, nms_iou=0.5, min_size=1e-3, **counts):
    """Calls what is compiled once for all sizes and thresholds."""
    counts = {'pre_nms': PRE_NMS, 'post_nms': POST_NMS} | counts
    return compiled(logits, deltas, anchors, size, nms_iou=nms_iou, min_size=min_size, **counts)


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
FALLING = -np.arange(A, dtype=np.float32)


def indices(logits, anchors, deltas=STILL, **rules):
    """Returns the anchors of the proposals as a list."""
    return check_form(run(logits, deltas, anchors, **rules)).index.tolist()


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
def test_propose_agrees_with_loops(case):
    """The loops do what torchvision does level by level."""
    counts, known = set(), Anchors.of(*PYRAMIDS[case]) if case in PYRAMIDS else None
    levels = LEVELS if case == 'array of levels' else None
    of_loops = levels or (known.levels if known else (A,))
    level = np.repeat(range(len(of_loops)), of_loops)
    anchors_of_loops = SimpleNamespace(levels=of_loops, level=level)
    for seed in range(12 if known else 24):
        logits, deltas, anchors = random_case(seed, known)
        rules = {'nms_iou': [0.0, 0.2, 0.5, 0.9][seed % 4], 'min_size': [1e-3, 4.0, 12.0][seed % 3]}
        kept = check_form(run(logits, deltas, anchors, SIZE - seed, **rules, levels=levels))
        decoded = map(loop_decode, deltas, np.asarray(boxes_of(anchors)))
        clipped = np.clip([*decoded], 0, (SIZE - seed)[[1, 0, 1, 0]])
        prediction = SimpleNamespace(logits=logits, clipped=clipped, anchors=anchors_of_loops)
        index = loop_propose(prediction, pre_nms=PRE_NMS, post_nms=POST_NMS, **rules)
        assert kept.index.tolist() == index.tolist(), seed
        np.testing.assert_allclose(kept.boxes, clipped[index], atol=1e-3)
        np.testing.assert_allclose(kept.scores, 1 / (1 + np.exp(-logits[index])), rtol=1e-5)
        counts.add(len(index))
    assert min(counts) < POST_NMS == max(counts)  # with rows to spare and without


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
    for left, first in [(80, [0, 2, 3]), (82.5, [1, 2, 3])]:
        anchors[0, 0] = left
        assert indices(FALLING, anchors, min_size=8.0)[:3] == first
    assert indices(FALLING, anchors + np.float32([90, 0, 90, 0])) == []


def test_ranks_by_logit_where_scores_saturate():
    logits = np.full(A, -np.float32(3e38))
    logits[[7, 3, 9]] = [40, 300, 90]
    kept = check_form(run(logits, STILL, apart()))
    assert kept.index.tolist() == [3, 9, 7, 0, 1, 2, 4, 5, 6, 8, 10, 11]
    assert kept.scores.tolist() == [1] * 3 + [0] * 9


@pytest.mark.parametrize('levels', [None, LEVELS])
def test_equal_logits_rank_by_index(levels):
    zeros = np.where(np.arange(A) % 3, 0.0, -0.0).astype(np.float32)
    assert indices(zeros, apart(), levels=levels) == list(range(POST_NMS))
    zeros[[2, 50, 58]] = 1  # one in each level
    assert indices(zeros, apart(), levels=levels)[:4] == [2, 50, 58, 0]


@pytest.mark.parametrize('levels', [None, LEVELS])
@pytest.mark.parametrize('hopeless', [np.nan, -np.inf])
def test_a_logit_without_hope_is_no_proposal(hopeless, levels):
    logits = np.full(A, hopeless, np.float32)
    assert indices(logits, apart(), levels=levels) == []
    logits[[40, 4, 59]] = [-9, 8, np.inf]
    kept = check_form(run(logits, STILL, apart(), levels=levels))
    assert kept.index.tolist() == [59, 4, 40] and kept.scores[0] == 1


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
def test_broken_deltas_break_only_their_own_proposal(broken):
    for column in range(4):
        deltas = STILL.copy()
        deltas[1, column] = broken
        kept = check_form(run(FALLING, deltas, apart()))
        assert np.all(np.isfinite(kept.boxes))
        # Growth is clamped, so that box is whole: as wide or as high as the image.
        grown = column > 1 and broken == np.inf
        first = range(POST_NMS) if grown else [0, *range(2, POST_NMS + 1)]
        assert kept.index.tolist() == [*first]


def test_pre_and_post_nms_may_exceed_the_anchors():
    case = random_case(0)
    exact, more = (run(*case, pre_nms=A, post_nms=A), run(*case, pre_nms=A + 5, post_nms=A + 20))
    for a, b in zip(exact, more, strict=True):
        np.testing.assert_array_equal(a, b[:A])
    assert len(check_form(more).index) < A + 20 == len(more.valid)


def test_levels_are_ranked_together_but_suppressed_apart():
    anchors = apart()
    anchors[[36, 54]] = anchors[0]  # the same box in every level
    # The best 25 of 36, then all of the smaller levels: a weak level keeps its candidates.
    kept = indices(FALLING, anchors, post_nms=A, levels=LEVELS)
    assert kept == [*range(PRE_NMS), *range(36, 60)]
    kept = indices(-FALLING, anchors, post_nms=A, levels=LEVELS)
    assert kept == sorted([*range(11, 36), *range(36, 60)], reverse=True)
    kept = indices(FALLING, anchors, pre_nms=A, post_nms=A)
    assert kept == [i for i in range(A) if i not in (36, 54)]
    with pytest.raises(AssertionError, match='levels'):
        run(*random_case(0), levels=(36, 18))  # they do not add up


def test_half_precision_goes_in_and_single_comes_out():
    logits, deltas, anchors = random_case(0)
    halves = jnp.bfloat16(logits), jnp.bfloat16(deltas)
    kept = check_form(run(*halves, anchors))
    same = check_form(run(*(np.float32(half) for half in halves), anchors))
    for a, b in zip(kept, same, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(('count', 'levels'), [(0, None), (0, (0, 0)), (2, (0, 2, 0))], ids=str)
def test_levels_may_be_empty(count, levels):
    anchors = apart(count)
    proposals = run(FALLING[:count], STILL[:count], anchors, levels=levels)
    np.testing.assert_array_equal(check_form(proposals).boxes, anchors)
