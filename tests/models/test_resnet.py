"""The backbone against a NumPy twin in torch's conventions: strides, dilations, norms, freezing."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CANVAS,
    KEY,
    SMALL_RESNET,
    assert_near,
    numpy_convolution,
    random_image,
    random_variables,
    shapes_of,
)

from rpn_jax.errors import InputError
from rpn_jax.models import resnet

pytestmark = pytest.mark.usefixtures('quick_compilation')


def output_shapes(model, canvas=CANVAS):
    outputs, _ = jax.eval_shape(model.init_with_output, KEY, np.zeros(canvas, np.float32))
    return {name: output.shape for name, output in outputs.items()}


def spatial_convolutions(model):
    """Returns (stride, dilation) of each 3x3 convolution as XLA is given it, one list per stage."""
    model = model.clone(width=8)  # the stem, and wide ones by Winograd's filtering, are hidden
    jaxpr = jax.make_jaxpr(model.apply)(shapes_of(model), random_image())
    convolutions = [e.params for e in jaxpr.eqns if e.primitive.name == 'conv_general_dilated']
    steps = [(p['window_strides'][0], p['rhs_dilation'][0]) for p in convolutions]
    counts = enumerate(resnet.BLOCKS[model.depth], start=2)
    return {f'conv{stage}': [steps.pop(0) for _ in range(n)] for stage, n in counts}


def applied(model, variables, images):
    """Returns the outputs of a network, compiled as one."""
    return jax.jit(model.apply)(variables, images)


def numpy_norm(x, params, stats, groups):
    if stats is None:
        b, h, w, c = x.shape
        grouped = x.reshape(b, h * w, groups, c // groups)
        axes = dict(axis=(1, 3), keepdims=True)
        x = (grouped - grouped.mean(**axes)) / np.sqrt(grouped.var(**axes) + 1e-5)
        return x.reshape(b, h, w, c) * params['scale'] + params['bias']
    scale = params['scale'] / np.sqrt(stats['var'].astype(np.float64) + 1e-5)
    return (x - stats['mean']) * scale + params['bias']


def numpy_pool(x):
    h, w = ((n + 1) // 2 for n in x.shape[1:3])
    x = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-np.inf)
    windows = [x[:, i::2][:, :h, j::2][:, :, :w] for i in range(3) for j in range(3)]
    return np.max(windows, axis=0)


def numpy_block(x, block, stats, groups, stride, dilation, stride_in_1x1):
    def norm(x, name):
        return numpy_norm(x, block[name], stats and stats[name], groups)

    early, late = (stride, 1) if stride_in_1x1 else (1, stride)
    y = norm(numpy_convolution(x, block['conv1']['kernel'], early), 'norm1')
    y = numpy_convolution(np.maximum(y, 0), block['conv2']['kernel'], late, dilation)
    y = numpy_convolution(np.maximum(norm(y, 'norm2'), 0), block['conv3']['kernel'])
    y = norm(y, 'norm3')
    if 'shortcut_conv' in block:
        x = norm(numpy_convolution(x, block['shortcut_conv']['kernel'], stride), 'shortcut_norm')
    return np.maximum(x + y, 0)


def numpy_resnet(model, variables, x):
    """Computes the stages' outputs in float64; a dilated stage has stride 1, as in torchvision."""
    params, stats = variables['params'], variables.get('batch_stats', {})
    groups, previous, outputs = math.gcd(32, model.width), 1, {}
    x = numpy_convolution(x, params['stem_conv']['kernel'], 2)
    x = numpy_norm(x, params['stem_norm'], stats.get('stem_norm'), groups)
    x = numpy_pool(np.maximum(x, 0))
    for stage, dilation in enumerate(model.dilations[: model.last_stage - 1], start=2):
        for block in range(resnet.BLOCKS[model.depth][stage - 2]):
            keeps = block == 0 and dilation > 1 and not model.dilate_first_block
            name = f'conv{stage}_block{block}'
            stride = 2 if block == 0 and stage > 2 and dilation == 1 else 1
            steps = stride, previous if keeps else dilation, model.stride_in_1x1
            x = numpy_block(x, params[name], stats.get(name), groups, *steps)
        outputs[f'conv{stage}'], previous = x, dilation
    return outputs


@pytest.mark.parametrize(
    'changes',
    [
        dict(),
        dict(stride_in_1x1=True, norm='group'),
        dict(dilations=(1, 1, 2, 4), stride_in_1x1=True),
        dict(dilations=(1, 1, 1, 2), dilate_first_block=True),
        dict(dilations=(2, 3, 5, 7)),
        dict(dilations=(1, 7, 1, 1), last_stage=3),
    ],
    ids=str,
)
def test_every_stage_agrees_with_numpy(changes):
    model = SMALL_RESNET(**changes)
    variables = random_variables(model)
    assert ('batch_stats' in variables) == (model.norm != 'group')
    ours = applied(model, variables, random_image())
    theirs = numpy_resnet(model, variables, random_image())
    assert list(ours) == list(theirs) == ['conv2', 'conv3', 'conv4', 'conv5'][: len(ours)]
    for name in theirs:
        assert_near(ours[name], theirs[name])


@pytest.mark.parametrize(
    ('depth', 'blocks', 'parameters'),
    [  # torchvision's counts without the classifier; it has no 26
        (26, (2, 2, 2, 2), 0),
        (50, (3, 4, 6, 3), 25_557_032 - 2_049_000),
        (101, (3, 4, 23, 3), 44_549_160 - 2_049_000),
        (152, (3, 8, 36, 3), 60_192_808 - 2_049_000),
    ],
)
def test_a_depth_has_its_blocks(depth, blocks, parameters):
    params = shapes_of(resnet.ResNet(depth, 5))['params']
    names = {f'conv{s}_block{b}' for s, n in enumerate(blocks, 2) for b in range(n)}
    assert set(params) == names | {'stem_conv', 'stem_norm'}
    if parameters:
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize('width', [8, 12, 64])
@pytest.mark.parametrize('norm', ['frozen', 'group'])
def test_width_is_the_stem_and_doubles_with_each_stage(width, norm):
    model = SMALL_RESNET(width=width, norm=norm)
    assert shapes_of(model)['params']['stem_conv']['kernel'].shape == (7, 7, 3, width)
    channels = [shape[-1] for shape in output_shapes(model).values()]
    assert channels == [4 * width, 8 * width, 16 * width, 32 * width]


@pytest.mark.parametrize(
    ('last_stage', 'dilations', 'stride'),
    [
        (3, (1, 1, 1, 1), 8),
        (4, (1, 1, 1, 1), 16),
        (5, (1, 1, 1, 1), 32),
        (5, (1, 1, 1, 2), 16),
        (5, (3, 1, 5, 7), 8),
    ],
)
def test_features_cover_the_canvas_rounded_up(last_stage, dilations, stride):
    model = SMALL_RESNET(last_stage=last_stage, dilations=dilations)
    assert resnet.total_stride(last_stage, dilations) == stride
    for canvas in [(1, 64, 96, 3), (2, 33, 47, 3)]:
        outputs = output_shapes(model, canvas)
        assert list(outputs) == [f'conv{stage}' for stage in range(2, last_stage + 1)]
        expected = (canvas[0], *(math.ceil(side / stride) for side in canvas[1:3]))
        assert outputs[f'conv{last_stage}'][:3] == expected


def test_the_first_block_keeps_the_dilation_before_it():
    model = SMALL_RESNET(dilations=(2, 3, 1, 5))
    expected = {
        'conv2': [(1, 1), (1, 2)],  # stride and dilation, block by block
        'conv3': [(1, 2), (1, 3)],
        'conv4': [(2, 1), (1, 1)],
        'conv5': [(1, 1), (1, 5)],
    }
    assert spatial_convolutions(model) == expected
    expected |= {'conv2': [(1, 2)] * 2, 'conv3': [(1, 3)] * 2, 'conv5': [(1, 5)] * 2}
    assert spatial_convolutions(model.clone(dilate_first_block=True)) == expected


def test_a_dilated_network_is_the_strided_one_at_more_cells():
    """With torchvision's first block; with detectron2's it is another function of the image."""
    plain, dilated = SMALL_RESNET(), SMALL_RESNET(dilations=(1, 1, 2, 4))
    variables = random_variables(plain)
    other = dilated.clone(dilate_first_block=True)
    strided, ours, differing = (
        applied(model, variables, random_image())['conv5'] for model in (plain, dilated, other)
    )
    assert_near(ours[:, ::4, ::4], strided)
    assert np.abs(differing[:, ::4, ::4] - strided).max() > 0.01 * np.abs(strided).max()


def test_the_stride_sits_where_the_weights_want_it():
    for early, strides in ((False, [1, 2, 2, 2]), (True, [1, 1, 1, 1])):
        steps = spatial_convolutions(SMALL_RESNET(stride_in_1x1=early))
        assert [stage[0][0] for stage in steps.values()] == strides


# Norms in training


SHALLOW = functools.partial(SMALL_RESNET, depth=14, axis_name=resnet.AXIS)


@pytest.fixture(scope='module', autouse=True)
def shallow():
    """Lets there be a network of one block in each stage, which compiles faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 14, (1, 1, 1, 1))
        yield


def train_step(model, variables, images):
    """Applies the model in training to images [D, B, H, W, 3] of D devices; adds updated stats."""
    apply = functools.partial(model.apply, train=True, mutable=['batch_stats'])
    devices = jax.vmap(apply, (None, 0), axis_name=resnet.AXIS)
    return jax.jit(devices)(variables, images)


@pytest.fixture(scope='module')
def batches():
    shift = np.linspace(0, 1, 4, dtype=np.float32).reshape(4, 1, 1, 1)
    return random_image(2, (4, 32, 32, 3)) + shift


@pytest.fixture(scope='module')
def batch_norm(batches):
    """Returns variables, outputs and statistics of a step with batch norm on two devices."""
    variables = random_variables(SHALLOW(norm='batch'))
    images = batches.reshape(2, 2, 32, 32, 3)
    return variables, *train_step(SHALLOW(norm='batch'), variables, images)


def test_batch_norm_moves_every_statistic_towards_the_batch(batch_norm, batches):
    variables, _, updated = batch_norm
    old, new = variables['batch_stats'], updated['batch_stats']
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.all(a != b[0]), old, new)))
    stem = numpy_convolution(batches, variables['params']['stem_conv']['kernel'], 2)
    for key, value in (('mean', stem.mean((0, 1, 2))), ('var', stem.var((0, 1, 2)))):
        assert_near(new['stem_norm'][key][0], 0.9 * old['stem_norm'][key] + 0.1 * value)


def test_batch_norm_does_not_see_the_number_of_devices_unless_it_has_no_axis(batch_norm, batches):
    variables, outputs, updated = batch_norm
    together = train_step(SHALLOW(norm='batch', axis_name=None), variables, batches[None])
    for stage, output in together[0].items():
        assert_near(outputs[stage].reshape(output[0].shape), output[0], 1e-4)
    for ours, theirs in zip(*map(jax.tree.leaves, (updated, together[1])), strict=True):
        assert_near(ours[0], theirs[0], 1e-4)
        np.testing.assert_array_equal(ours[0], ours[1])
    apart = SHALLOW(norm='batch', axis_name=None, last_stage=3)
    own = {k: {n: tree[n] for n in shapes_of(apart)[k]} for k, tree in variables.items()}
    _, updated = train_step(apart, own, batches.reshape(2, 2, 32, 32, 3))
    first, second = updated['batch_stats']['stem_norm']['mean']
    assert not np.allclose(first, second)


@pytest.mark.parametrize('frozen_stages', [1, 3])
def test_frozen_stages_use_and_keep_their_statistics(batch_norm, batches, frozen_stages):
    variables = batch_norm[0]
    model = SHALLOW(norm='batch', frozen_stages=frozen_stages)
    outputs, updated = train_step(model, variables, batches[None])
    stored = applied(model, variables, batches)
    for stage in range(2, 6):
        ours, theirs = outputs[f'conv{stage}'][0], stored[f'conv{stage}']
        assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4) == (stage <= frozen_stages)
    for name, old in variables['batch_stats'].items():
        new = updated['batch_stats'][name]
        same = jax.tree.map(lambda a, b: np.array_equal(a, b[0]), old, new)
        assert set(jax.tree.leaves(same)) == {resnet.stage_of(name) <= frozen_stages}


def test_a_frozen_norm_never_reads_the_batch():
    model = SHALLOW(last_stage=3)
    variables = random_variables(model)
    outputs, updated = train_step(model, variables, random_image()[None])
    assert_near(outputs['conv3'][0], applied(model, variables, random_image())['conv3'])
    for old, new in zip(*map(jax.tree.leaves, (variables['batch_stats'], updated)), strict=True):
        np.testing.assert_array_equal(old, new[0])


def test_bfloat16_computes_in_halves_and_stores_in_full():
    half, full = SHALLOW(dtype='bfloat16', last_stage=3), SHALLOW(last_stage=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half))} == {jnp.dtype('float32')}
    variables = random_variables(full)
    ours, theirs = (applied(m, variables, random_image())['conv3'] for m in (half, full))
    assert ours.dtype == jnp.bfloat16
    assert_near(ours, theirs, 0.05)
    assert np.abs(ours - theirs).max() > 1e-3 * np.abs(theirs).max()  # it is no float32 in disguise


# Pieces


@pytest.mark.parametrize('side', [(1, 1), (7, 8), (9, 9)], ids=str)
def test_max_pool_and_its_gradient_are_those_of_reduce_window(side):
    x = np.random.default_rng(0).permutation(6 * side[0] * side[1]).astype(np.float32)  # no ties
    x = x.reshape(2, *side, 3) - x.size  # all negative: padding by zero would show

    def theirs(x):
        window, stride = (1, 3, 3, 1), (1, 2, 2, 1)
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, stride, padding)

    ours, ours_back = jax.vjp(jax.jit(resnet.max_pool), x)
    expected, expected_back = jax.vjp(theirs, x)
    np.testing.assert_array_equal(ours, expected)
    weights = np.random.default_rng(1).standard_normal(ours.shape).astype(np.float32)
    np.testing.assert_allclose(ours_back(weights)[0], expected_back(weights)[0], atol=1e-6)


def test_the_residual_is_a_rectified_sum_and_relu_has_no_slope_at_0():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    y[0, 0] = -x[0, 0]  # where the slope is that of jax.nn.relu, 0
    out, pull = jax.vjp(resnet.residual, x, y)
    expected, pull_expected = jax.vjp(lambda x, y: jax.nn.relu(x + y), x, y)
    np.testing.assert_array_equal(out, expected)
    for ours, theirs in zip(pull(jnp.ones_like(x)), pull_expected(jnp.ones_like(x)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    out, pull = jax.vjp(resnet.relu, np.float32([-1, 0, 2]))
    np.testing.assert_array_equal(out, [0, 0, 2])
    np.testing.assert_array_equal(pull(np.float32([5, 6, 7]))[0], [0, 0, 7])


def test_initial_kernels_follow_he_or_torch():
    def kernel(distribution):
        conv = resnet.Conv(128, 3, distribution=distribution)
        return np.asarray(conv.init(KEY, random_image(shape=(1, 3, 3, 32)))['params']['kernel'])

    normal, uniform = kernel('normal'), kernel('uniform')
    assert normal.std() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert np.abs(normal).max() > 3 * normal.std()  # a bell has tails
    bound = math.sqrt(1 / (9 * 32))  # torch.nn.Conv2d.reset_parameters
    assert 0.999 * bound < np.abs(uniform).max() <= bound
    assert uniform.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        *(('depth', 34), ('last_stage', 2), ('norm', 'layer'), ('width', 0)),
        *(('frozen_stages', 6), ('frozen_stages', -1), ('init', 'zeros'), ('dtype', 'float99')),
        *(('dilations', value) for value in [(1, 1, 1), (1, 1, 1, 0), (1, 1, 1, 1.5)]),
        *(('remat', value) for value in [(1,), (4, 5), ('conv4',)]),
    ],
)
def test_a_wrong_keyword_is_named(key, value):
    resnet.check(depth=101)
    with pytest.raises(InputError, match=re.escape(f'{key}: {value!r}')):
        resnet.check(**{'depth': 101, key: value})
