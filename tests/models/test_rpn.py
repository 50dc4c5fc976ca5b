"""The network as a whole: the head in its two ways, the order of anchors, and any backbone."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, PYRAMIDS, RATIOS, Strided, config_of, normal, shape_of

from rpn_jax.errors import InputError
from rpn_jax.models import fpn, resnet, rpn

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


def sampled_anchors(shapes, slots=13):
    """Returns sampled anchors [2, slots], one of them twice, and neighbours in a cell.

    The first are at the ends of each level, where the neighbourhoods reach beyond it.
    """
    cells = np.array([math.prod(shape) for shape in shapes])
    ends = np.cumsum(cells)
    index = np.random.default_rng(1).integers(0, K * ends[-1], (2, slots))
    corners = [*(ends - 1), *(ends - cells), *(ends - cells + [w - 1 for _, w in shapes])]
    index[0, : len(corners[:9])] = K * np.array(corners[:9]) + 1
    index[1, :3] = index[0, 0], index[0, 0], index[0, 0] + 1
    return index


@pytest.mark.parametrize(
    ('name', 'convs'), [('one level', 1), ('two levels', 2), ('five levels', 1)]
)
def test_the_sampled_head_is_the_dense_head_in_values_and_gradients(name, convs):
    shapes = PYRAMIDS[name][0]
    index = sampled_anchors(shapes)
    assert index.shape[1] < sum(map(math.prod, shapes))  # so the head does sample
    head, weights = rpn.RPNHead(K, convs), (normal(2, 13), normal(2, 13, 4, seed=1))

    def loss(params, maps, sampled):
        answers = head.apply({'params': params}, maps, index if sampled else None)
        if not sampled:
            answers = [jax.vmap(lambda x, i: x[i])(x, index) for x in answers]
        return sum((x * weight).sum() for x, weight in zip(answers, weights, strict=True)), answers

    both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    arguments = head_params(convs=convs), maps_of(shapes)
    dense, sampled = (jax.tree.leaves(both(*arguments, sampled)) for sampled in (False, True))
    assert len(sampled) == 3 + 4 + 2 * convs + len(shapes)
    for a, b in zip(sampled, dense, strict=True):
        assert np.abs(a - b).max() <= 4e-6 * np.abs(b).max() > 0


def test_the_dense_head_serves_where_cells_are_few():
    maps, variables = maps_of([(7, 9), (2, 1)]), {'params': head_params()}
    for slots, convolutions in [(64, 0), (65, 2), (260, 2)]:
        index = np.zeros((2, slots), np.int32)
        jaxpr = jax.make_jaxpr(rpn.RPNHead(K).apply)(variables, maps, index)
        assert [e.primitive.name for e in jaxpr.eqns].count('conv_general_dilated') == convolutions


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


@pytest.mark.parametrize('name', PYRAMIDS)
def test_an_anchor_gets_the_answer_of_its_cell_and_type(name):
    shapes, strides, sizes, _ = PYRAMIDS[name]
    sizes = [size[:1] for size in sizes]  # as many types in each level
    model = rpn.RPN(Strided(), rpn.RPNHead(K), strides, sizes, RATIOS)
    anchors = rpn.anchors_of_maps(model, shapes)
    # A head that sees the middle of the 3x3 window alone, which holds the number of its cell.
    params = jax.tree.map(np.zeros_like, head_params())
    params['conv']['kernel'][1, 1] = np.eye(C)
    for layer, step, outputs in (('objectness', 4.0, K), ('deltas', 1.0, 4 * K)):
        params[layer]['kernel'][..., 0, :] = 1000
        params[layer]['bias'][:] = step * np.arange(outputs)
    counts = [math.prod(shape) for shape in shapes]
    first = np.cumsum([0, *counts])  # cell of each level
    maps = [np.zeros((2, *shape, C), np.float32) for shape in shapes]
    for x, start, count in zip(maps, first, counts, strict=False):
        x[..., 0] = start + np.arange(count).reshape(x.shape[1:3])
    apply = functools.partial(
        model.apply, {'params': {'head': params}}, method='from_backbone_maps'
    )
    logits, deltas = map(np.asarray, jax.jit(apply)(tuple(maps)))
    cell = first[anchors.level] + np.asarray(anchors.cell)
    slot = np.asarray(anchors.type) - K * np.asarray(anchors.level)
    np.testing.assert_array_equal(logits, [1000 * cell + 4 * slot] * 2)
    np.testing.assert_array_equal(deltas, logits[..., None] + np.arange(4))
    for slots in (7, 200):  # fewer than cells, and more
        index = np.random.default_rng(0).integers(0, len(cell), (2, slots))
        chosen = jax.jit(apply)(tuple(maps), index)
        np.testing.assert_array_equal(chosen[0], logits[0][index])
        np.testing.assert_array_equal(chosen[1], deltas[0][index])


@pytest.mark.parametrize(
    ('last_stage', 'dilations', 'shape'),
    [  # of the canvas at strides 8, 16, 32, 16 and 8, rounded up
        (3, (1, 1, 1, 1), (10, 14)),
        (4, (1, 1, 1, 1), (5, 7)),
        (5, (1, 1, 1, 1), (3, 4)),
        (5, (1, 1, 1, 7), (5, 7)),
        (5, (3, 1, 5, 7), (10, 14)),
    ],
)
def test_there_is_an_answer_for_every_anchor(last_stage, dilations, shape):
    model = built(last_stage=last_stage, dilations=dilations, dtype='bfloat16')
    images, count = shape_of(2, 75, 110, 3), 15 * math.prod(shape)
    (logits, deltas), variables = jax.eval_shape(model.init_with_output, KEY, images)
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


@pytest.mark.parametrize(('form', 'strides'), [('map', (8,)), ('list', (8, 16)), ('dict', (16,))])
def test_any_module_can_be_the_backbone(form, strides):
    sizes = tuple((2 * stride,) for stride in strides)
    model, images = rpn.RPN(Strided(form), rpn.RPNHead(K), strides, sizes, RATIOS), (2, 30, 41, 3)
    (logits, deltas), variables = jax.eval_shape(model.init_with_output, KEY, shape_of(*images))
    count = sum(rpn.anchors_of(model, (30, 41)).levels)
    assert logits.shape == (2, count) and deltas.shape == (2, count, 4)
    features = functools.partial(model.apply, method='features')
    maps = jax.eval_shape(features, variables, shape_of(*images))
    assert isinstance(maps, tuple) and rpn.map_shapes(maps) == rpn.feature_shapes(model, (30, 41))
    assert not any(jax.tree.leaves(rpn.frozen(model, variables['params'])))


def test_maps_that_are_not_of_the_strides_are_an_error():
    for strides in [(8,), (8, 32), (8, 16, 32)]:
        model = rpn.RPN(Strided('tuple'), rpn.RPNHead(K), strides)
        with pytest.raises(ValueError, match=re.escape(f'strides {strides}')):
            jax.eval_shape(model.init, KEY, shape_of(1, 64, 64, 3))


def frozen_of(model):
    """Returns {names of a parameter below the network: whether it is frozen}."""
    params = jax.eval_shape(model.init, KEY, shape_of(1, 32, 32, 3))['params']
    leaves = jax.tree_util.tree_leaves_with_path(rpn.frozen(model, params))
    return {tuple(key.key for key in path): fixed for path, fixed in leaves}


@pytest.mark.parametrize(
    ('norm', 'stages'),
    [('frozen', 0), ('frozen', 2), ('frozen', 5), ('batch', 1), ('batch', 4), ('group', 3)],
)
def test_frozen_are_the_first_stages_and_frozen_norms(norm, stages):
    first = tuple(['stem', 'conv2', 'conv3', 'conv4', 'conv5'][:stages])
    for names, fixed in frozen_of(built(norm=norm, frozen_stages=stages, last_stage=5)).items():
        in_norm = norm == 'frozen' and names[-1] in ('scale', 'bias')
        expected = names[0] == 'backbone' and (names[1].startswith(first) or in_norm)
        assert fixed == expected, names


def test_frozen_are_the_stages_of_a_resnet_inside_another_module():
    backbone = Wrapped(resnet.ResNet(26, 3, frozen_stages=2, width=8))
    frozen = frozen_of(rpn.RPN(backbone, rpn.RPNHead(K), (4, 8)))
    for names, fixed in frozen.items():
        in_norm = 'inner' in names and names[-1] in ('scale', 'bias')
        assert fixed == (names[2].startswith(('stem', 'conv2')) or in_norm), names
    assert {names[1] for names in frozen} >= {'inner', 'Conv_0', 'Conv_1'}


# The way of its convolutions


def operations(model, variables, images):
    """Returns how many (convolutions, products, choices by platform) a network is traced to."""
    jaxpr = str(jax.make_jaxpr(model.apply)(variables, images))
    words = 'conv_general_dilated[', 'dot_general[', 'platform_index['
    return tuple(map(jaxpr.count, words))


@pytest.mark.parametrize('fpn_stages', [(), (3, 4)])
def test_all_convolutions_are_those_of_xla_where_that_is_asked_for(fpn_stages):
    images = normal(1, 64, 64, 3)
    config = config_of(depth=26, width=8, fpn_channels=16, fpn_stages=fpn_stages, norm='frozen')
    sizes = ((32,), (64,), (128,)) if fpn_stages else (32,)
    auto, plain = (
        rpn.build(dict(config.model) | {'conv': conv}, dict(config.anchors) | {'sizes': sizes})
        for conv in ('auto', 'xla')
    )
    variables = auto.init(KEY, images)
    layers = 22 + (4 + 3 if fpn_stages else 1)  # of the backbone, of the pyramid, of the head
    blocks = 6  # whose sums with the shortcut are not fused on CPUs
    counted = operations(plain, variables, images)
    assert counted == (layers, 2, blocks) != operations(auto, variables, images)
    results = [jax.jit(model.apply)(variables, images) for model in (auto, plain)]
    for own, expected in zip(*results, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


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
        *(('depth', 34), ('last_stage', 2), ('norm', 'layer'), ('width', 0)),
        *(('frozen_stages', 6), ('frozen_stages', -1), ('init', 'zeros'), ('dtype', 'float99')),
        ('conv', 'cudnn'),
        *(('dilations', value) for value in [(1, 1, 1), (1, 1, 1, 0), (1, 1, 1, 1.5)]),
        *(('remat', value) for value in [(1,), (4, 5), ('conv4',)]),
        *(('sizes', value) for value in [(), (0,), ((32,), (64,))]),
        *(('aspect_ratios', value) for value in [(), (-1.0,)]),
    ],
)
def test_what_makes_no_network_is_named(key, value):
    config = config_of()
    model, anchors = dict(config.model), dict(config.anchors)
    (anchors if key in anchors else model)[key] = value
    named = 'anchors: sizes' if key in anchors else f'{key}: {value!r}'
    with pytest.raises(InputError, match=re.escape(named)):
        rpn.build(model, anchors)


@pytest.mark.parametrize(
    ('module', 'shape', 'complaint'),
    [
        (resnet.ResNet(34), (1, 32, 32, 3), 'depth: 34 is not one of'),
        (resnet.ResNet(26, 6, norm='group'), (1, 32, 32, 3), 'last_stage: 6 is not one of'),
        (resnet.ResNet(26, norm='layer'), (1, 32, 32, 3), "norm: 'layer' is not one of"),
        (resnet.ResNet(26, convolution='x'), (1, 32, 32, 3), "conv: 'x' is not one of"),
        (fpn.FPN(8, norm='layer'), (1, 8, 8, 4), "fpn_norm 'layer'"),
        (fpn.FPN(8, extra=-1), (1, 8, 8, 4), 'fpn_extra -1'),
    ],
)
def test_a_module_by_itself_names_what_is_wrong_with_it(module, shape, complaint):
    with pytest.raises(InputError, match=complaint):
        jax.eval_shape(module.init, KEY, shape_of(*shape))


def test_modules_by_themselves_take_types_for_their_names_and_one_map():
    images, maps = shape_of(1, 32, 32, 3), shape_of(2, 8, 8, 4)
    made = jax.eval_shape(
        lambda x: resnet.ResNet(26, 3, width=8, dtype=jnp.bfloat16).init_with_output(KEY, x)[0],
        images,
    )
    assert made['conv3'].dtype == jnp.bfloat16
    levels = jax.eval_shape(lambda x: fpn.FPN(8).init_with_output(KEY, x)[0], maps)
    assert [level.shape for level in levels] == [(2, 8, 8, 8), (2, 4, 4, 8)]
