"""What XLA makes of a training step: each lever of the code saves what it is there to save."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import config_of, shape_of

from rpn_jax.models import resnet, winograd
from rpn_jax.ops import anchor_statistics
from rpn_jax.training import loop
from rpn_jax.training.step import init_state

pytestmark = [pytest.mark.xla, pytest.mark.usefixtures('shallow')]
IMAGES, SIDE = 2, 192


@pytest.fixture
def shallow(monkeypatch):
    """Lets there be a network of as many blocks as these questions need."""
    monkeypatch.setitem(resnet.BLOCKS, 14, (1, 1, 1, 1))
    monkeypatch.setitem(resnet.BLOCKS, 20, (1, 1, 4, 1))


def lowered(features=None, side=SIDE, **model):
    """Returns the update of a config, lowered for one device."""
    config = config_of(**{'depth': 14, 'width': 64} | model)
    config.targets.samples = 64
    net, optimizer, _ = loop.build(config)
    state = jax.eval_shape(functools.partial(init_state, net, optimizer, 0))
    rows = {'boxes': shape_of(1, IMAGES, 8, 4), 'kind': shape_of(1, IMAGES, 8, dtype=np.int32)}
    rows |= {'size': shape_of(1, IMAGES, 2), 'index': shape_of(1, IMAGES, dtype=np.int32)}
    image = {'image': shape_of(1, IMAGES, side, side, 3, dtype=np.uint8)}
    update = loop.update_of(config, net, optimizer, jax.local_devices()[:1])
    return update.mapped.lower(state, rows | (features or image))


@functools.cache
def compiled(**model):
    return lowered(**model).compile()


def cost(program):
    return program.cost_analysis()['flops']


def test_filtering_saves_products(monkeypatch):
    usual = cost(compiled())
    monkeypatch.setattr(winograd, 'pays', lambda *_: False)
    jax.clear_caches()
    assert cost(lowered().compile()) > 1.005 * usual


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='a fault of XLA on CPUs')
def test_no_block_adds_up_those_before_it_again(monkeypatch):
    def most_operands(program):
        fusions = re.findall(r'= f32\[.+ fusion\(([^)]*)\), kind=kLoop', program.as_text())
        assert len(fusions) > 50
        return max(len(re.findall(r'%[\w.-]+', operands)) for operands in fusions)

    usual = most_operands(compiled(depth=20))
    monkeypatch.setattr(resnet, 'unfused', lambda function, *arrays: function(*arrays))
    jax.clear_caches()
    assert usual <= 10 < most_operands(lowered(depth=20).compile())


def test_frozen_parameters_cost_no_backward_pass():
    """A frozen first half saves what its gradients cost: of inputs and of weights."""
    costs = [cost(compiled(frozen_stages=stages)) for stages in (0, 3)]
    backbone = resnet.ResNet(14, 3, frozen_stages=3)
    images = np.zeros((IMAGES, SIDE, SIDE, 3), np.float32)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), images)
    frozen = cost(jax.jit(backbone.apply).lower(variables, images).compile())
    assert 1.4 * frozen < costs[0] - costs[1] < 2.3 * frozen  # less the image's own gradient


def test_anchor_statistics_cost_hardly_anything(monkeypatch):
    usual = cost(compiled())

    def nothing(*rows, count):
        names = 'positives', *anchor_statistics.LOSSES, *anchor_statistics.IOUS
        return {name: np.zeros(count) for name in names}

    monkeypatch.setattr(anchor_statistics, 'sums', nothing)
    silent = cost(lowered().compile())
    assert silent < usual < 1.02 * silent


def test_a_step_with_kept_maps_costs_a_fifth_at_most():
    maps = {'features': shape_of(1, IMAGES, 38, 38, 1024)}
    kept, usual = (cost(lowered(m, 608, depth=101, frozen_stages=4)) for m in (maps, None))
    assert 0.01 * usual < kept < 0.2 * usual


def asked(program):
    """Returns what a program says to the host or hears from it while it runs."""
    names = r' (infeed|outfeed|send|recv)\(|custom_call_target="([^"]*callback[^"]*)"'
    return re.findall(names, program.as_text())


def test_a_step_asks_the_host_for_nothing():
    assert asked(compiled()) == []
    probe = jax.jit(lambda x: jax.pure_callback(np.sin, x, x))
    assert asked(probe.lower(jnp.float32(1)).compile())  # a question would be seen


def test_the_gradient_of_a_relu_reads_its_result_alone():
    def step(x, gradient):
        out, pull = jax.vjp(resnet.relu, x)
        return out, pull(gradient)

    # XLA turns max(x, 0) > 0 into x > 0, and then keeps x as well.
    x = jnp.float32([-1, 0, 2])
    (compared,) = re.findall(r' compare\(%([a-z]+)', jax.jit(step).lower(x, x).compile().as_text())
    assert compared == 'max'
