"""What the training step costs, by XLA's own count: a guard that no busy machine can shake."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compilations

from experiments.bench import ours as bench
from rpn_jax.models import resnet

PINNED = '0.10.2'  # the jax whose compiler gave these figures
CASE = bench.Case('train', 50, 'c4', 3, 1, (288, 288), 'float32')  # more cells than samples
FLOPS, BYTES = 30_931_634_176, 1_809_919_744
OTHERS = [  # shallow: they compile fast
    (CASE._replace(depth=26, frozen_stages=0), 29_703_501_824, 1_721_326_080),
    (CASE._replace(depth=26, stage='dc5'), 83_077_931_008, 3_564_259_072),
    (CASE._replace(depth=26, kind='predict'), 8_242_823_168, 618_482_880),
]


@pytest.fixture(scope='module')
def step():
    """Returns update, state and batch, the compiled step, and the names of what was compiled."""
    update, state, batch = bench.start(CASE)
    with compilations() as names:
        compiled = update.mapped.lower(state, batch).compile()
    return update, state, batch, compiled, names


@pytest.mark.skipif(jax.__version__ != PINNED, reason=f'the figures are those of jax {PINNED}')
def test_a_step_costs_what_it_did(step):
    costs = step[3].cost_analysis()
    assert costs['flops'] == pytest.approx(FLOPS, rel=0.02)
    assert costs['bytes accessed'] == pytest.approx(BYTES, rel=0.1)


@pytest.mark.skipif(jax.__version__ != PINNED, reason=f'the figures are those of jax {PINNED}')
@pytest.mark.slow
@pytest.mark.parametrize(('case', 'flops', 'accessed'), OTHERS, ids=['all', 'dc5', 'predict'])
def test_other_programs_cost_what_they_did(case, flops, accessed):
    program = getattr(bench, case.kind)(case)
    costs = program.lower().compile().cost_analysis()
    assert costs['flops'] == pytest.approx(flops, rel=0.02)
    assert costs['bytes accessed'] == pytest.approx(accessed, rel=0.1)


def test_it_compiles_once_and_asks_the_host_for_nothing(step):
    update, state, batch, _, first = step
    place = batch['image'].sharding
    pixels = np.asarray(batch['image'])
    images = [jax.device_put(np.roll(pixels, 8 * n, axis=2), place) for n in range(3)]
    losses = []
    with compilations() as names, jax.transfer_guard('disallow'):
        for image in images:
            state, metrics = update(state, batch | {'image': image})
            losses.append(metrics['loss'])
    assert first == ['jit(_fun)'] and names == []  # what pmap calls it: once for all batches
    assert len(set(map(float, losses))) == 3  # it did look at each
    assert asked(step[3]) == []


def test_a_question_to_the_host_is_seen():
    def ask(x):
        return jax.pure_callback(np.sin, x, x)

    assert asked(jax.jit(ask).lower(jnp.float32(1)).compile())


def asked(compiled):
    """Returns what a program says to the host or hears from it while it runs."""
    names = r' (infeed|outfeed|send|recv)\(|custom_call_target="([^"]*callback[^"]*)"'
    return re.findall(names, compiled.as_text())


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='a fault of XLA on CPUs')
def test_no_block_adds_up_those_before_it_again(step):
    fusions = re.findall(r'= f32\[.+ fusion\(([^)]*)\), kind=kLoop', step[3].as_text())
    operands = [len(re.findall(r'%[\w.-]+', listed)) for listed in fusions]
    assert len(operands) > 100 and max(operands) <= 10  # the stream of ten blocks: over 60


def test_the_residual_is_a_rectified_sum():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    y[0, 0] = -x[0, 0]  # where the slope is that of jax.nn.relu, 0
    out, pull = jax.vjp(resnet.residual, x, y)
    expected, pull_expected = jax.vjp(lambda x, y: jax.nn.relu(x + y), x, y)
    np.testing.assert_array_equal(out, expected)
    for ours, theirs in zip(pull(jnp.ones_like(x)), pull_expected(jnp.ones_like(x)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_of_a_relu_reads_its_result_alone():
    x = jnp.float32([-1, 0, 2])
    out, pull = jax.vjp(resnet.relu, x)
    np.testing.assert_array_equal(out, [0, 0, 2])
    np.testing.assert_array_equal(pull(jnp.float32([5, 6, 7]))[0], [0, 0, 7])

    def step(x, gradient):
        out, pull = jax.vjp(resnet.relu, x)
        return out, pull(gradient)

    # XLA turns max(x, 0) > 0 into x > 0, and then keeps x as well.
    text = jax.jit(step).lower(x, x).compile().as_text()
    (compared,) = re.findall(r' compare\(%([a-z]+)', text)
    assert compared == 'max'
