"""Optimizers step by step: schedules and update rules against plain Python and NumPy."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training.optim import decayed, make_optimizer, make_schedule

STEPS = 40


def python_rate(
    step,
    schedule,
    horizon,
    *,
    learning_rate=0.1,
    warmup_steps=0,
    warmup_factor=0.001,
    decay_at=(0.75,),
    decay_factor=0.1,
    final_factor=0.0,
    cycles=2.0,
    low_factor=0.1,
):
    """Computes the learning rate of a step with nothing but Python's floats and branches."""
    rate, done = learning_rate, min(step / horizon, 1)
    if step < warmup_steps:
        rate *= warmup_factor + (1 - warmup_factor) * step / warmup_steps
    if schedule == 'step':
        for fraction in decay_at:
            rate *= decay_factor if step >= fraction * horizon else 1
    elif schedule == 'cosine':
        rate *= final_factor + (1 - final_factor) * (1 + math.cos(math.pi * done)) / 2
    elif schedule == 'cyclical':
        phase = (done * cycles) % 1  # of one triangle
        height = 2 * phase if phase <= 0.5 else 2 - 2 * phase
        rate *= low_factor + (1 - low_factor) * height
    elif schedule == 'one_cycle':
        if done < 0.3:
            rate *= low_factor + (1 - low_factor) * done / 0.3
        else:
            fall = (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
            rate *= final_factor + (1 - final_factor) * fall
    return rate


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
        ('cosine', {}),
        ('cosine', {'final_factor': 0.2}),
        ('cyclical', {}),
        ('cyclical', {'cycles': 2.5, 'low_factor': 0.0}),
        ('one_cycle', {}),
        ('one_cycle', {'final_factor': 0.05, 'low_factor': 0.4}),
    ],
    ids=str,
)
def test_a_schedule_is_what_plain_python_says(schedule, keywords, warmup):
    keywords = keywords | warmup
    steps = range(2 * STEPS)
    expected = [python_rate(step, schedule, STEPS, **keywords) for step in steps]
    found = rates(schedule, steps, steps=STEPS, **keywords)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    own = rates(schedule, steps, steps=1000, schedule_steps=STEPS, **keywords)
    np.testing.assert_array_equal(own, found)


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
    found = rates(schedule, list(points), steps=1000)
    np.testing.assert_allclose(found, 0.1 * np.array([*points.values()]), atol=1e-6)


@pytest.mark.parametrize('schedule', ['constant', 'cosine', 'cyclical', 'one_cycle'])
def test_a_schedule_has_no_jumps_and_no_rate_above_its_own(schedule):
    found = rates(schedule, range(3001), steps=2000, warmup_steps=100)
    assert found.min() >= 0
    assert found.max() <= 0.1 * (1 + 1e-6)
    assert np.abs(np.diff(found)).max() <= 0.1 / 100 * 1.05  # the warmup is the steepest part
    assert np.ptp(found[2000:]) < 1e-8  # after its end it stays


def test_warmup_begins_at_its_factor_and_ends_in_time():
    found = rates('constant', range(20), warmup_steps=10, warmup_factor=0.3)
    np.testing.assert_allclose(found[[0, 5, 10]], [0.03, 0.065, 0.1], rtol=1e-6)
    assert np.all(found[10:] == found[10])


# Update rules


@pytest.fixture(scope='module')
def model():
    config = default.get_config()
    config.model.update(depth=26, width=8, norm='batch', frozen_stages=2, last_stage=3)
    config.anchors.sizes = (32,)
    return rpn.build(config.model, config.anchors)


@pytest.fixture(scope='module')
def params(model):
    """Returns random parameters of a whole network."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    return draw(jax.eval_shape(model.init, jax.random.key(0), image)['params'], 0)


def draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


def run(optimizer, params, count=4):
    """Returns the parameters after some steps; step t has the gradients draw(params, t)."""

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for t in range(1, count + 1):
        params, state = step(params, state, draw(params, t))
    return params


def leaves(tree):
    """Yields (names on the path, leaf)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield [key.key for key in path], leaf


def numpy_run(params, rule, rate, decay, count=4):
    """Yields (path, parameter) after steps of torch's rule(gradient, memory, t) -> direction."""
    gradients = [[g for _, g in leaves(draw(params, t))] for t in range(1, count + 1)]
    for number, (path, start) in enumerate(leaves(params)):
        p, memory = start.astype(np.float64), {}
        in_norm = any('norm' in name for name in path)
        for t in range(count):
            gradient = gradients[t][number] + (0 if in_norm else decay) * p
            p = p - rate(t) * rule(gradient, memory, t + 1)
        yield path, p


def sgd(momentum):
    def rule(gradient, memory, t):
        memory['v'] = momentum * memory.get('v', 0) + gradient
        return memory['v']

    return rule


def adam(b1, b2=0.999, epsilon=1e-8):
    def rule(gradient, memory, t):
        memory['m'] = b1 * memory.get('m', 0) + (1 - b1) * gradient
        memory['v'] = b2 * memory.get('v', 0) + (1 - b2) * gradient**2
        return memory['m'] / (1 - b1**t) / (np.sqrt(memory['v'] / (1 - b2**t)) + epsilon)

    return rule


@pytest.mark.parametrize(
    ('keywords', 'rule'),
    [
        ({'momentum': 0.9}, sgd(0.9)),
        ({'momentum': 0.0}, sgd(0.0)),
        ({'momentum': 0.8, 'optimizer': 'adam'}, adam(0.8)),
    ],
    ids=['momentum', 'plain', 'adam'],
)
def test_updates_follow_the_rule_of_torch(params, keywords, rule):
    """Also: weight decay spares norms alone, not biases, and the rate is the schedule's."""
    rate = functools.partial(python_rate, schedule='cosine', horizon=5, learning_rate=0.05)
    optimizer, _ = make_optimizer(
        learning_rate=0.05, weight_decay=0.3, schedule='cosine', steps=5, **keywords
    )
    found = dict((tuple(path), leaf) for path, leaf in leaves(run(optimizer, params)))
    for path, expected in numpy_run(params, rule, rate, decay=0.3):
        np.testing.assert_allclose(found[tuple(path)], expected, rtol=1e-4, atol=1e-5)


def test_weight_decay_spares_norms_alone(params):
    spared = {(*path[-2:],) for path, applies in leaves(decayed(params)) if not applies}
    norms = ['stem_norm', 'norm1', 'norm2', 'norm3', 'shortcut_norm']
    assert spared == {(norm, name) for norm in norms for name in ('scale', 'bias')}
    assert all(applies for path, applies in leaves(decayed(params)) if path[0] == 'head')


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_what_is_frozen_stays_and_the_rest_does_not_notice(model, params, name):
    make = functools.partial(make_optimizer, optimizer=name, learning_rate=0.05, weight_decay=0.3)
    free = run(make(), params)
    found = run(make(frozen=functools.partial(rpn.frozen, model)), params)
    fixed = [leaf for _, leaf in leaves(rpn.frozen(model, params))]
    assert 0 < sum(fixed) < len(fixed)
    rows = zip(fixed, leaves(params), leaves(found), leaves(free), strict=True)
    for is_fixed, (path, before), (_, after), (_, expected) in rows:
        assert np.array_equal(after, before) == is_fixed, path
        if not is_fixed:
            np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


# Errors


def test_the_default_config_makes_an_optimizer():
    config = default.get_config()
    make_optimizer(**config.optim, steps=config.steps)


@pytest.mark.parametrize(
    ('key', 'keywords'),
    [
        ('optimizer', {'optimizer': 'lamb'}),
        ('schedule', {'schedule': 'linear'}),
        ('schedule_steps', {'schedule': 'cosine'}),
        ('schedule_steps', {'schedule': 'step', 'schedule_steps': -5}),
    ],
)
def test_a_wrong_value_is_named(key, keywords):
    with pytest.raises(InputError, match=re.escape(f'config key optim.{key}: ')):
        make_optimizer(**keywords)


def test_a_key_that_does_not_exist_is_an_error():
    with pytest.raises((TypeError, InputError), match='learning_rat'):
        make_optimizer(learning_rat=0.1)
