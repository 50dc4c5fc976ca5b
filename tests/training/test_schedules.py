"""Learning-rate schedules against plain Python, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import python_rate

from rpn_jax.errors import InputError
from rpn_jax.training.schedules import make_schedule

STEPS = 40


def rates(schedule, at, **keywords):
    """Returns the learning rates at some steps, as a jitted update computes them."""
    rate = make_schedule(schedule=schedule, learning_rate=0.1, **keywords)
    # Integer steps, as in the optimizer's state; a schedule may also return a Python float.
    return np.asarray(jax.jit(jax.vmap(lambda step: jnp.float32(rate(step))))(jnp.asarray(at)))


@pytest.mark.parametrize('warmup', [{}, {'warmup_steps': 7, 'warmup_factor': 0.2}], ids=str)
@pytest.mark.parametrize(
    ('schedule', 'keywords'),
    [
        ('constant', {}),
        ('step', {}),
        ('step', {'decay_at': (0.25, 0.5, 0.9), 'decay_factor': 0.5}),
        ('step', {'decay_at': ()}),
        ('cosine', {'final_factor': 0.2}),
        ('cyclical', {}),
        ('cyclical', {'cycles': 2.5, 'low_factor': 0.0}),
        ('one_cycle', {}),
        ('one_cycle', {'final_factor': 0.05, 'low_factor': 0.4}),
    ],
    ids=str,
)
def test_a_schedule_is_that_of_plain_python(schedule, keywords, warmup):
    keywords = keywords | warmup
    length = {'steps': 1000, 'schedule_steps': STEPS} if warmup else {'steps': STEPS}
    steps = range(2 * STEPS)
    expected = [python_rate(step, schedule, STEPS, **keywords) for step in steps]
    ours = rates(schedule, steps, **length, **keywords)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ('schedule', 'points'),
    [
        ('constant', {0: 1, 1000: 1}),
        ('step', {0: 1, 749: 1, 750: 0.1, 1000: 0.1}),
        ('cosine', {0: 1, 500: 0.5, 1000: 0}),
        ('cyclical', {0: 0.1, 250: 1, 500: 0.1, 750: 1, 1000: 0.1}),
        ('one_cycle', {0: 0.1, 150: 0.55, 300: 1, 650: 0.5, 1000: 0}),
    ],
)
def test_a_schedule_by_hand(schedule, points):
    ours = rates(schedule, list(points), steps=1000)
    np.testing.assert_allclose(ours, 0.1 * np.array([*points.values()]), atol=1e-6)


@pytest.mark.parametrize(
    ('key', 'keywords'),
    [
        ('schedule', {'schedule': 'linear'}),
        ('schedule_steps', {'schedule': 'cosine'}),
        ('schedule_steps', {'schedule': 'step', 'schedule_steps': -5}),
    ],
)
def test_a_wrong_value_is_named(key, keywords):
    with pytest.raises(InputError, match=f'^{key}: '):
        make_schedule(learning_rate=0.1, **keywords)
