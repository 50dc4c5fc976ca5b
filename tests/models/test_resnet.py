"""The backbone against a NumPy twin in torch's conventions: strides, dilations, norms, freezing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    KEY,
    SMALL_RESNET,
    assert_near,
    numpy_convolution,
    random_image,
    random_variables,
    shapes_of,
)

from rpn_jax.models import resnet


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
        dict(stride_in_1x1=True, norm='group', last_stage=4),
        dict(dilations=(2, 3, 1, 5)),  # a first block keeps the dilation before it
        dict(dilations=(1, 2, 2, 4), dilate_first_block=True, stride_in_1x1=True),
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
    for stage, name in enumerate(theirs, start=2):
        assert_near(ours[name], theirs[name])
        assert ours[name].shape[-1] == model.width * 2**stage


def test_groups_divide_any_width():
    params = shapes_of(SMALL_RESNET(norm='group', width=12))['params']
    assert params['stem_conv']['kernel'].shape == (7, 7, 3, 12)


@pytest.mark.parametrize(
    ('depth', 'parameters'), [(50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
)
def test_a_depth_has_as_many_parameters_as_in_torchvision(depth, parameters):
    params = shapes_of(resnet.ResNet(depth, 5))['params']
    classifier = 2049 * 1000
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters - classifier


# Norms in training


SHALLOW = functools.partial(SMALL_RESNET, depth=14, last_stage=3, axis_name=resnet.AXIS)


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
    unsynchronised = SHALLOW(norm='batch', axis_name=None)
    together = train_step(unsynchronised, variables, batches[None])
    for stage, output in together[0].items():
        assert_near(outputs[stage].reshape(output[0].shape), output[0], 1e-4)
    for ours, theirs in zip(*map(jax.tree.leaves, (updated, together[1])), strict=True):
        assert_near(ours[0], theirs[0], 1e-4)
        np.testing.assert_array_equal(ours[0], ours[1])
    _, updated = train_step(unsynchronised, variables, batches.reshape(2, 2, 32, 32, 3))
    first, second = updated['batch_stats']['stem_norm']['mean']
    assert not np.allclose(first, second)


@pytest.mark.parametrize(('norm', 'frozen_stages'), [('batch', 1), ('batch', 2), ('frozen', 0)])
def test_frozen_stages_and_norms_use_and_keep_their_statistics(batches, norm, frozen_stages):
    model, fixed = SHALLOW(norm=norm, frozen_stages=frozen_stages), norm == 'frozen'
    variables = random_variables(model)
    outputs, updated = train_step(model, variables, batches[None])
    for stage, (name, stored) in enumerate(applied(model, variables, batches).items(), start=2):
        same = np.allclose(outputs[name][0], stored, rtol=1e-4, atol=1e-4)
        assert same == (fixed or stage <= frozen_stages)
    for name, old in variables['batch_stats'].items():
        new = updated['batch_stats'][name]
        same = jax.tree.map(lambda a, b: np.array_equal(a, b[0]), old, new)
        assert {*jax.tree.leaves(same)} == {fixed or resnet.stage_of(name) <= frozen_stages}


def test_bfloat16_computes_in_halves_and_stores_in_full():
    half, full = SHALLOW(dtype='bfloat16'), SHALLOW()
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
