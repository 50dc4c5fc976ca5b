"""Greedy non-maximum suppression, exact for any threshold, with static shapes."""

import functools

import jax
import jax.numpy as jnp

from rpn_jax.ops import boxes as box

# Boxes decided at a time: on CPUs, and elsewhere, where devices wait for the host in between.
BLOCK, BLOCK_OF_GPU = 256, 2048
CHUNK = 1024  # kept boxes that a block is compared with at a time


def nms(boxes, scores, *, iou_threshold, limit, group=None):
    """Keeps the best boxes, best first, and drops those with IoU > iou_threshold with a kept one.

    boxes [N, 4], scores [N], group [N] int or None. Groups never suppress each other, a score of
    -inf or NaN is never kept, equal scores rank by index. Returns indices [limit] int32 into the
    boxes and valid [limit]; rows that are not valid stand last and have index 0.
    """
    if not len(boxes):
        return jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    order = jnp.argsort(scores, descending=True, stable=True)
    group = None if group is None else group[order]
    rules = dict(iou_threshold=iou_threshold, limit=limit, group=group)
    kept, valid = ranked_nms(boxes[order], scores[order] > -jnp.inf, **rules)
    return jnp.where(valid, order[kept], 0).astype(jnp.int32), valid


def ranked_nms(boxes, alive, *, iou_threshold, limit, group=None):
    """Does the work of nms for boxes [N, 4] that are already ranked; alive [N]: may be kept.

    Blocks of boxes are compared with the boxes kept so far, a chunk at a time, and then among
    themselves, until `limit` boxes are kept: no more comparisons than boxes times kept ones, up to
    a chunk. The sequential steps are as many as blocks, each of as many as chunks of kept ones.
    """
    group = jnp.zeros(len(boxes), jnp.int32) if group is None else group
    settings = dict(iou_threshold=iou_threshold, limit=limit)
    of_cpu, elsewhere = (
        functools.partial(_in_blocks, block=min(block, len(boxes)), **settings)
        for block in (BLOCK, BLOCK_OF_GPU)
    )
    return jax.lax.platform_dependent(boxes, alive, group, cpu=of_cpu, default=elsewhere)


def _in_blocks(boxes, alive, group, *, block, iou_threshold, limit):
    padding = -len(boxes) % block
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    alive, group = (jnp.pad(rows, (0, padding)) for rows in (alive, group))
    later = jnp.arange(block)[:, None] < jnp.arange(block)[None, :]
    chunk = max(min(CHUNK, limit), 1)
    # Whole chunks, and a row more: what overflows the limit is written there and never read.
    rows = limit + -limit % chunk + 1

    def unfinished(carry):
        start, count, _ = carry
        left = alive & (jnp.arange(len(boxes)) >= start)
        return (count < limit) & jnp.any(left)

    def decide(carry):
        start, count, kept = carry
        index = start + jnp.arange(block)
        here, here_group = boxes[index], group[index]

        def compare(carry):
            begin, beaten = carry
            rivals = jax.lax.dynamic_slice(kept, (begin,), (chunk,))
            over = box.iou(boxes[rivals], here) > iou_threshold
            over &= (begin + jnp.arange(chunk) < count)[:, None]
            over &= group[rivals][:, None] == here_group[None, :]
            return begin + chunk, beaten | jnp.any(over, axis=0)

        begin = (jnp.int32(0), jnp.zeros(block, bool))
        _, beaten = jax.lax.while_loop(lambda carry: carry[0] < count, compare, begin)
        candidates = alive[index] & ~beaten
        rivals = (box.iou(here, here) > iou_threshold) & later
        rivals &= here_group[:, None] == here_group[None, :]
        keep = _greedy(candidates, rivals)
        slot = jnp.where(keep, count + jnp.cumsum(keep) - 1, rows)
        kept = kept.at[jnp.minimum(slot, rows - 1)].set(index)
        return start + block, count + jnp.sum(keep), kept

    start = (jnp.int32(0), jnp.int32(0), jnp.zeros(rows, jnp.int32))
    _, count, kept = jax.lax.while_loop(unfinished, decide, start)
    valid = jnp.arange(limit) < count
    return jnp.where(valid, kept[:limit], 0), valid


def _greedy(candidates, rivals):
    """Returns which candidates [T] survive; rivals [T, T] says whom row i suppresses if it is kept.

    The greedy answer is the only fixed point of keep = candidates not suppressed by a kept rival:
    the first n entries are right after n rounds, and real boxes need only a few.
    """

    def settle(carry):
        keep, _ = carry
        return candidates & ~jnp.any(rivals & keep[:, None], axis=0), keep

    def unsettled(carry):
        keep, previous = carry
        return jnp.any(keep != previous)

    first = settle((candidates, candidates))
    return jax.lax.while_loop(unsettled, settle, first)[0]
