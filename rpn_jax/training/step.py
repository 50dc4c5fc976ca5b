"""One training step: the state, the losses of sampled anchors, and the pmapped update."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rpn_jax import weights
from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.models import rpn
from rpn_jax.models.resnet import AXIS
from rpn_jax.ops import anchor_statistics, matching
from rpn_jax.ops.losses import rpn_losses, weights_and_keywords
from rpn_jax.training.parallel import parallel


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. No random key: randomness is a function of (seed, step, image)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self):
        """The variables that model.apply takes."""
        stats = {'batch_stats': self.batch_stats} if self.batch_stats else {}
        return {'params': self.params} | stats


def init_state(model, optimizer, seed, tensors=None):
    """Returns the state before the first step; tensors are weights by torchvision name."""
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros(rpn.SMALLEST))
    if tensors is not None:
        variables = weights.to_variables(tensors, variables)
    params = variables['params']
    opt_state = jax.jit(optimizer.init)(params)
    return TrainState(jnp.int32(0), params, variables.get('batch_stats', {}), opt_state)


def make_update(
    model, optimizer, *, targets=None, loss=None, pixels=None, seed=0, frozen=None, devices=None
):
    """Returns update(state, batch) -> (state, metrics), pmapped over the devices.

    targets are keywords of matching.assign, loss those of ops.losses.LOSS, pixels a
    data.normalization.Pixels (by default torchvision's), frozen a function from parameters to a
    tree of booleans (by default models.rpn.frozen of the model), devices by default all of all
    processes.

    batch holds image uint8 [N, H, W, 3] (floating point passes as already normalised), or features
    as feature_cache.Features puts them in its place, boxes [N, G, 4], kind [N, G], size [N, 2] and
    index [N], this process's rows; N is a multiple of the number of its devices. Each device
    differentiates the sum over its sampled anchors; gradients and counts are summed over devices
    and then divided, so the result does not depend on their number. Where the loss or a gradient is
    not finite, metrics['finite'] says so: only the step and the schedule go on, all else stays as
    it was. Where a batch has `signal` [N], metrics['signal'] is the largest of all processes.
    """
    frozen = frozen or functools.partial(rpn.frozen, model)
    pixels = pixels or pixel_family('torchvision')
    rules = dict(targets or {}), weights_and_keywords(loss)

    def update(state, batch):
        key = step_key(seed, state.step)
        fixed = frozen(state.params)
        learning = jax.tree.map(lambda p, fixed: None if fixed else p, state.params, fixed)

        def loss_of(learning):
            whole = state.replace(params=_merged(learning, state.params))
            return _loss(model, whole.variables, key, batch, pixels, *rules)

        (_, aux), gradients = jax.value_and_grad(loss_of, has_aux=True)(learning)
        batch_stats, image_loss, *sums = aux
        if jax.lax.axis_size(AXIS) > 1:  # XLA would copy all gradients for a sum of one
            gradients, sums = jax.lax.psum((gradients, sums), AXIS)
        losses, (sampled, positives, images), types = sums
        count = jnp.maximum(sampled, 1)
        metrics = {name: value / count for name, value in losses.items()}
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(optax.tree.norm(gradients))
        metrics |= {
            'positives': positives / images,
            'anchors': anchor_statistics.means(types, images, count),
            'finite': finite,
            'image_loss': jax.lax.all_gather(image_loss, AXIS, tiled=True),
        }
        if 'signal' in batch:
            metrics['signal'] = jax.lax.pmax(batch['signal'].max(), AXIS)

        def advance(learning, opt_state):
            params = _merged(learning, state.params)
            means = jax.tree.map(
                lambda p, g: jnp.zeros_like(p) if g is None else g / count, params, gradients
            )
            updates, opt_state = optimizer.update(means, opt_state, params)
            moved = jax.tree.map(lambda u, p: None if p is None else p + u, updates, learning)
            return moved, opt_state

        learning, opt_state = _if_finite(finite, advance, _skip, learning, state.opt_state)
        batch_stats = _select(finite, batch_stats, state.batch_stats)
        params = _merged(learning, state.params)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return parallel(update, devices)


def assign_images(key, anchors, batch, targets):
    """Returns index, labels and matched [B, S] of a step's images; key is that of the step.

    targets are keywords of matching.assign.
    """

    def assign(i, boxes, kind, size):
        own = jax.random.fold_in(key, i)
        return matching.assign(own, anchors, boxes, kind, size=size, **targets)

    return jax.vmap(assign)(batch['index'], batch['boxes'], batch['kind'], batch['size'])


def step_key(seed, step):
    """Returns the random key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def _loss(model, variables, key, batch, pixels, targets, loss):
    """Returns (sum, (batch_stats, image_loss [B], *sums)) over the images of one device."""
    if 'features' in batch:
        inputs, how = batch['features'], {'method': 'from_backbone_maps'}
        anchors = rpn.anchors_of_maps(model, model.level_shapes(inputs))
    else:
        inputs, how = normalise(batch['image'], batch['size'], pixels), {}
        anchors = rpn.anchors_of(model, inputs.shape[1:3])
    index, labels, matched = assign_images(key, anchors, batch, targets)
    (logits, deltas), updated = model.apply(
        variables, inputs, index, train=True, mutable=['batch_stats'], **how
    )
    gt_boxes = jax.vmap(lambda boxes, row: boxes[row])(batch['boxes'], matched)
    sampled = labels, anchors.boxes[index], gt_boxes
    weights, keywords = loss
    losses = jax.vmap(functools.partial(rpn_losses, **keywords))(logits, deltas, *sampled)
    by_type = functools.partial(anchor_statistics.sums, count=len(anchors.types))
    types = jax.vmap(by_type)(losses, deltas, *sampled, anchors.type[index])
    objectness, box = (losses[name].sum(axis=1) for name in ('objectness', 'box'))
    total = weights['objectness'] * objectness + weights['box'] * box
    sums = {'loss': total.sum(), 'loss_objectness': objectness.sum(), 'loss_box': box.sum()}
    counts = jnp.sum(labels >= 0), jnp.sum(labels == 1), jnp.int32(len(labels))
    types = jax.tree.map(lambda x: x.sum(axis=0), types)
    return sums['loss'], (updated.get('batch_stats', {}), total, sums, counts, types)


def _skip(learning, opt_state):
    """Returns the state as it is, but for the step of the optimizer's schedule."""

    def is_schedule(each):
        return isinstance(each, optax.ScaleByScheduleState)

    def later(each):
        return each._replace(count=each.count + 1) if is_schedule(each) else each

    return learning, jax.tree.map(later, opt_state, is_leaf=is_schedule)


def _if_finite(finite, advance, skip, *state):
    """Returns advance(*state) or skip(*state).

    On CPUs a condition lets the new state take the memory of the old one, in a third of the time of
    a selection. On GPUs the host would have to wait for it.
    """
    return jax.lax.platform_dependent(
        *state,
        cpu=lambda *state: jax.lax.cond(finite, advance, skip, *state),
        default=lambda *state: _select(finite, advance(*state), skip(*state)),
    )


def _select(finite, new, old):
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def _merged(part, params):
    """Returns params with the leaves of `part` where it has any."""
    return jax.tree.map(lambda p, own: p if own is None else own, params, part)
