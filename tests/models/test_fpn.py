"""The pyramid against NumPy, whole and at sampled cells, with every norm and shape of levels."""

import functools
import math

import jax
import numpy as np
import pytest
from helpers import KEY, assert_near, config_of, normal, numpy_convolution, shape_of

from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.models.fpn import FPN, enlarged

LEVELS = {  # shapes of the backbone's maps
    'even': ((8, 12), (4, 6), (2, 3)),
    'odd': ((9, 13), (5, 7), (3, 4), (2, 2)),
    'dilated': ((7, 6), (4, 3), (4, 3)),
    'one': ((5, 4),),
}
CHANNELS = (3, 4, 6, 8)


def maps_of(name):
    shapes = LEVELS[name]
    return tuple(normal(2, *shape, CHANNELS[i], seed=i) for i, shape in enumerate(shapes))


def filled(shapes):
    """Returns variables of these shapes in which every number matters."""
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [0.3 * normal(*leaf.shape, seed=seed) for seed, leaf in enumerate(leaves)]
    variables = jax.tree.unflatten(tree, drawn)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.abs(x) + 0.5 if path[-1].key in ('var', 'scale') else x, variables
    )


def torch_nearest(x, shape):
    """Enlarges [B, h, w, C] as torch's interpolate does: cell i reads floor(i * h / h')."""
    rows, columns = (
        np.arange(wanted) * now // wanted for now, wanted in zip(x.shape[1:3], shape, strict=True)
    )
    return x[:, rows][:, :, columns]


def loop_pyramid(variables, maps, extra):
    """Returns the levels by the definition (Lin et al. 2017, section 3), in float64."""
    params, stats = variables['params'], variables.get('batch_stats', {})

    def layer(x, name):
        x = numpy_convolution(x, params[name]['kernel'])
        if (norm := f'{name}_norm') not in params:
            return x + params[name]['bias']
        mean, var = stats[norm]['mean'], stats[norm]['var']
        return (x - mean) / np.sqrt(var + 1e-5) * params[norm]['scale'] + params[norm]['bias']

    sums = [layer(x, f'lateral{i}') for i, x in enumerate(maps)]
    for i in reversed(range(len(sums) - 1)):
        sums[i] = sums[i] + torch_nearest(sums[i + 1], sums[i].shape[1:3])
    outputs = [layer(x, f'output{i}') for i, x in enumerate(sums)]
    for _ in range(extra):
        outputs.append(outputs[-1][:, ::2, ::2])
    return outputs


@pytest.mark.parametrize('name', LEVELS)
@pytest.mark.parametrize(('norm', 'extra'), [('', 1), ('frozen', 0), ('batch', 2)])
def test_the_pyramid_is_that_of_the_paper(name, norm, extra):
    pyramid, maps = FPN(16, extra, norm), maps_of(name)
    variables = filled(jax.eval_shape(pyramid.init, KEY, maps))
    assert ('bias' in variables['params']['lateral0']) == (norm == '')
    for ours, theirs in zip(
        jax.jit(pyramid.apply)(variables, maps), loop_pyramid(variables, maps, extra), strict=True
    ):
        assert_near(ours, theirs)


@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_a_live_norm_sees_the_whole_map(norm):
    pyramid, maps = FPN(32, 0, norm), maps_of('one')
    variables = filled(jax.eval_shape(pyramid.init, KEY, maps))
    apply = functools.partial(pyramid.apply, train=True, mutable=['batch_stats'])
    (level,), updated = jax.jit(apply)(variables, maps)
    norm_of_output = variables['params']['output0_norm']
    normalised = (np.asarray(level) - norm_of_output['bias']) / norm_of_output['scale']
    axes = (0, 1, 2) if norm == 'batch' else (1, 2)  # 32 groups of one channel
    assert np.abs(normalised.mean(axes)).max() < 1e-5
    assert np.abs(normalised.std(axes) - 1).max() < 1e-2
    assert set(updated) == ({'batch_stats'} if norm == 'batch' else set())


def test_a_layer_begins_as_in_torchvision_and_detectron2():
    params = jax.jit(FPN(64).init)(KEY, (np.zeros((1, 2, 2, 48), np.float32),))['params']
    for name, layer in params.items():
        kernel = np.asarray(layer['kernel'])
        bound = math.sqrt(3 / np.prod(kernel.shape[:3]))
        assert 0.95 * bound < np.abs(kernel).max() <= bound, name
        assert not layer['bias'].any()


@pytest.mark.parametrize('shape', [(7, 9), (4, 7), (1, 3)])
def test_maps_that_do_not_fit_are_an_error(shape):
    with pytest.raises(ValueError, match='a feature map of'):
        enlarged(np.zeros((1, 2, 3, 1)), shape)


# In a network: the same numbers at sampled cells


def network(**model):
    """Returns a narrow network with a pyramid."""
    model = {'depth': 26, 'last_stage': 5, 'fpn_stages': (2, 3, 4, 5), 'fpn_channels': 8} | model
    config = config_of(**model)
    levels = len(config.model.fpn_stages) + config.model.fpn_extra
    config.anchors.sizes = tuple((2 ** (3 + level),) for level in range(levels))
    return rpn.build(config.model, config.anchors)


@pytest.mark.parametrize(
    'model',
    [
        {},
        {'head_convs': 2, 'fpn_norm': 'batch'},
        {'fpn_norm': 'frozen', 'fpn_extra': 0, 'dilations': (1, 1, 1, 2)},
        {'fpn_norm': 'group', 'fpn_stages': (3, 4, 5), 'fpn_extra': 2},
        {'fpn_stages': (2, 3), 'last_stage': 3, 'head_convs': 3},
    ],
    ids=str,
)
def test_the_sampled_pyramid_is_the_whole_one_in_values_and_gradients(model):
    model, canvas = network(**model), (93, 130)
    model = model.clone(fpn=model.fpn.clone(axis_name=None))  # outside of pmap
    shapes = rpn.feature_shapes(model, canvas)
    images = normal(2, *canvas, 3)
    maps_like = jax.eval_shape(
        lambda: model.init_with_output(KEY, images, method='backbone_maps')[0]
    )
    maps = tuple(normal(*x.shape, seed=seed) for seed, x in enumerate(maps_like))
    variables = filled(jax.eval_shape(model.init, KEY, images))
    params = {name: variables['params'][name] for name in ('fpn', 'head')}
    stats = {k: v for k, v in variables.get('batch_stats', {}).items() if k == 'fpn'}
    anchors = rpn.anchors_of(model, canvas)
    assert model.level_shapes(maps) == shapes
    random = np.random.default_rng(0)
    index = random.integers(0, len(anchors.boxes), (2, 12))
    ends = np.cumsum(anchors.levels)
    index[0, : 2 * len(ends)] = [*(ends - 1), *(ends - anchors.levels)]  # corners of each level
    assert model.head.pays(shapes, index.shape[1])  # so that it does sample
    weights = normal(2, 12), normal(2, 12, 4, seed=1)

    def loss(params, maps, sampled):
        answers, _ = model.apply(
            {'params': params, 'batch_stats': stats},
            maps,
            index if sampled else None,
            train=True,
            mutable=['batch_stats'],
            method='from_backbone_maps',
        )
        if not sampled:
            answers = [jax.vmap(lambda x, i: x[i])(x, index) for x in answers]
        return sum((x * weight).sum() for x, weight in zip(answers, weights, strict=True)), answers

    both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    dense, sampled = (both(params, maps, sampled) for sampled in (False, True))
    paths = jax.tree_util.tree_leaves_with_path
    for (path, a), (_, b) in zip(paths(sampled), paths(dense), strict=True):
        scale = np.abs(b).max()
        if 'bias' in str(path) and model.fpn.norm in ('batch', 'group'):
            scale = max(scale, 1e-2)
        assert np.abs(a - b).max() <= 1e-5 * scale > 0, path


@pytest.mark.xla
def test_the_sampled_pyramid_costs_its_share_of_the_cells():
    """At 600 x 600 the head and the last convolution of the finest levels read a tenth."""
    config = config_of(depth=26, width=8, last_stage=5, fpn_stages=(2, 3, 4, 5), fpn_channels=48)
    config.anchors.sizes = tuple((size,) for size in (32, 64, 128, 256, 512))
    model = rpn.build(config.model, config.anchors)
    variables = jax.eval_shape(model.init, KEY, shape_of(1, 600, 600, 3))
    variables = {'params': {k: v for k, v in variables['params'].items() if k != 'backbone'}}
    maps = tuple(
        shape_of(1, side, side, channels)
        for side, channels in ((150, 32), (75, 64), (38, 128), (19, 256))
    )

    def flops(*index):
        apply = functools.partial(model.apply, method='from_backbone_maps')
        compiled = jax.jit(apply).lower(variables, maps, *index).compile()
        return compiled.cost_analysis()['flops']

    cells = sum(math.prod(shape) for shape in rpn.feature_shapes(model, (600, 600)))
    product = 2 * 9 * 48 * 48  # of a 3x3 convolution at a cell
    saved = flops() - flops(shape_of(1, 256, dtype=np.int32))
    patches, coarse = 2 * 9 * 256, 38**2 + 19**2  # cells of which the output is computed still
    expected = product * (cells - 256 + cells - 10**2 - patches - coarse)
    assert saved == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ('model', 'sizes', 'message'),
    [
        (
            {'fpn_stages': (2, 3, 4)},
            4,
            r'\(2, 3, 4\) end at conv4, the backbone at conv5; set last',
        ),
        ({'fpn_stages': (3, 5)}, 3, 'leave out a stage'),
        ({'fpn_stages': (5, 4)}, 3, 'from fine to coarse'),
        (
            {},
            4,
            r'sizes .* for each of 5 levels \(the strides of the levels are \(4, 8, 16, 32, 64',
        ),
        ({'fpn_channels': 0}, 5, 'fpn_channels: 0'),
        ({'fpn_norm': 'layer'}, 5, "fpn_norm 'layer'"),
    ],
)
def test_what_makes_no_pyramid_is_named(model, sizes, message):
    config = config_of(**{'last_stage': 5, 'fpn_stages': (2, 3, 4, 5)} | model)
    config.anchors.sizes = tuple((2 ** (3 + level),) for level in range(sizes))
    with pytest.raises(InputError, match=message):
        rpn.build(config.model, config.anchors)


def test_levels_need_as_many_sizes_each():
    config = config_of(last_stage=5, fpn_stages=(2, 3, 4, 5))
    config.anchors.sizes = ((8, 12), (16,), (32,), (64,), (128,))
    with pytest.raises(InputError, match='as many of each level'):
        rpn.build(config.model, config.anchors)
