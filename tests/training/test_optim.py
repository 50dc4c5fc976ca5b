"""Optimizers step by step: update rules against NumPy, and what is frozen."""

import functools

import jax
import numpy as np
import optax
import pytest
from helpers import config_of, python_rate

from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training.optim import make_optimizer


@pytest.fixture(scope='module')
def model():
    config = config_of(norm='batch', frozen_stages=2, last_stage=3)
    config.anchors.sizes = (32,)
    return rpn.build(config.model, config.anchors)


@pytest.fixture(scope='module')
def params(model):
    """Returns random parameters of a network, of each of its stages one block."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    params = draw(jax.eval_shape(model.init, jax.random.key(0), image)['params'], 0)
    blocks = {name: block for name, block in params['backbone'].items() if 'block1' not in name}
    return params | {'backbone': blocks}


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


def numpy_run(params, rule, rate, decay, count=4):
    """Returns the parameters after steps along torch's rule(gradients so far)."""
    drawn = [draw(params, t) for t in range(1, count + 1)]

    def follow(path, p, *gradients):
        p, used = p.astype(np.float64), []
        in_norm = any('norm' in each.key for each in path)
        for t, gradient in enumerate(gradients):
            used.append(gradient + (0 if in_norm else decay) * p)
            p = p - rate(t) * rule(used)
        return p

    return jax.tree.map_with_path(follow, params, *drawn)


def discounted(gradients, factor):
    return sum(factor**age * gradient for age, gradient in enumerate(reversed(gradients)))


def adam(gradients, b1=0.8, b2=0.999, epsilon=1e-8):
    mean = (1 - b1) * discounted(gradients, b1) / (1 - b1 ** len(gradients))
    squares = [gradient**2 for gradient in gradients]
    square = (1 - b2) * discounted(squares, b2) / (1 - b2 ** len(gradients))
    return mean / (np.sqrt(square) + epsilon)


@pytest.mark.parametrize(
    ('keywords', 'rule'),
    [
        ({'momentum': 0.9}, functools.partial(discounted, factor=0.9)),
        ({'momentum': 0.0}, lambda gradients: gradients[-1]),
        ({'momentum': 0.8, 'optimizer': 'adam'}, adam),
    ],
    ids=['momentum', 'plain', 'adam'],
)
def test_updates_follow_the_rule_of_torch(params, keywords, rule):
    """Also: weight decay spares norms alone, not biases, and the rate is the schedule's."""
    rate = functools.partial(python_rate, schedule='cosine', horizon=5, learning_rate=0.05)
    optimizer, _ = make_optimizer(
        learning_rate=0.05, weight_decay=0.3, schedule='cosine', steps=5, **keywords
    )
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(near, run(optimizer, params), numpy_run(params, rule, rate, decay=0.3))


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_what_is_frozen_stays_and_the_rest_does_not_notice(model, params, name):
    make = functools.partial(make_optimizer, optimizer=name, learning_rate=0.05, weight_decay=0.3)
    (free, _), (partly, _) = make(), make(frozen=functools.partial(rpn.frozen, model))
    fixed = rpn.frozen(model, params)
    assert {*jax.tree.leaves(fixed)} == {False, True}

    def check(is_fixed, before, after, expected):
        assert np.array_equal(after, before) == is_fixed
        np.testing.assert_allclose(after, before if is_fixed else expected, rtol=1e-5, atol=1e-6)
        return 0 if is_fixed else before.size

    learning = jax.tree.map(check, fixed, params, run(partly, params), run(free, params))
    held = [leaf.size for leaf in jax.tree.leaves(partly.init(params)) if leaf.ndim]
    assert sum(held) == sum(jax.tree.leaves(learning)) * {'sgd': 1, 'adam': 2}[name]


def test_a_wrong_keyword_is_named():
    with pytest.raises(InputError, match='^optimizer: '):
        make_optimizer(optimizer='lamb')
    with pytest.raises(TypeError, match='learning_rat'):
        make_optimizer(learning_rat=0.1)
