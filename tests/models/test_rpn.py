"""The network as a whole: the head at all cells and at sampled ones, any backbone, freezing."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, config_of, shape_of

from rpn_jax.errors import InputError
from rpn_jax.models import resnet, rpn
from rpn_jax.ops.losses import box_loss, objectness_loss
from rpn_jax.training import loop
from rpn_jax.training.optim import make_optimizer
from rpn_jax.training.step import init_state

K, CHANNELS = 3, 16
LEVELS = {  # shapes of feature maps
    'one': ((7, 9),),
    'two': ((7, 9), (4, 5)),
    'five': ((7, 9), (4, 5), (2, 3), (1, 2), (1, 1)),
}


def build(**model):
    config = config_of(**model)
    return rpn.build(config.model, config.anchors)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def maps_of(shapes, batch=2):
    """Returns random feature maps [2, h, w, C], a tuple of them if there are several."""
    maps = tuple(normal(batch, *s, CHANNELS, seed=9 + i) for i, s in enumerate(shapes))
    return maps if len(maps) > 1 else maps[0]


def head_variables(k=K, channels=CHANNELS, convs=1, **constants):
    """Returns random parameters of a head; a named layer has no kernel and the bias given."""
    shapes = jax.eval_shape(rpn.RPNHead(k, convs).init, KEY, shape_of(1, 3, 3, channels))
    leaves, tree = jax.tree.flatten(shapes)
    leaves = [0.1 * normal(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, leaves)['params']
    for name, bias in constants.items():
        kernel = 0 * params[name]['kernel']
        params[name] = {'kernel': kernel, 'bias': np.asarray(bias, np.float32)}
    return {'params': params}


# The head at sampled cells


def sampled_anchors(shapes, slots=40):
    """Returns index and labels [2, slots]: corners of maps, anchors twice, empty slots."""
    rng = np.random.default_rng(1)
    cells = [h * w for h, w in shapes]
    starts = np.cumsum([0, *cells[:-1]])
    corners = [
        start + cell
        for start, (h, w) in zip(starts, shapes, strict=True)
        for cell in (0, w - 1, (h - 1) * w, h * w - 1)
    ]
    index = rng.integers(0, K * sum(cells), (2, slots))
    count = len(corners)
    index[:, :count] = np.array(corners) * K + 1
    index[:, count : count + 4] = index[:, :4]  # the same anchors again
    index[:, count + 4 : count + 8] = index[:, :4] + 1  # their neighbours in the same cells
    labels = rng.integers(0, 2, (2, slots))
    index[0, -9:], labels[0, -9:] = 0, -1
    return jnp.asarray(index), jnp.asarray(labels)


@functools.partial(jax.jit, static_argnames=('dense', 'convs'))
def loss_and_gradients(params, maps, index, labels, targets, dense, convs=1):
    head = rpn.RPNHead(K, convs)

    def loss(params, maps):
        if dense:
            logits, deltas = head.apply({'params': params}, maps)
            logits = jnp.take_along_axis(logits, index, 1)
            deltas = jnp.take_along_axis(deltas, index[..., None], 1)
        else:
            logits, deltas = head.apply({'params': params}, maps, index)
        objectness = jax.vmap(objectness_loss)(logits, labels).sum()
        return objectness + jax.vmap(box_loss)(deltas, targets, labels).sum()

    return jax.value_and_grad(loss, (0, 1))(params, maps)


@pytest.mark.parametrize('convs', [1, 2])
@pytest.mark.parametrize('levels', LEVELS)
def test_the_sampled_head_is_the_dense_head_in_loss_and_gradient(levels, convs):
    shapes = LEVELS[levels]
    index, labels = sampled_anchors(shapes)
    assert sum(h * w for h, w in shapes) > index.shape[1]  # so the head does sample
    params, maps = head_variables(convs=convs)['params'], maps_of(shapes)
    arguments = params, maps, index, labels, normal(*index.shape, 4, seed=10)
    dense, sampled = (loss_and_gradients(*arguments, d, convs) for d in (True, False))
    assert len(jax.tree.leaves(sampled)) == 1 + 4 + 2 * convs + len(shapes)
    for ours, theirs in zip(*map(jax.tree.leaves, (sampled, dense)), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max() > 0


def test_an_empty_slot_has_no_gradient():
    index, labels = sampled_anchors(LEVELS['two'])
    arguments = head_variables()['params'], maps_of(LEVELS['two'])
    targets = normal(*index.shape, 4, seed=10)
    elsewhere = jnp.where(labels < 0, 5 * K, index)
    ours, theirs = (
        loss_and_gradients(*arguments, i, labels, targets, dense=False) for i in (index, elsewhere)
    )
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def test_the_dense_head_serves_where_cells_are_few():
    shapes = LEVELS['five']
    cells, variables, maps = sum(h * w for h, w in shapes), head_variables(), maps_of(shapes)

    def has_convolution(slots):
        arguments = variables, maps, shape_of(2, slots, dtype=np.int32)
        jaxpr = jax.make_jaxpr(rpn.RPNHead(K).apply)(*arguments)
        return any(eqn.primitive.name == 'conv_general_dilated' for eqn in jaxpr.eqns)

    assert [has_convolution(slots) for slots in (cells - 1, cells, 4 * cells)] == [0, 1, 1]
    index = np.random.default_rng(2).integers(0, cells * K, (2, cells))
    logits, deltas = rpn.RPNHead(K).apply(variables, maps)
    chosen = rpn.RPNHead(K).apply(variables, maps, index)
    np.testing.assert_array_equal(chosen[0], np.take_along_axis(np.asarray(logits), index, 1))
    np.testing.assert_array_equal(chosen[1][1], deltas[1][index[1]])


def flops(lowered):
    """Returns XLA's own count of a compiled program's floating point operations."""
    quick = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
    return lowered.compile(quick).cost_analysis()['flops']


@pytest.mark.xla
def test_the_sampled_head_costs_its_share_of_the_cells():
    shapes, samples, channels, k = ((38, 38), (19, 19)), 256, 48, 9  # too narrow for Winograd
    layers = 2 * (9 * channels * channels + 5 * k * channels)  # of one cell
    maps = tuple(shape_of(1, *shape, channels) for shape in shapes)
    arguments = head_variables(k, channels), maps
    apply = rpn.RPNHead(k).apply
    dense = flops(jax.jit(apply).lower(*arguments))
    sampled = flops(jax.jit(apply).lower(*arguments, shape_of(1, samples, dtype=np.int32)))
    cells = sum(math.prod(shape) for shape in shapes)
    assert sampled == pytest.approx(samples * layers, rel=0.05)
    assert sampled / dense == pytest.approx(samples / cells, rel=0.08)


# Anchors and outputs in the same order


def test_an_anchor_of_a_cell_gets_the_output_of_its_type():
    model = build()
    types = len(model.sizes[0]) * len(model.aspect_ratios)
    assert types == 15 == model.head.anchors_per_cell
    variables = head_variables(types, objectness=np.arange(types), deltas=np.arange(4 * types))
    anchors = rpn.anchors_of(model, (16 * 7 - 5, 16 * 9 - 11))
    apply = jax.jit(model.head.apply)
    logits, deltas = apply(variables, maps_of(LEVELS['one']))
    np.testing.assert_array_equal(logits[1], anchors.type)
    np.testing.assert_array_equal(deltas[1], 4 * logits[1][:, None] + jnp.arange(4)[None])
    index = np.random.default_rng(0).integers(0, len(anchors.boxes), (2, 30))
    chosen = apply(variables, maps_of(LEVELS['one']), index)
    np.testing.assert_array_equal(chosen[0], anchors.type[index])
    np.testing.assert_array_equal(chosen[1][0], deltas[0][index[0]])


@pytest.mark.parametrize(('level', 'cell'), [(0, (0, 0)), (0, (2, 8)), (1, (3, 1)), (4, (0, 0))])
def test_an_anchor_gets_the_output_of_its_cell(level, cell):
    shapes = LEVELS['five']
    maps = [np.zeros((1, *shape, CHANNELS), np.float32) for shape in shapes]
    maps[level][0, *cell] = 1
    params = jax.tree.map(np.zeros_like, head_variables()['params'])
    params['conv']['kernel'][1, 1] = np.eye(CHANNELS)  # only the middle of the 3x3 window
    params['objectness']['kernel'][:] = 1
    logits, _ = rpn.RPNHead(K).apply({'params': params}, tuple(maps))
    sizes = tuple((float(2**i),) for i in range(5))
    anchors = rpn.Anchors.of(shapes, (4, 8, 16, 32, 64), sizes, (0.5, 1.0, 2.0))
    chosen = np.flatnonzero(np.asarray(logits[0]) > 0)
    assert len(chosen) == K and {*anchors.level[chosen].tolist()} == {level}
    assert {*anchors.cell[chosen].tolist()} == {cell[0] * shapes[level][1] + cell[1]}


@pytest.mark.parametrize(
    ('last_stage', 'dilations', 'stride'),
    [(3, (1, 1, 1, 1), 8), (4, (1, 1, 1, 1), 16), (5, (1, 1, 1, 1), 32), (5, (1, 1, 1, 7), 16)],
)
def test_there_is_an_output_for_every_anchor(last_stage, dilations, stride):
    model = build(last_stage=last_stage, dilations=dilations, dtype='bfloat16')
    (logits, deltas), variables = jax.eval_shape(
        model.init_with_output, KEY, shape_of(2, 75, 110, 3)
    )
    h, w = math.ceil(75 / stride), math.ceil(110 / stride)
    count = 15 * h * w
    assert rpn.feature_shapes(model, (75, 110)) == ((h, w),)
    assert len(rpn.anchors_of(model, (75, 110)).boxes) == count
    assert (logits.shape, deltas.shape) == ((2, count), (2, count, 4))
    assert logits.dtype == deltas.dtype == np.float32
    assert set(variables['params']) == {'backbone', 'head'}


@pytest.mark.parametrize('slots', [5, 63], ids=['sampled', 'dense'])
def test_a_bfloat16_head_multiplies_in_halves_and_returns_float32(slots):
    head, maps = build(dtype='bfloat16').head, maps_of(LEVELS['one'])
    variables, index = head_variables(15), np.zeros((2, slots), np.int32)
    jaxpr = jax.make_jaxpr(head.apply)(variables, maps, index)
    products = [
        e for e in jaxpr.eqns if e.primitive.name in ('dot_general', 'conv_general_dilated')
    ]
    assert {v.aval.dtype.name for e in products for v in e.invars} == {'bfloat16'}
    assert [v.dtype.name for v in jaxpr.out_avals] == ['float32', 'float32']
    full = rpn.RPNHead(15).apply(variables, maps, index)
    for half, expected in zip(head.apply(variables, maps, index), full, strict=True):
        assert np.abs(half - expected).max() < 0.05 * np.abs(expected).max()


# Backbones of any kind


class Pyramid(nn.Module):
    """Maps images to feature maps of strides 2 and 4: a tuple, a dict, or the second of them."""

    form: str = 'tuple'

    @nn.compact
    def __call__(self, images, train=False):
        fine = nn.relu(nn.Conv(8, (3, 3), 2, padding=1)(images))
        coarse = nn.relu(nn.Conv(8, (3, 3), 2, padding=1)(fine))
        forms = {'tuple': (fine, coarse), 'dict': {'fine': fine, 'coarse': coarse}, 'map': coarse}
        return forms[self.form]


@pytest.mark.parametrize('form', ['tuple', 'dict', 'map'])
def test_any_flax_module_can_be_the_backbone(form):
    strides = (2, 4) if form == 'tuple' else (4,)
    sizes = ((8.0,), (16.0,))[-len(strides) :]
    model = rpn.RPN(Pyramid(form), rpn.RPNHead(K), strides, sizes, (0.5, 1.0, 2.0))
    images = normal(2, 30, 42, 3)
    variables = jax.jit(model.init)(KEY, images)
    logits, deltas = jax.jit(model.apply)(variables, images)
    anchors = rpn.anchors_of(model, (30, 42))
    assert logits.shape == (2, len(anchors.boxes)) and deltas.shape == (*logits.shape, 4)
    maps = jax.eval_shape(lambda v: model.apply(v, images, method='features'), variables)
    assert len(anchors.levels) == len(maps)
    assert not any(jax.tree.leaves(rpn.frozen(model, variables['params'])))
    wrong = model.clone(strides=tuple(2 * stride for stride in strides))
    with pytest.raises(ValueError, match='feature maps of .* strides'):
        wrong.apply(variables, images)


class Nested(nn.Module):
    """A ResNet inside another module."""

    frozen_stages: int = 2
    norm: str = 'frozen'

    @nn.compact
    def __call__(self, images, train=False):
        return resnet.ResNet(26, 3, width=8, norm=self.norm, name='body')(images, train)


# Initial weights


@pytest.mark.parametrize('init', ['normal', 'uniform'])
def test_the_head_begins_as_in_the_paper_or_as_torch(init):
    model = build(init=init)
    params = jax.jit(lambda: model.head.init(KEY, np.zeros((1, 4, 4, 64), np.float32)))()
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


# What is frozen, and what that saves


@pytest.mark.parametrize('frozen_stages', [0, 1, 3, 5])
@pytest.mark.parametrize('norm', ['frozen', 'batch', 'group'])
def test_frozen_are_the_first_stages_and_frozen_norms(frozen_stages, norm):
    model = build(norm=norm, frozen_stages=frozen_stages, last_stage=5)
    params = jax.eval_shape(model.init, KEY, shape_of(1, 32, 32, 3))['params']
    first = ['stem', 'conv2', 'conv3', 'conv4', 'conv5'][:frozen_stages]
    for path, fixed in jax.tree_util.tree_leaves_with_path(rpn.frozen(model, params)):
        part, module, *_, leaf = (key.key for key in path)
        in_stage = module.startswith(tuple(first))
        in_norm = norm == 'frozen' and leaf in ('scale', 'bias')
        assert fixed == (part == 'backbone' and (in_stage or in_norm)), path


@pytest.mark.parametrize('norm', ['frozen', 'batch'])
def test_frozen_stages_are_found_inside_other_modules(norm):
    model = rpn.RPN(Nested(norm=norm), rpn.RPNHead(K), (8,))
    params = jax.eval_shape(model.init, KEY, shape_of(1, 32, 32, 3))['params']
    for path, fixed in jax.tree_util.tree_leaves_with_path(rpn.frozen(model, params)):
        part, *names, leaf = (key.key for key in path)
        early = part == 'backbone' and names[1].startswith(('stem', 'conv2'))
        in_norm = part == 'backbone' and norm == 'frozen' and leaf in ('scale', 'bias')
        assert fixed == (early or in_norm), path


@pytest.mark.xla
def test_frozen_parameters_cost_no_backward_pass(monkeypatch):
    """A frozen first half saves what its gradients cost: of inputs and of weights."""
    monkeypatch.setitem(resnet.BLOCKS, 14, (1, 1, 1, 1))  # as deep as this question needs
    config = config_of(depth=14)
    config.targets.samples, config.anchors.sizes = 16, (32,)
    image = {'image': shape_of(1, 1, 160, 160, 3, dtype=np.uint8), 'size': shape_of(1, 1, 2)}
    boxes = {'boxes': shape_of(1, 1, 4, 4), 'kind': shape_of(1, 1, 4, dtype=np.int32)}
    batch = {**image, **boxes, 'index': shape_of(1, 1, dtype=np.int32)}
    costs = {}
    for frozen_stages in (0, 3, 4):
        config.model.frozen_stages = frozen_stages
        model, optimizer, _ = loop.build(config)
        state = jax.eval_shape(functools.partial(init_state, model, optimizer, 0))
        update = loop.update_of(config, model, optimizer, jax.local_devices()[:1])
        costs[frozen_stages] = flops(update.mapped.lower(state, batch))
    variables = {name: tree['backbone'] for name, tree in state.variables.items()}
    apply = jax.jit(model.backbone.clone(last_stage=3).apply)
    frozen = flops(apply.lower(variables, shape_of(1, 160, 160, 3)))
    saved = costs[0] - costs[3]  # less the gradient of the image, which nobody asks for
    assert 1.4 * frozen < saved <= 2.05 * frozen
    assert costs[4] < costs[3] < 0.6 * costs[0]


def test_frozen_parameters_have_no_optimizer_state():
    sizes = {}
    for frozen_stages in (0, 3, 5):
        model = build(norm='group', frozen_stages=frozen_stages)
        params = jax.eval_shape(model.init, KEY, shape_of(1, 32, 32, 3))['params']
        fixed = rpn.frozen(model, params)
        learning = jax.tree.map(lambda p, f: 0 if f else p.size, params, fixed)
        for name, copies in (('sgd', 1), ('adam', 2)):
            frozen = functools.partial(rpn.frozen, model)
            optimizer, _ = make_optimizer(optimizer=name, frozen=frozen)
            state = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
            held = sum(leaf.size for leaf in state if leaf.shape)  # without counters
            assert held == copies * sum(jax.tree.leaves(learning)) > 0
        sizes[frozen_stages] = held
    assert sizes[0] > sizes[3] > sizes[5]


# Errors


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        *(('sizes', ()), ('sizes', (0,)), ('sizes', ((32,), (64,))), ('sizes', ((32,), 64))),
        *(('aspect_ratios', ()), ('aspect_ratios', (-1.0,))),
    ],
)
def test_anchors_that_make_no_network_are_refused(key, value):
    anchors = {'sizes': (32,), 'aspect_ratios': (1.0,)} | {key: value}
    with pytest.raises(InputError, match='^anchors: .*' + re.escape(str(value)[:5])):
        rpn.build(config_of().model, anchors)
