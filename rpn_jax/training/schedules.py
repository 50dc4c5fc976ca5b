"""Learning-rate schedules: constant, step, cosine, cyclical and one cycle, with linear warmup."""

import jax.numpy as jnp

from rpn_jax.errors import InputError


def constant(progress, step, **_):
    """Stays at 1."""
    return 1.0


def step_decay(progress, step, *, length, decay_at, decay_factor, **_):
    """Multiplies by decay_factor at each fraction of decay_at."""
    drops = [jnp.where(step >= fraction * length, decay_factor, 1.0) for fraction in decay_at]
    return jnp.prod(jnp.stack(drops)) if drops else 1.0


def cosine(progress, step, *, final_factor, **_):
    """Falls from 1 to final_factor along half a cosine (Loshchilov and Hutter 2017)."""
    return final_factor + (1 - final_factor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def cyclical(progress, step, *, low_factor, cycles, **_):
    """Goes low_factor -> 1 -> low_factor in triangles, `cycles` times (Smith 2017, section 3.1)."""
    return low_factor + (1 - low_factor) * (1 - jnp.abs(progress * cycles * 2 % 2 - 1))


def one_cycle(progress, step, *, low_factor, final_factor, **_):
    """Rises linearly from low_factor for 30 %, then falls along half a cosine to final_factor."""
    rising = low_factor + (1 - low_factor) * progress / 0.3
    falling = 0.5 * (1 + jnp.cos(jnp.pi * (progress - 0.3) / 0.7))
    return jnp.where(progress < 0.3, rising, final_factor + (1 - final_factor) * falling)


SCHEDULES = {
    'constant': constant,
    'step': step_decay,
    'cosine': cosine,
    'cyclical': cyclical,
    'one_cycle': one_cycle,
}


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
    """Returns the function step -> learning rate, traceable; schedule is one of SCHEDULES.

    Lengths are in steps; schedule_steps = 0 means `steps`, the length of the run. Warmup is linear
    from warmup_factor and multiplies the schedule.
    """
    if schedule not in SCHEDULES:
        choices = ', '.join(map(repr, SCHEDULES))
        raise InputError(f'schedule: {schedule!r} is not one of {choices}')
    length = schedule_steps or steps
    if schedule != 'constant' and length < 1:
        raise InputError(f'schedule_steps: {schedule!r} needs a length of at least 1')
    shape = dict(length=length, decay_at=decay_at, decay_factor=decay_factor)
    shape |= dict(final_factor=final_factor, cycles=cycles, low_factor=low_factor)

    def rate(step):
        factor = SCHEDULES[schedule](jnp.clip(step / max(length, 1), 0, 1), step, **shape)
        warmup = jnp.minimum(step / max(warmup_steps, 1), 1) if warmup_steps else 1.0
        return learning_rate * factor * (warmup_factor + (1 - warmup_factor) * warmup)

    return rate
