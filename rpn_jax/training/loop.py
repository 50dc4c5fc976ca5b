"""Training: the state, the pmapped update, and the loop around it."""

import contextlib
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rpn_jax import data, weights
from rpn_jax.data.batches import prefetch
from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.errors import InputError
from rpn_jax.models import resnet, rpn
from rpn_jax.ops import anchor_statistics, matching
from rpn_jax.ops import boxes as box
from rpn_jax.ops.losses import box_loss, objectness_loss
from rpn_jax.training import checkpoint, feature_cache, pretrained, workdir
from rpn_jax.training.optim import make_optimizer
from rpn_jax.training.parallel import check_divides, place, place_batch, shard
from rpn_jax.training.pretrained import SMALLEST
from rpn_jax.training.progress import Interrupted, Progress, Signals, opening


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes. No random key: randomness is a function of (seed, step, image)."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def make_update(model, optimizer, config, devices):
    """Returns update(state, batch) -> (state, metrics), pmapped over the devices.

    batch holds image uint8 [N, H, W, 3] (floating point passes as already normalised), or features
    as features.Features puts them in its place, boxes [N, G, 4], kind [N, G], size [N, 2] and index
    [N] of the global batch; N is a multiple of the number of devices. Each device differentiates
    the sum over its sampled anchors; gradients and counts are summed over devices and then divided,
    so the result does not depend on their number. Where the loss or a gradient is not finite the
    state stays as it was and metrics['finite'] says so.
    """
    settings = config.data
    family = 'torchvision' if settings.pixels == 'auto' else settings.pixels
    pixels = pixel_family(family, settings.mean, settings.std)
    loss_fn = make_loss(model, config, pixels)

    def update(state, batch):
        key = step_key(config.seed, state.step)
        is_frozen = rpn.frozen(model, state.params)
        learning = jax.tree.map(lambda p, fixed: None if fixed else p, state.params, is_frozen)

        def loss_of(learning):
            return loss_fn(_whole(learning, state.params), state.batch_stats, key, batch)

        (_, aux), gradients = jax.value_and_grad(loss_of, has_aux=True)(learning)
        batch_stats, sums = aux
        image_loss = jax.lax.all_gather(sums.pop('image_loss'), resnet.AXIS, tiled=True)
        if jax.lax.axis_size(resnet.AXIS) > 1:  # XLA would copy all gradients for a sum of one
            gradients, sums = jax.lax.psum((gradients, sums), resnet.AXIS)
        count = jnp.maximum(sums.pop('sampled'), 1)
        images = sums.pop('images')
        positives = sums.pop('positives') / images
        types = anchor_statistics.means(sums.pop('anchors'), images, count)
        metrics = {name: value / count for name, value in sums.items()}
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(optax.tree.norm(gradients))

        def advance(learning, opt_state):
            params = _whole(learning, state.params)
            means = jax.tree.map(
                lambda p, g: jnp.zeros_like(p) if g is None else g / count, params, gradients
            )
            updates, opt_state = optimizer.update(means, opt_state, params)
            moved = jax.tree.map(lambda u, p: None if p is None else p + u, updates, learning)
            return moved, opt_state

        learning, opt_state = _if_finite(finite, advance, learning, state.opt_state)
        batch_stats = _select(finite, batch_stats, state.batch_stats)
        params = _whole(learning, state.params)
        new = TrainState(state.step + finite, params, batch_stats, opt_state)
        metrics |= {'positives': positives, 'anchors': types}
        metrics |= {'finite': finite, 'image_loss': image_loss}
        return new, metrics

    return _over(devices, update)


def _over(devices, update, donated=(0,)):
    """Returns the update pmapped; it takes global batches, placed or not."""
    mapped = jax.pmap(
        update,
        resnet.AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=donated,
        devices=list(devices),
    )

    def sharded(state, batch):
        return mapped(state, shard(batch, len(devices)))

    sharded.mapped = mapped  # for its cost analysis and its number of compilations
    return sharded


def _if_finite(finite, advance, *state):
    """Returns advance(*state), or the state as it is.

    On CPUs a condition lets the new state take the place of the old one, in a third of the time of
    a selection. On GPUs the host would have to wait for it.
    """
    return jax.lax.platform_dependent(
        *state,
        cpu=lambda *state: jax.lax.cond(finite, advance, lambda *state: state, *state),
        default=lambda *state: _select(finite, advance(*state), state),
    )


def _select(finite, new, old):
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def make_loss(model, config, pixels):
    """Returns loss(params, batch_stats, key, batch) -> (sum, aux) over one device's images."""
    weights = config.loss

    def loss_fn(params, batch_stats, key, batch):
        variables = {'params': params} | ({'batch_stats': batch_stats} if batch_stats else {})
        if 'features' in batch:
            seen, how = batch['features'], {'method': 'from_features'}
            anchors = rpn.grid(model, seen.shape[1:3])
        else:
            seen, how = normalise(batch['image'], batch['size'], pixels), {'train': True}
            anchors = rpn.anchors(model, seen.shape[1:3])
        index, labels, matched = assign_images(key, anchors, batch, config.targets)
        (logits, deltas), updated = model.apply(
            variables, seen, index, mutable=['batch_stats'], **how
        )
        objects = jax.vmap(lambda boxes, m: boxes[m])(batch['boxes'], matched)
        goals = box.encode(objects, anchors[index])
        objectness = jax.vmap(objectness_loss)(logits, labels)
        regression = jax.vmap(functools.partial(box_loss, beta=weights.beta))(deltas, goals, labels)
        count = model.head.anchors_per_cell
        by_type = functools.partial(anchor_statistics.sums, count=count, beta=weights.beta)
        types = jax.vmap(by_type)(logits, deltas, labels, anchors[index], objects, index % count)
        total = weights.objectness_weight * objectness + weights.box_weight * regression
        sums = {
            'loss': total.sum(),
            'loss_objectness': objectness.sum(),
            'loss_box': regression.sum(),
            'sampled': jnp.sum(labels >= 0),
            'positives': jnp.sum(labels == 1),
            'images': jnp.int32(len(labels)),
            'anchors': jax.tree.map(lambda x: x.sum(axis=0), types),
            'image_loss': total,
        }
        return total.sum(), (updated.get('batch_stats', {}), sums)

    return loss_fn


def _whole(part, params):
    """Returns params with the leaves of `part` where it has any."""
    return jax.tree.map(lambda p, own: p if own is None else own, params, part)


def assign_images(key, anchors, batch, settings):
    """Returns index, labels and matched [B, S] of a step's images; key is the step's.

    settings are the keywords of targets.assign.
    """

    def assign(i, boxes, kind, size):
        own = jax.random.fold_in(key, i)
        return matching.assign(own, anchors, boxes, kind, size=size, **settings)

    return jax.vmap(assign)(batch['index'], batch['boxes'], batch['kind'], batch['size'])


def step_key(seed, step):
    """Returns the random key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def init_state(model, optimizer, seed, tensors=None):
    """Returns the state before the first step; tensors are weights by torchvision name."""
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros(SMALLEST))
    if tensors is not None:
        variables = weights.to_variables(tensors, variables)
    params = variables['params']
    opt_state = jax.jit(optimizer.init)(params)
    return TrainState(jnp.int32(0), params, variables.get('batch_stats', {}), opt_state)


def train(config, folder, make_evaluate, *, devices=None, print=print):
    """Runs config in the workdir `folder`, from its newest checkpoint on, and evaluates at the end.

    make_evaluate is that of evaluation.evaluate. Returns the final state and its Evaluation. Raises
    InputError for what a user can mend and Interrupted after SIGINT or SIGTERM, once a checkpoint
    is written.
    """
    if (processes := jax.process_count()) > 1:
        raise InputError(
            f'JAX has {processes} processes, and gradients are summed over the devices of one '
            'alone: train in one process, on one host'
        )
    devices = devices or jax.local_devices()
    options = data.check(data.Options(**config.data))
    check_divides(options.batch_size, len(devices))
    feature_cache.check(config)
    resuming = bool(checkpoint.steps(folder))
    if resuming:
        workdir.check(folder, config)
    source = data.open_split(options, options.train_split, seed=config.seed, print=print)
    tensors = None if resuming else pretrained.load(config, print)
    pretrained.check(config, tensors)
    model, optimizer = build(config)
    evaluate = make_evaluate(model, config, source.records, devices=devices, print=print)
    state = init_state(model, optimizer, config.seed, tensors)
    workdir.begin(folder, config)
    update = make_update(model, optimizer, config, devices)
    with checkpoint.Checkpoints(folder, **config.checkpoint) as checkpoints:
        state = checkpoints.load(place(state, devices))
        start = int(state.step)
        canvases = data.train_plan(source, options) if start < config.steps else None
        fixed = rpn.frozen(model, state.params)
        for line in opening(config, state, fixed, source, evaluate.source, canvases):
            print(line)
        maps = None
        if config.features.keep and start < config.steps:
            variables = variables_of(state)
            settings = dict(config.features)
            maps = feature_cache.Features(
                config, model, variables, source, devices, print, **settings
            )
        fed = feed(config, source, options, start, maps, devices)
        with workdir.History(folder, start) as history, Signals() as signals, fed as batches:
            progress = Progress(config, source.records, history, print)
            numbered = zip(range(start + 1, config.steps + 1), batches, strict=True)
            for step, (index, batch) in numbered:
                state, metrics = update(state, batch)
                progress.read(step, metrics, index, checkpoints.latest)
                last = step == config.steps
                if last or signals.received or step % checkpoints.every == 0:
                    progress.flush()
                    checkpoints.save(step, state)
                if signals.received and not last:
                    raise Interrupted(step, signals.received)
                if not last and config.evaluation.every and step % config.evaluation.every == 0:
                    figures = evaluate(variables_of(state), step, brief=True).summary['proposals']
                    figures = {k: v for k, v in figures.items() if '/' not in k}
                    history.log(step, figures)
                    known = (f'{k} {v:.3f}' for k, v in figures.items() if v is not None)
                    print('  '.join([f'step {step}:', *known]))
    return state, evaluate(variables_of(state), int(state.step))


def feed(config, source, options, start, maps, devices):
    """Returns a context of the batches from step `start` on: index [N] and the batch, placed.

    A thread copies them to the devices; meanwhile another can tell these what to do.
    """
    steps = range(start, config.steps)
    known = maps.known if maps else None
    batches = data.train_batches(source, options, seed=config.seed, steps=steps, known=known)
    batches = map(maps, batches) if maps else batches
    placed = prefetch(lambda batch: (batch['index'], place_batch(batch, devices)), batches)
    return contextlib.closing(placed)


def build(config):
    """Returns the model and the optimizer of a config."""
    model = rpn.build(config)
    frozen = functools.partial(rpn.frozen, model)
    return model, make_optimizer(**config.optim, steps=config.steps, frozen=frozen)


def variables_of(state):
    """Returns the variables that model.apply takes."""
    return {'params': state.params} | (
        {'batch_stats': state.batch_stats} if state.batch_stats else {}
    )
