"""Optimizers: schedules, weight decay where it belongs, and frozen parameters that cost nothing."""

import jax
import jax.numpy as jnp
import optax

from rpn_jax.errors import InputError
from rpn_jax.models.rpn import is_norm

SCHEDULES = ('constant', 'step', 'cosine', 'cyclical', 'one_cycle')


def make_optimizer(
    *,
    optimizer='sgd',
    learning_rate=0.001,
    momentum=0.9,
    weight_decay=5e-4,
    frozen=None,
    steps=0,
    **schedule,
):
    """Returns the optax chain: weight decay, then momentum (or Adam), then the learning rate.

    Weight decay enters the gradient before the momentum, as in torch.optim, and leaves the scale
    and bias of norms alone. `frozen` maps parameters to a tree of booleans; frozen parameters get
    no update and no optimizer state. The other keywords are those of make_schedule.
    """
    rate = make_schedule(learning_rate=learning_rate, steps=steps, **schedule)
    if optimizer == 'sgd':
        direction = _settled(optax.trace(momentum)) if momentum else optax.identity()
    elif optimizer == 'adam':
        direction = optax.scale_by_adam(b1=momentum)
    else:
        raise InputError(f"config key optim.optimizer: {optimizer!r} is not one of 'sgd', 'adam'")
    chain = optax.chain(
        optax.add_decayed_weights(weight_decay, decayed),
        direction,
        optax.scale_by_learning_rate(rate),
    )
    if frozen is None:
        return chain

    # Not optax.selective_transform: it takes a function for a mask that is true everywhere.
    def labels(params):
        return jax.tree.map(lambda fixed: 'frozen' if fixed else 'learning', frozen(params))

    return optax.partition({'learning': chain, 'frozen': optax.set_to_zero()}, labels)


def _settled(transform):
    """Returns the transform, its state done before its updates are used.

    XLA would compute the momentum twice, for the state and for the step, and so could put neither
    in the place of the old one.
    """

    def update(updates, state, params=None):
        return jax.lax.optimization_barrier(transform.update(updates, state, params))

    return optax.GradientTransformation(transform.init, update)


def decayed(params):
    """Returns a tree like params of booleans: True where weight decay applies, outside norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_norm(path), params)


def make_schedule(
    *,
    learning_rate,
    steps=0,
    schedule='constant',
    schedule_steps=0,
    warmup_steps=0,
    warmup_factor=0.001,
    decay_at=(0.75,),
    decay_factor=0.1,
    final_factor=0.0,
    cycles=2.0,
    low_factor=0.1,
):
    """Returns the function step -> learning rate, traceable.

    Lengths are in steps; schedule_steps = 0 means `steps`, the length of the run. 'step' multiplies
    by decay_factor at each fraction of decay_at, 'cosine' falls to final_factor, 'cyclical' goes
    low_factor -> 1 -> low_factor in triangles, `cycles` times (Smith 2017, section 3.1),
    'one_cycle' rises linearly from low_factor for 30 % and falls by cosine to final_factor. Warmup
    is linear from warmup_factor.
    """
    if schedule not in SCHEDULES:
        choices = ', '.join(map(repr, SCHEDULES))
        raise InputError(f'config key optim.schedule: {schedule!r} is not one of {choices}')
    horizon = schedule_steps or steps
    if schedule != 'constant' and horizon < 1:
        raise InputError(
            f'config key optim.schedule_steps: {schedule!r} needs a length of at least 1'
        )

    def factor(step):
        progress = jnp.clip(step / max(horizon, 1), 0, 1)
        if schedule == 'step':
            drops = [
                jnp.where(step >= fraction * horizon, decay_factor, 1.0) for fraction in decay_at
            ]
            return jnp.prod(jnp.stack(drops)) if drops else 1.0
        if schedule == 'cosine':
            return final_factor + (1 - final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        if schedule == 'cyclical':
            return low_factor + (1 - low_factor) * (1 - jnp.abs(progress * cycles * 2 % 2 - 1))
        if schedule == 'one_cycle':
            rising = low_factor + (1 - low_factor) * progress / 0.3
            falling = 0.5 * (1 + jnp.cos(jnp.pi * (progress - 0.3) / 0.7))
            return jnp.where(progress < 0.3, rising, final_factor + (1 - final_factor) * falling)
        return 1.0

    def rate(step):
        warmup = jnp.minimum(step / max(warmup_steps, 1), 1) if warmup_steps else 1.0
        return learning_rate * factor(step) * (warmup_factor + (1 - warmup_factor) * warmup)

    return rate
