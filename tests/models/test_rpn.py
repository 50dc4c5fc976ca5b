"""The network as a whole: the head in its two ways, the order of anchors, and any backbone."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, PYRAMIDS, Strided, config_of, normal, shape_of

from rpn_jax.errors import InputError
from rpn_jax.models import resnet, rpn
from rpn_jax.ops.losses import rpn_losses

pytestmark = pytest.mark.usefixtures('quick_compilation')
K, C = 3, 16


def maps_of(shapes):
    """Returns random feature maps [2, h, w, C] of these shapes ((h, w), ..)."""
    return tuple(normal(2, *shape, C, seed=seed) for seed, shape in enumerate(shapes))


@functools.cache
def head_params(k=K, channels=C, convs=1):
    """Returns random parameters of a head."""
    head = rpn.RPNHead(k, convs)
    shapes = jax.eval_shape(head.init, KEY, shape_of(1, 3, 3, channels))['params']
    leaves, tree = jax.tree.flatten(shapes)
    leaves = [0.1 * normal(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, leaves)


def built(**model):
    """Returns the network of the default config, narrow, with changes of its model."""
    config = config_of(**model)
    return rpn.build(config.model, config.anchors)


# The head at sampled cells


def sampled_rows(shapes, slots=13):
    """Returns sampled anchors [2, slots], twice the same, neighbours and ignored slots in them.

    The first are at the ends of each level, where the neighbourhoods reach beyond it.
    """
    rng = np.random.default_rng(1)
    cells = [math.prod(shape) for shape in shapes]
    ends = np.cumsum(cells)
    edges = [*(ends - 1), *(ends - cells), *(ends - cells + [w - 1 for _, w in shapes])]
    index = rng.integers(0, K * ends[-1], (2, slots))
    index[0, : len(edges[:9])] = K * np.array(edges[:9]) + 1
    index[1, :4] = index[0, :4]
    index[1, 4:6] = index[1, 0], index[1, 1] + 1  # an anchor again, a neighbour in its cell
    labels = rng.integers(0, 2, (2, slots))
    index[0, -3:], labels[0, -3:] = 0, -1
    corner = rng.uniform(0, 40, (2, 2, slots, 2))
    anchors, boxes = np.concatenate([corner, corner + 20], axis=-1).astype(np.float32)
    return jnp.asarray(index), jnp.asarray(labels), anchors, boxes


def losses_of(head, dense):
    """Returns the jitted loss of sampled anchors, with gradients of parameters and maps."""

    def loss(params, maps, index, labels, anchors, boxes):
        if dense:
            logits, deltas = head.apply({'params': params}, maps)
            logits = jnp.take_along_axis(logits, index, 1)
            deltas = jnp.take_along_axis(deltas, index[..., None], 1)
        else:
            logits, deltas = head.apply({'params': params}, maps, index)
        each = jax.vmap(rpn_losses)(logits, deltas, labels, anchors, boxes)
        return each['objectness'].sum() + each['box'].sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


@pytest.mark.parametrize('convs', [1, 2])
@pytest.mark.parametrize('name', PYRAMIDS)
def test_the_sampled_head_is_the_dense_head_in_loss_and_gradient(name, convs):
    shapes = PYRAMIDS[name][0]
    index, *rest = sampled_rows(shapes)
    assert index.shape[1] < sum(map(math.prod, shapes))  # so the head does sample
    head, params = rpn.RPNHead(K, convs), head_params(convs=convs)
    arguments = params, maps_of(shapes)
    dense = losses_of(head, dense=True)(*arguments, index, *rest)
    sampled_loss = losses_of(head, dense=False)
    sampled = sampled_loss(*arguments, index, *rest)
    assert len(jax.tree.leaves(sampled)) == 1 + 4 + 2 * convs + len(shapes)
    elsewhere = sampled_loss(*arguments, jnp.where(rest[0] < 0, 5 * K, index), *rest)
    for ours in (sampled, elsewhere):  # an ignored slot has no gradient, wherever it is
        for a, b in zip(*map(jax.tree.leaves, (ours, dense)), strict=True):
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max() > 0


def test_the_dense_head_serves_where_cells_are_few():
    shapes = (7, 9), (2, 1)
    cells, maps, head = 65, maps_of(shapes), rpn.RPNHead(K)
    variables = {'params': head_params()}
    for slots, convolutions in [(cells - 1, 0), (cells, 2), (4 * cells, 2)]:
        jaxpr = jax.make_jaxpr(head.apply)(variables, maps, np.zeros((2, slots), np.int32))
        assert [e.primitive.name for e in jaxpr.eqns].count('conv_general_dilated') == convolutions
    index = np.random.default_rng(2).integers(0, cells * K, (2, cells))
    logits, deltas = map(np.asarray, jax.jit(head.apply)(variables, maps))
    chosen = jax.jit(head.apply)(variables, maps, index)
    np.testing.assert_array_equal(chosen[0], np.take_along_axis(logits, index, 1))
    np.testing.assert_array_equal(chosen[1][1], deltas[1][index[1]])


@pytest.mark.xla
@pytest.mark.parametrize('shapes', [((38, 38),), ((32, 32), (16, 16), (8, 8))], ids=str)
def test_the_sampled_head_costs_its_share_of_the_cells(shapes):
    samples, channels = 256, 48  # too narrow for Winograd's filtering
    maps = tuple(shape_of(1, *shape, channels) for shape in shapes)
    index = shape_of(1, samples, dtype=np.int32)
    variables, apply = {'params': head_params(9, channels)}, rpn.RPNHead(9).apply
    dense, sampled = (
        jax.jit(apply).lower(variables, maps, *more).compile().cost_analysis()['flops']
        for more in ((), (index,))
    )
    assert sampled / dense == pytest.approx(samples / sum(map(math.prod, shapes)), rel=0.1)


# Anchors and answers in the same order


def on_maps(name):
    """Returns a network of a pyramid, whose backbone nobody calls, and its anchors."""
    shapes, strides, sizes, ratios = PYRAMIDS[name]
    ratios = ratios if name != 'two levels' else (0.5, 1)
    k = len(sizes[0]) * len(ratios)
    sizes = tuple(size[:1] * len(sizes[0]) for size in sizes)
    model = rpn.RPN(Strided(), rpn.RPNHead(k), strides, sizes, ratios)
    return model, k, maps_of(shapes), rpn.anchors_of_maps(model, shapes)


@pytest.mark.parametrize('name', PYRAMIDS)
def test_an_anchor_of_a_cell_gets_the_answer_of_its_type(name):
    model, k, maps, anchors = on_maps(name)
    params = dict(head_params(k))
    for layer, bias in (('objectness', np.arange(k)), ('deltas', np.arange(4 * k))):
        params[layer] = {'kernel': 0 * params[layer]['kernel'], 'bias': np.float32(bias)}
    variables = {'params': {'head': params}}
    apply = jax.jit(functools.partial(model.apply, variables, method='from_features'))
    logits, deltas = apply(maps)
    first_type = k * np.asarray(anchors.level)  # each level has as many types
    np.testing.assert_array_equal(logits[1], anchors.type - first_type)
    logits, deltas = np.asarray(logits), np.asarray(deltas)
    np.testing.assert_array_equal(deltas[1], 4 * logits[1][:, None] + np.arange(4))
    index = np.random.default_rng(0).integers(0, len(logits[0]), (2, 7))
    chosen = apply(maps, index)
    np.testing.assert_array_equal(chosen[0], logits[0][index])
    np.testing.assert_array_equal(chosen[1][0], deltas[0][index[0]])


@pytest.mark.parametrize('name', PYRAMIDS)
def test_an_anchor_gets_the_answer_of_its_cell(name):
    model, k, maps, anchors = on_maps(name)
    params = jax.tree.map(np.zeros_like, head_params(k))
    params['conv']['kernel'][1, 1] = np.eye(C)  # only the middle of the 3x3 window
    params['objectness']['kernel'][:] = 1
    apply = jax.jit(functools.partial(model.head.apply, {'params': params}))
    for level in range(len(maps)):
        lit = [0 * x[:1] for x in maps]
        height, width = lit[level].shape[1:3]
        row, column = height - 1, width // 2
        lit[level][0, row, column] = 1
        logits, _ = apply(tuple(lit))
        of_cell = np.asarray(anchors.cell) == row * width + column
        own = (np.asarray(anchors.level) == level) & of_cell
        np.testing.assert_array_equal(logits[0] > 0, own)
        assert own.sum() == k


@pytest.mark.parametrize(
    ('last_stage', 'dilations', 'stride'),
    [(3, (1, 1, 1, 1), 8), (4, (1, 1, 1, 1), 16), (5, (1, 1, 1, 1), 32), (5, (1, 1, 1, 7), 16)],
)
def test_there_is_an_answer_for_every_anchor(last_stage, dilations, stride):
    model = built(last_stage=last_stage, dilations=dilations, dtype='bfloat16')
    (logits, deltas), variables = jax.eval_shape(
        model.init_with_output, KEY, shape_of(2, 75, 110, 3)
    )
    shape = math.ceil(75 / stride), math.ceil(110 / stride)
    count = 15 * math.prod(shape)
    assert rpn.feature_shapes(model, (75, 110)) == (shape,)
    assert rpn.anchors_of(model, (75, 110)).levels == (count,)
    assert (logits.shape, deltas.shape) == ((2, count), (2, count, 4))
    assert logits.dtype == deltas.dtype == np.float32
    assert set(variables['params']) == {'backbone', 'head'}


@pytest.mark.parametrize('slots', [5, 63], ids=['sampled', 'dense'])
def test_a_bfloat16_head_multiplies_in_halves_and_answers_in_full(slots):
    head, maps = built(dtype='bfloat16').head, maps_of([(7, 9)])
    variables, index = {'params': head_params(15)}, np.zeros((2, slots), np.int32)
    jaxpr = jax.make_jaxpr(head.apply)(variables, maps, index)
    names = 'dot_general', 'conv_general_dilated'
    products = [e for e in jaxpr.eqns if e.primitive.name in names]
    assert {v.aval.dtype.name for e in products for v in e.invars} == {'bfloat16'}
    assert [v.dtype.name for v in jaxpr.out_avals] == ['float32', 'float32']
    halves, full = (jax.jit(h.apply)(variables, maps, index) for h in (head, rpn.RPNHead(15)))
    for half, expected in zip(halves, full, strict=True):
        assert np.abs(half - expected).max() < 0.05 * np.abs(expected).max()


# Backbones of the reader's own


class Wrapped(nn.Module):
    """A ResNet inside another module, as a pyramid has it; it says what of it is frozen."""

    inner: nn.Module
    frozen_stages: int = 2
    norm: str = 'frozen'

    @nn.compact
    def __call__(self, images, train=False):
        maps = self.inner(images, train)
        return tuple(nn.Conv(C, (1, 1))(maps[name]) for name in ('conv2', 'conv3'))


@pytest.mark.parametrize(
    ('form', 'strides'), [('map', (8,)), ('tuple', (8, 16)), ('list', (8, 16)), ('dict', (16,))]
)
def test_any_module_can_be_the_backbone(form, strides):
    sizes = tuple((2 * stride,) for stride in strides)
    model = rpn.RPN(Strided(form), rpn.RPNHead(K), strides, sizes, (0.5, 1, 2))
    images = normal(2, 30, 41, 3)
    apply = jax.jit(model.apply, static_argnames='method')
    variables = jax.jit(model.init)(KEY, images)
    logits, deltas = map(np.asarray, apply(variables, images))
    count = sum(rpn.anchors_of(model, (30, 41)).levels)
    assert logits.shape == (2, count) and deltas.shape == (2, count, 4)
    maps = apply(variables, images, method='features')
    assert isinstance(maps, tuple) and rpn.map_shapes(maps) == rpn.feature_shapes(model, (30, 41))
    again, _ = apply(variables, maps, method='from_features')
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-7)
    index = np.int32([[0, 5, 2], [count - 1] * 3])
    chosen, _ = apply(variables, images, index)
    expected = np.take_along_axis(logits, index, 1)
    np.testing.assert_allclose(chosen, expected, rtol=1e-5, atol=1e-7)
    assert not any(jax.tree.leaves(rpn.frozen(model, variables['params'])))


def test_maps_that_are_not_of_the_strides_are_an_error():
    for strides in [(8,), (8, 32), (8, 16, 32)]:
        model = rpn.RPN(Strided('tuple'), rpn.RPNHead(K), strides)
        with pytest.raises(ValueError, match=re.escape(f'strides {strides}')):
            jax.eval_shape(model.init, KEY, shape_of(1, 64, 64, 3))


@pytest.mark.parametrize('norm', ['frozen', 'batch', 'group'])
def test_frozen_are_the_first_stages_and_frozen_norms(norm):
    shapes = jax.eval_shape(built(norm=norm, last_stage=5).init, KEY, shape_of(1, 32, 32, 3))
    for stages in range(6):
        model = built(norm=norm, frozen_stages=stages, last_stage=5)
        first = tuple(['stem', 'conv2', 'conv3', 'conv4', 'conv5'][:stages])
        frozen = rpn.frozen(model, shapes['params'])
        for path, fixed in jax.tree_util.tree_leaves_with_path(frozen):
            part, module, *_, leaf = (key.key for key in path)
            in_norm = norm == 'frozen' and leaf in ('scale', 'bias')
            expected = part == 'backbone' and (module.startswith(first) or in_norm)
            assert fixed == expected, (stages, path)


def test_frozen_are_the_stages_of_a_resnet_inside_another_module():
    backbone = Wrapped(resnet.ResNet(26, 3, frozen_stages=2, width=8))
    model = rpn.RPN(backbone, rpn.RPNHead(K), (4, 8))
    params = jax.eval_shape(model.init, KEY, shape_of(1, 32, 32, 3))['params']
    for path, fixed in jax.tree_util.tree_leaves_with_path(rpn.frozen(model, params)):
        names = [key.key for key in path]
        in_stage = names[2].startswith(('stem', 'conv2'))
        in_norm = 'inner' in names and names[-1] in ('scale', 'bias')
        assert fixed == (in_stage or in_norm), names
    assert {name for name in params['backbone'] if name != 'inner'} == {'Conv_0', 'Conv_1'}


# Initial weights, errors


@pytest.mark.parametrize('init', ['normal', 'uniform'])
def test_the_head_begins_as_in_the_paper_or_as_torch_and_the_backbone_with_it(init):
    model = built(init=init)
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
    jaxpr = str(jax.make_jaxpr(model.init)(KEY, np.zeros((1, 32, 32, 3), np.float32)))
    assert ('= erf_inv' in jaxpr) == (init == 'normal')  # how a uniform draw becomes a normal one


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        *(('sizes', value) for value in [(), (0,), ((32,), (64,))]),
        *(('aspect_ratios', value) for value in [(), (-1.0,)]),
    ],
)
def test_anchors_that_make_no_network_are_refused(key, value):
    config = config_of()
    anchors = {**config.anchors, key: value}
    with pytest.raises(InputError, match='anchors: sizes'):
        rpn.build(config.model, anchors)
