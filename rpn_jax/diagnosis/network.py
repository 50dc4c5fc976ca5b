"""What a network makes of one batch: dead channels, the pull of either loss, its best boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rpn_jax.data.normalization import normalise
from rpn_jax.models import rpn
from rpn_jax.models.convolution import convolve
from rpn_jax.ops.losses import rpn_losses, weights_and_keywords
from rpn_jax.ops.proposals import propose
from rpn_jax.training.parallel import parallel, replicate, shard_batch
from rpn_jax.training.step import assign_images, step_key

BEST = 20  # proposals of an image that are compared with its objects
RANKED = dict(pre_nms=300, post_nms=BEST, nms_iou=0.7)


def make_measure(model, *, seed, devices, pixels, targets=None, loss=None):
    """Returns measure(variables, batch) -> dict of NumPy values; the arguments are make_update's.

    The sampled anchors are those of step 0. `dead` {part: share of channels that are 0 everywhere},
    `gradients` {loss: norm of its weighted gradient at the maps under the head}, `box` and
    `box_at_zero` the box loss of a sampled anchor as it is and if no box were moved, `scores` the
    mean scores of sampled (foreground, background), `boxes` [B, BEST, 4] proposals, `valid`.
    """
    weights, keywords = weights_and_keywords(loss)

    def measure(variables, batch):
        inputs = normalise(batch['image'], batch['size'], pixels)
        anchors = rpn.anchors_of(model, inputs.shape[1:3])
        sampled = assign_images(step_key(seed, 0), anchors, batch, targets or {})
        stages, maps = _maps(model, variables, inputs)
        index, labels, matched = sampled
        gt_boxes = jax.vmap(lambda boxes, row: boxes[row])(batch['boxes'], matched)
        rules = functools.partial(rpn_losses, **keywords)

        def losses(maps, moves=1.0):
            logits, deltas = _head(model, variables, maps, index)
            rows = labels, anchors.boxes[index], gt_boxes
            each = jax.vmap(rules)(logits, moves * deltas, *rows)
            return {name: weights[name] * x.sum() for name, x in each.items()}

        gradients = {
            name: optax.tree.norm(jax.grad(lambda maps, name=name: losses(maps)[name])(maps))
            for name in ('objectness', 'box')
        }
        logits, deltas = _head(model, variables, maps)
        scores = jax.nn.sigmoid(jnp.take_along_axis(logits, index, 1))
        propose_one = functools.partial(propose, **RANKED)
        proposals = jax.vmap(lambda x, d, size: propose_one(x, d, anchors, size))(
            logits, deltas, batch['size']
        )
        count = jnp.maximum(jnp.sum(labels >= 0), 1)
        return {
            'dead': {name: jnp.mean(~_lives(x)) for name, x in stages.items()},
            'gradients': gradients,
            'box': losses(maps)['box'] / count,
            'box_at_zero': losses(maps, 0.0)['box'] / count,
            'scores': tuple(jnp.mean(scores, where=labels == label) for label in (1, 0)),
            'boxes': proposals.boxes,
            'valid': proposals.valid,
        }

    mapped = parallel(measure, devices, keeps_state=True)

    def of_host(variables, batch):
        return jax.device_get(mapped(replicate(variables, devices), shard_batch(batch, devices)))

    return of_host


def spread(boxes):
    """Returns the deviation of log sqrt(area) of boxes [n, 4]; 0 for fewer than two."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    return float(np.std(np.log(np.prod(sides, axis=1)) / 2)) if len(boxes) > 1 else 0.0


def _maps(model, variables, inputs):
    """Returns the maps {'conv2': .., 'head': ..} behind the parts, and those under the head."""

    def apply(method, x):
        return model.apply(variables, x, method=method, mutable=['batch_stats'])[0]

    stages = apply(lambda module, x: module.backbone(x, True), inputs)
    maps = tuple(stages[name] for name in model.reads)
    maps = apply(lambda module, x: module.fpn(x, True), maps) if model.fpn else maps
    first = variables['params']['head']['conv']
    kernel, bias = (first[name].astype(maps[0].dtype) for name in ('kernel', 'bias'))
    hidden = [convolve(x, kernel, way=model.head.convolution) for x in maps]
    hidden = [jax.nn.relu(x + bias[None, None, None]) for x in hidden]
    return {**stages, 'head': hidden}, maps


def _head(model, variables, maps, index=None):
    return model.apply(variables, maps, index, method=lambda module, *x: module.head(*x))


def _lives(maps):
    """Returns which channels [C] of one map [B, h, w, C], or of a list of them, are ever not 0."""
    maps = maps if isinstance(maps, list) else [maps]
    return jnp.any(jnp.stack([jnp.any(x != 0, axis=(0, 1, 2)) for x in maps]), axis=0)
