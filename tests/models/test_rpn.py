"""The network as a whole: the head in its two ways, the order of anchors, and what frozen saves."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import config_of, shape_of

from rpn_jax.data.normalization import pixel_family
from rpn_jax.errors import InputError
from rpn_jax.models import resnet, rpn
from rpn_jax.ops import anchors as anchor
from rpn_jax.ops import losses
from rpn_jax.training import loop
from rpn_jax.training.optim import make_optimizer
from rpn_jax.training.step import init_state

KEY = jax.random.key(0)
MAP = (2, 7, 9, 16)  # of features: B, h, w, C
K = 3
CELLS = MAP[1] * MAP[2]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def head_variables(k=K, channels=MAP[-1], **constants):
    """Returns random parameters of a head; a named layer has no kernel and the bias given."""
    shapes = jax.eval_shape(rpn.RPNHead(k).init, KEY, shape_of(1, 3, 3, channels))
    leaves, tree = jax.tree.flatten(shapes)
    leaves = [0.1 * normal(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, leaves)['params']
    for name, bias in constants.items():
        kernel = 0 * params[name]['kernel']
        params[name] = {'kernel': kernel, 'bias': np.asarray(bias, np.float32)}
    return {'params': params}


# The head at sampled cells


def sampled_anchors(slots=40):
    """Returns index and labels [2, slots]: border cells, cells and anchors twice, unused slots."""
    rng = np.random.default_rng(1)
    index = rng.integers(0, CELLS * K, (2, slots))
    corners = [0, MAP[2] - 1, (MAP[1] - 1) * MAP[2], CELLS - 1]
    index[:, :4] = np.array(corners) * K + 1
    index[:, 4:8] = index[:, :4]  # the same anchors again
    index[:, 8:12] = index[:, :4] + 1  # their neighbours in the same cells
    labels = rng.integers(0, 2, (2, slots))
    index[0, -9:], labels[0, -9:] = 0, -1
    return jnp.asarray(index), jnp.asarray(labels)


@functools.partial(jax.jit, static_argnames='dense')
def loss_and_gradients(params, features, index, labels, goals, dense):
    head = rpn.RPNHead(K)

    def loss(params, features):
        if dense:
            logits, deltas = head.apply({'params': params}, features)
            logits = jnp.take_along_axis(logits, index, 1)
            deltas = jnp.take_along_axis(deltas, index[..., None], 1)
        else:
            logits, deltas = head.apply({'params': params}, features, index)
        objectness = jax.vmap(losses.objectness_loss)(logits, labels).sum()
        return objectness + jax.vmap(losses.box_loss)(deltas, goals, labels).sum()

    return jax.value_and_grad(loss, (0, 1))(params, features)


def test_the_sampled_head_is_the_dense_head_in_loss_and_gradient():
    index, labels = sampled_anchors()
    assert CELLS > index.shape[1]  # so the head does sample
    params, features = head_variables()['params'], normal(*MAP, seed=9)
    arguments = params, features, index, labels, normal(*index.shape, 4, seed=10)
    dense, sampled = (loss_and_gradients(*arguments, dense=dense) for dense in (True, False))
    assert len(jax.tree.leaves(sampled)) == 1 + 6 + 1  # loss, parameters, features
    for ours, theirs in zip(*map(jax.tree.leaves, (sampled, dense)), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max() > 0


def test_a_slot_that_is_not_used_has_no_gradient():
    index, labels = sampled_anchors()
    params, features = head_variables()['params'], normal(*MAP, seed=9)
    goals = normal(*index.shape, 4, seed=10)
    elsewhere = jnp.where(labels < 0, 5 * K, index)
    ours = loss_and_gradients(params, features, index, labels, goals, dense=False)
    theirs = loss_and_gradients(params, features, elsewhere, labels, goals, dense=False)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def has_convolution(slots):
    """Says whether the head convolves the whole map when asked for so many anchors."""
    arguments = head_variables(), shape_of(*MAP), shape_of(2, slots, dtype=np.int32)
    jaxpr = jax.make_jaxpr(rpn.RPNHead(K).apply)(*arguments)
    return any(eqn.primitive.name == 'conv_general_dilated' for eqn in jaxpr.eqns)


def test_the_dense_head_serves_where_cells_are_few():
    assert [has_convolution(slots) for slots in (CELLS - 1, CELLS, 4 * CELLS)] == [0, 1, 1]
    index = np.random.default_rng(2).integers(0, CELLS * K, (2, CELLS))
    variables, features = head_variables(), normal(*MAP)
    logits, deltas = rpn.RPNHead(K).apply(variables, features)
    found = rpn.RPNHead(K).apply(variables, features, index)
    np.testing.assert_array_equal(found[0], np.take_along_axis(np.asarray(logits), index, 1))
    np.testing.assert_array_equal(found[1][1], deltas[1][index[1]])


def flops(lowered):
    """Returns XLA's own count of a compiled program's floating point operations."""
    quick = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
    return lowered.compile(quick).cost_analysis()['flops']


def test_the_sampled_head_costs_its_share_of_the_cells():
    side, samples, channels, k = 38, 256, 48, 9  # too narrow for Winograd's filtering
    layers = 2 * (9 * channels * channels + 5 * k * channels)  # of one cell
    arguments = head_variables(k, channels), shape_of(1, side, side, channels)
    index = shape_of(1, samples, dtype=np.int32)
    apply = rpn.RPNHead(k).apply
    dense = flops(jax.jit(apply).lower(*arguments))
    sampled = flops(jax.jit(apply).lower(*arguments, index))
    assert sampled == pytest.approx(samples * layers, rel=0.03)
    assert dense == pytest.approx(side**2 * layers, rel=0.04)  # less the zeros of the padding
    assert sampled / dense == pytest.approx(samples / side**2, rel=0.06)


# Anchors and answers in the same order


def test_an_anchor_of_a_cell_gets_the_answer_of_its_shape():
    config = config_of()
    model = rpn.build(config.model, config.anchors)
    base = np.asarray(anchor.base_anchors(config.anchors.sizes, config.anchors.aspect_ratios))
    k = len(base)
    assert k == 15 == model.head.anchors_per_cell
    bias = dict(objectness=np.arange(k), deltas=np.arange(4 * k))
    variables = head_variables(k, 16, **bias)
    canvas = 16 * MAP[1] - 5, 16 * MAP[2] - 11
    anchors = np.asarray(rpn.anchors_of(model, canvas))
    logits, deltas = model.head.apply(variables, normal(*MAP))
    assert logits.shape == (2, len(anchors))
    centred = anchors - np.tile((anchors[:, :2] + anchors[:, 2:]) / 2, 2)
    np.testing.assert_array_equal(centred, base[np.asarray(logits[1]).astype(int)])
    np.testing.assert_array_equal(deltas[1], 4 * logits[1][:, None] + jnp.arange(4)[None])
    index = np.random.default_rng(0).integers(0, len(anchors), (2, 30))
    chosen = model.head.apply(variables, normal(*MAP), index)
    np.testing.assert_array_equal(chosen[0], index % k)
    np.testing.assert_array_equal(chosen[1][0], deltas[0][index[0]])


@pytest.mark.parametrize('cell', [(0, 0), (2, 8), (6, 3)])
def test_an_anchor_gets_the_answer_of_its_cell(cell):
    model = rpn.build(config_of())
    features = np.zeros((1, *MAP[1:]), np.float32)
    features[0, *cell] = 1
    variables = head_variables(15, 16)
    params = jax.tree.map(np.zeros_like, variables['params'])
    params['conv']['kernel'][1, 1] = np.eye(16)  # only the middle of the 3x3 window
    params['objectness']['kernel'][:] = 1
    logits, _ = model.head.apply({'params': params}, features)
    anchors = np.asarray(rpn.anchors_of(model, (16 * MAP[1], 16 * MAP[2])))
    chosen = anchors[np.asarray(logits[0]) > 0]
    base = np.asarray(anchor.base_anchors(model.sizes, model.aspect_ratios))
    np.testing.assert_array_equal(chosen, base + 16 * np.tile(cell[::-1], 2))


@pytest.mark.parametrize(
    ('last_stage', 'dilations', 'stride'),
    [(3, (1, 1, 1, 1), 8), (4, (1, 1, 1, 1), 16), (5, (1, 1, 1, 1), 32), (5, (1, 1, 1, 7), 16)],
)
def test_there_is_an_answer_for_every_anchor(last_stage, dilations, stride):
    model = rpn.build(config_of(last_stage=last_stage, dilations=dilations, dtype='bfloat16'))
    (logits, deltas), variables = jax.eval_shape(
        model.init_with_output, KEY, shape_of(2, 75, 110, 3)
    )
    h, w = math.ceil(75 / stride), math.ceil(110 / stride)
    count = 15 * h * w
    assert rpn.feature_shape(model, (75, 110)) == (h, w)
    assert len(rpn.anchors_of(model, (75, 110))) == count
    assert (logits.shape, deltas.shape) == ((2, count), (2, count, 4))
    assert logits.dtype == deltas.dtype == np.float32
    assert set(variables['params']) == {'backbone', 'head'}


@pytest.mark.parametrize('slots', [5, CELLS], ids=['sampled', 'dense'])
def test_a_bfloat16_head_multiplies_in_halves_and_answers_in_full(slots):
    head = rpn.build(config_of(dtype='bfloat16')).head
    variables, index = head_variables(15), np.zeros((2, slots), np.int32)
    jaxpr = jax.make_jaxpr(head.apply)(variables, normal(*MAP), index)
    products = [
        e for e in jaxpr.eqns if e.primitive.name in ('dot_general', 'conv_general_dilated')
    ]
    assert {v.aval.dtype.name for e in products for v in e.invars} == {'bfloat16'}
    assert [v.dtype.name for v in jaxpr.out_avals] == ['float32', 'float32']
    full = rpn.RPNHead(15).apply(variables, normal(*MAP), index)
    for half, expected in zip(head.apply(variables, normal(*MAP), index), full, strict=True):
        assert np.abs(half - expected).max() < 0.05 * np.abs(expected).max()


# Initial weights


@pytest.mark.parametrize('init', ['normal', 'uniform'])
def test_the_head_begins_as_in_the_paper_or_as_torch(init):
    model = rpn.build(config_of(init=init))
    features = shape_of(1, 4, 4, 64)
    params = jax.jit(lambda: model.head.init(KEY, np.zeros(features.shape, np.float32)))()
    for layer in params['params'].values():
        kernel = np.asarray(layer['kernel'])
        assert not layer['bias'].any()
        if init == 'normal':
            assert kernel.std() == pytest.approx(0.01, rel=0.05)
            assert np.abs(kernel).max() > 0.025
        else:
            bound = 1 / math.sqrt(np.prod(kernel.shape[:3]))
            assert 0.95 * bound < np.abs(kernel).max() <= bound
            assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_the_whole_network_follows_the_same_key():
    counts = {}
    for init in ('normal', 'uniform'):
        model = rpn.build(config_of(init=init))
        jaxpr = str(jax.make_jaxpr(model.init)(KEY, np.zeros((1, 32, 32, 3), np.float32)))
        counts[init] = jaxpr.count('= erf_inv')  # how a uniform draw becomes a normal one
    assert counts['normal'] > 0 == counts['uniform']


# What is frozen, and what that saves


@pytest.mark.parametrize('frozen_stages', range(6))
@pytest.mark.parametrize('norm', ['frozen', 'batch', 'group'])
def test_frozen_are_the_first_stages_and_stored_norms(frozen_stages, norm):
    model = rpn.build(config_of(norm=norm, frozen_stages=frozen_stages, last_stage=5))
    params = jax.eval_shape(model.init, KEY, shape_of(1, 32, 32, 3))['params']
    first = ['stem', 'conv2', 'conv3', 'conv4', 'conv5'][:frozen_stages]
    for path, fixed in jax.tree_util.tree_leaves_with_path(rpn.frozen(model, params)):
        part, module, *_, leaf = (key.key for key in path)
        in_stage = module.startswith(tuple(first))
        in_norm = norm == 'frozen' and leaf in ('scale', 'bias')
        assert fixed == (part == 'backbone' and (in_stage or in_norm)), path


@pytest.fixture(scope='module')
def costs():
    """Returns FLOPs of the update by frozen_stages, of all forward and of the part up to conv3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 14, (1, 1, 1, 1))  # as deep as this question needs
        config = config_of(depth=14)
        config.targets.samples = 16
        config.anchors.sizes = (32,)
        image = {'image': shape_of(1, 160, 160, 3, dtype=np.uint8), 'size': shape_of(1, 2)}
        objects = {'boxes': shape_of(1, 4, 4), 'kind': shape_of(1, 4, dtype=np.int32)}
        batch = {**image, **objects, 'index': shape_of(1, dtype=np.int32)}
        device = {k: shape_of(1, *v.shape, dtype=v.dtype) for k, v in batch.items()}
        found = {}
        for frozen_stages in (0, 3):
            config.model.frozen_stages = frozen_stages
            model = rpn.build(config.model, config.anchors)
            optimizer, _ = make_optimizer(frozen=functools.partial(rpn.frozen, model))
            init = functools.partial(init_state, model, optimizer, 0)
            state = jax.eval_shape(init)
            update = loop.update_of(config, model, optimizer, jax.local_devices()[:1])
            found[frozen_stages] = flops(update.mapped.lower(state, device))
        loss = loop.make_loss(model, config, pixel_family('torchvision'))
        loss = jax.jit(loss).lower(state.params, state.batch_stats, KEY, batch)
        variables = state.variables
        variables = {name: tree['backbone'] for name, tree in variables.items()}
        frozen = jax.jit(model.backbone.clone(last_stage=3).apply)
        frozen = frozen.lower(variables, shape_of(1, 160, 160, 3))
        return found, flops(loss), flops(frozen)


def test_frozen_parameters_cost_no_backward_pass(costs):
    """Forward once, and twice again for what learns: the gradients of inputs and of weights."""
    update, forward, frozen = costs
    for frozen_stages, learning in ((0, forward), (3, forward - frozen)):
        predicted = forward + 2 * learning
        assert 0.87 * predicted < update[frozen_stages] <= predicted  # no gradient of the image
    assert update[3] < 0.6 * update[0]


def test_frozen_parameters_have_no_optimizer_state():
    sizes = {}
    for frozen_stages in (0, 3, 5):
        model = rpn.build(config_of(norm='group', frozen_stages=frozen_stages))
        params = jax.eval_shape(model.init, KEY, shape_of(1, 32, 32, 3))['params']
        fixed = rpn.frozen(model, params)
        learning = jax.tree.map(lambda p, f: 0 if f else p.size, params, fixed)
        for name, copies in (('sgd', 1), ('adam', 2)):
            optimizer, _ = make_optimizer(
                optimizer=name, frozen=functools.partial(rpn.frozen, model)
            )
            state = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
            held = sum(leaf.size for leaf in state if leaf.shape)  # without counters
            assert held == copies * sum(jax.tree.leaves(learning)) > 0
        sizes[frozen_stages] = held
    assert sizes[0] > sizes[3] > sizes[5]


# Errors


@pytest.mark.parametrize(
    ('key', 'value'),
    [('sizes', ()), ('sizes', (0,)), ('aspect_ratios', ()), ('aspect_ratios', (-1.0,))],
)
def test_anchors_without_area_are_refused(key, value):
    config = config_of()
    config.anchors[key] = value
    with pytest.raises(InputError, match=re.escape(f'anchors.{key}')):
        rpn.build(config.model, config.anchors)
