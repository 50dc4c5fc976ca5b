"""Trains shortly: whether the network learns one batch, at which rates, and whether that lasts.

Every rate starts from the same state and sees the same batch and the same sampled anchors, so that
what differs between two rates is the rate. A rate that is too high for the noise between batches
diverges later, and only on several of them: that is tried at three times the config's rate.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rpn_jax import console
from rpn_jax.data.records import Kind
from rpn_jax.diagnosis.network import make_measure, spread
from rpn_jax.models import resnet, rpn
from rpn_jax.training.optim import make_optimizer
from rpn_jax.training.parallel import replicate, shard_batch
from rpn_jax.training.step import init_state, make_update

RATES = 9  # of the probe, a factor of about three apart
FACTOR = 10**0.5
STEPS = 6, 12  # of each rate, at least and at most
OVERFIT = 25, 50  # in which a network should learn one batch
LASTING = 20, 40  # on several batches
LEARNT = 0.6  # of the first loss


class Trace(NamedTuple):
    """The losses of a short training at a constant learning rate, before each step and after."""

    rate: float
    loss: np.ndarray  # [steps + 1] the sum that is learnt; NaN from where it is not finite
    objectness: np.ndarray
    box: np.ndarray


class Probe(NamedTuple):
    """The results of the short trainings."""

    rates: list  # Trace of each learning rate, from low to high
    overfit: Trace  # of OVERFIT steps at the best rate, or below where that is too high
    ratios: dict  # {part of the network: norm of an update over norm of its weights}, first step
    seconds: float  # of a step
    lasting: list = ()  # Trace on several batches, at three times the rate, then perhaps at it
    before: dict | None = None  # what network.make_measure gives of the state before the first step
    after: dict | None = None  # and of that which has learnt one batch
    spreads: tuple = (0.0, 0.0)  # network.spread of its proposals, and of the batch's objects
    forward: float = 0.0  # seconds of the network without its gradients
    transfer: float = 0.0  # seconds to copy a batch to the device
    state_bytes: int = 0


def run(model, optim, tensors, batches, *, seed, budget, share=1.0, **rules):
    """Returns the Probe of a network, within about `budget` seconds of steps.

    optim are keywords of make_optimizer, batches as make_update takes them, of one shape, of which
    the first is learnt by heart; rules are make_update's other keywords. share is the size of these
    batches over that of the config's: SGD on several of them has so much of its learning rate.
    """
    devices = jax.local_devices()[:1]
    optimizer = with_rate(model, optim)
    state = jax.device_get(init_state(model, optimizer, seed, tensors))
    began = time.monotonic()
    placed = jax.block_until_ready([shard_batch(batch, devices) for batch in batches])
    transfer = (time.monotonic() - began) / len(batches)
    mapped = make_update(model, optimizer, seed=seed, devices=devices, **rules).mapped
    update = mapped.lower(replicate(at_rate(state, np.float32(0)), devices), placed[0]).compile()

    def train(rate, steps, batches=placed[:1], warmup=0):
        now, rows = replicate(at_rate(state, np.float32(rate)), devices), []
        for i in range(steps + 1):
            if i < warmup:
                now = at_rate(now, replicate(np.float32(rate * (i + 1) / warmup), devices))
            if len(batches) == 1:
                now = now.replace(step=jnp.zeros_like(now.step))  # the same anchors are sampled
            now, metrics = update(now, batches[i % len(batches)])
            rows.append([float(metrics[k]) for k in ('loss', 'loss_objectness', 'loss_box')])
            if not np.isfinite(rows[-1][0]):
                break
        rows += [[np.nan] * 3] * (steps + 1 - len(rows))
        return Trace(rate, *np.array(rows).T), now

    given = optim['learning_rate'] or 1e-3
    train(0.0, 0)
    began = time.monotonic()
    _, after = train(given, 0)
    seconds = time.monotonic() - began
    ratios = _ratios(state.params, jax.device_get(after.params))
    steps = int(np.clip(0.4 * budget / RATES / seconds - 1, *STEPS))
    rates = [given * FACTOR**n for n in range(-(RATES // 2), RATES - RATES // 2)]
    traces = [
        train(rate, steps)[0] for rate in console.progress(rates, RATES, 'tried', 'learning rates')
    ]
    best, steps = min(traces, key=_end).rate, int(np.clip(0.3 * budget / seconds, *OVERFIT))
    for rate in (best, best / FACTOR, best / FACTOR**2):
        overfit, learnt = train(rate, steps)
        if is_learnt(overfit):
            break
    usual = given * (share if optim['optimizer'] == 'sgd' else 1.0)
    steps, lasting = int(np.clip(0.3 * budget / seconds, *LASTING)), []
    for rate in (usual * FACTOR, usual):
        lasting.append(train(rate, steps, placed, steps // 2 if optim['warmup_steps'] else 0)[0])
        if not diverges(lasting[-1]):
            break
    measure = make_measure(model, seed=seed, devices=devices, **rules)
    before, after = (measure(each.variables, batches[0]) for each in (state, learnt))
    began = time.monotonic()
    measure(state.variables, batches[0])
    forward = time.monotonic() - began
    objects = batches[0]['boxes'][batches[0]['kind'] == Kind.OBJECT]
    return Probe(
        traces,
        overfit,
        ratios,
        seconds,
        lasting,
        before,
        after,
        (spread(after['boxes'][after['valid']]), spread(objects)),
        forward,
        transfer,
        sum(x.nbytes for x in jax.tree.leaves(state)),
    )


def is_learnt(trace):
    """Says whether the loss of a Trace fell far, and is still low at its end."""
    return bool(np.min(trace.loss[-5:]) <= LEARNT * trace.loss[0])  # NaN is not


def diverges(trace):
    """Says whether the loss of a Trace grows, or is not finite at last."""
    last = trace.loss[-len(trace.loss) // 4 :]
    return not np.all(np.isfinite(last)) or np.median(last) > 1.2 * trace.loss[0]


def with_rate(model, optim):
    """Returns the optimizer of a config with the learning rate in its state, to be set."""
    keys = {k: optim[k] for k in ('optimizer', 'momentum', 'weight_decay')}
    inner, _ = make_optimizer(
        **keys, learning_rate=1.0, schedule='constant', frozen=lambda p: rpn.frozen(model, p)
    )

    def update(updates, state, params=None):
        own, rate = state
        updates, own = inner.update(updates, own, params)
        return jax.tree.map(lambda u: u * rate, updates), (own, rate)

    return optax.GradientTransformation(lambda p: (inner.init(p), jnp.float32(0)), update)


def at_rate(state, rate):
    """Returns a state of with_rate's optimizer with another learning rate."""
    own, _ = state.opt_state
    return state.replace(opt_state=(own, rate))


def _end(trace):
    """Returns the loss at the end of a Trace, infinite where it is not finite."""
    last = trace.loss[-2:]
    return float(np.mean(last)) if np.all(np.isfinite(last)) else np.inf


def ends(probe):
    """Returns the losses [RATES] at the end of each rate, infinite where they are not finite."""
    return np.array([_end(trace) for trace in probe.rates])


def _ratios(before, after):
    """Returns {part: |update| / |weights|} of the stages of the backbone, pyramid and head."""
    sums = {}
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        part, *names = (key.key for key in path)
        stage = next(filter(None, map(resnet.stage_of, names)), None)
        name = (f'conv{stage}' if stage and stage > 1 else 'stem') if part == 'backbone' else part
        moved, size = sums.get(name, (0.0, 0.0))
        sums[name] = moved + float(np.sum((new - old) ** 2)), size + float(np.sum(old**2))
    return {name: float(np.sqrt(moved / max(size, 1e-30))) for name, (moved, size) in sums.items()}
