"""Optimizers step by step: update rules against NumPy, and what is frozen."""

import functools

import jax
import numpy as np
import optax
import pytest
from helpers import config_of, python_rate

from configs import default
from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training.optim import decayed, make_optimizer


@pytest.fixture(scope='module')
def model():
    config = config_of(norm='batch', frozen_stages=2, last_stage=3)
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
    ours = dict((tuple(path), leaf) for path, leaf in leaves(run(optimizer, params)))
    for path, expected in numpy_run(params, rule, rate, decay=0.3):
        np.testing.assert_allclose(ours[tuple(path)], expected, rtol=1e-4, atol=1e-5)


def test_weight_decay_spares_norms_alone(params):
    spared = {(*path[-2:],) for path, applies in leaves(decayed(params)) if not applies}
    norms = ['stem_norm', 'norm1', 'norm2', 'norm3', 'shortcut_norm']
    assert spared == {(norm, name) for norm in norms for name in ('scale', 'bias')}
    assert all(applies for path, applies in leaves(decayed(params)) if path[0] == 'head')


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_what_is_frozen_stays_and_the_rest_does_not_notice(model, params, name):
    make = functools.partial(make_optimizer, optimizer=name, learning_rate=0.05, weight_decay=0.3)
    (free, _), (partly, _) = make(), make(frozen=functools.partial(rpn.frozen, model))
    fixed = [leaf for _, leaf in leaves(rpn.frozen(model, params))]
    assert 0 < sum(fixed) < len(fixed)
    ours, expected = run(partly, params), run(free, params)
    rows = zip(fixed, leaves(params), leaves(ours), leaves(expected), strict=True)
    for is_fixed, (path, before), (_, after), (_, expected) in rows:
        assert np.array_equal(after, before) == is_fixed, path
        if not is_fixed:
            np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    held = [leaf.size for leaf in jax.tree.leaves(partly.init(params)) if leaf.ndim]
    learning = [p.size for p, f in zip(jax.tree.leaves(params), fixed, strict=True) if not f]
    assert sum(held) == sum(learning) * {'sgd': 1, 'adam': 2}[name]


def test_a_wrong_keyword_is_named():
    config = default.get_config()
    make_optimizer(**config.optim, steps=config.steps)
    with pytest.raises(InputError, match='^optimizer: '):
        make_optimizer(optimizer='lamb')
    with pytest.raises(TypeError, match='learning_rat'):
        make_optimizer(learning_rat=0.1)
