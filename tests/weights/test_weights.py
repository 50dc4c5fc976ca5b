"""Weights by torchvision's names: there and back, what is passed over, and what is refused."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import variables_of
from safetensors.numpy import save, save_file

from rpn_jax import weights
from rpn_jax.errors import InputError


def zeros(variables):
    return jax.tree.map(np.zeros_like, variables)


def without_head(tensors):
    return {name: t for name, t in tensors.items() if not name.startswith('rpn.')}


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def variables():
    return variables_of()


@pytest.fixture
def tensors(variables):
    return weights.from_variables(variables)


# Names and shapes


@pytest.mark.parametrize('norm', ['frozen', 'batch', 'group'])
@pytest.mark.parametrize(('depth', 'last_stage'), [(26, 3), (50, 5), (101, 4), (152, 5)])
def test_there_and_back_is_the_same(depth, last_stage, norm):
    variables = variables_of(depth, last_stage, norm)
    tensors = weights.from_variables(variables)
    assert len(tensors) == len(jax.tree.leaves(variables))
    assert_equal(weights.to_variables(tensors, zeros(variables)), variables)


def test_names_are_those_of_torchvision():
    tensors = weights.from_variables(variables_of(50, 5))
    norm = {'weight', 'bias', 'running_mean', 'running_var'}
    expected = {'conv1.weight'} | {f'bn1.{part}' for part in norm}
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            for part in ('1', '2', '3'):
                expected.add(f'layer{layer}.{block}.conv{part}.weight')
                expected |= {f'layer{layer}.{block}.bn{part}.{name}' for name in norm}
        expected.add(f'layer{layer}.0.downsample.0.weight')
        expected |= {f'layer{layer}.0.downsample.1.{name}' for name in norm}
    for name in ('conv.0.0', 'cls_logits', 'bbox_pred'):
        expected |= {f'rpn.head.{name}.weight', f'rpn.head.{name}.bias'}
    assert set(tensors) == expected


def test_kernels_are_turned_into_torch_order(variables, tensors):
    assert tensors['conv1.weight'].shape == (8, 3, 7, 7)
    assert tensors['rpn.head.bbox_pred.weight'].shape == (12, 128, 1, 1)
    kernel = variables['params']['backbone']['conv3_block0']['conv2']['kernel']
    assert tensors['layer2.0.conv2.weight'][3, 5, 0, 2] == kernel[0, 2, 5, 3]
    mean = variables['batch_stats']['backbone']['conv3_block0']['shortcut_norm']['mean']
    np.testing.assert_array_equal(tensors['layer2.0.downsample.1.running_mean'], mean)


def test_the_head_is_taken_where_there_is_one(variables, tensors):
    start = zeros(variables)
    found = weights.to_variables(without_head(tensors), start)
    assert_equal(found['params']['backbone'], variables['params']['backbone'])
    assert_equal(found['params']['head'], start['params']['head'])
    del tensors['rpn.head.cls_logits.bias']  # half a head is none
    with pytest.raises(InputError, match=r'missing rpn\.head\.cls_logits\.bias'):
        weights.to_variables(tensors, start)


def test_classifier_counters_and_higher_stages_are_passed_over(variables, tensors):
    more = {
        'fc.weight': np.zeros((1000, 256)),
        'fc.bias': np.zeros(1000),
        'bn1.num_batches_tracked': np.array(7),
        'layer1.0.downsample.1.num_batches_tracked': np.array(7),
        'layer4.0.conv1.weight': np.zeros((64, 128, 1, 1)),
        'layer4.2.bn3.running_var': np.zeros(5),
    }
    assert_equal(weights.to_variables(tensors | more, zeros(variables)), variables)


@pytest.mark.parametrize(
    'name', ['layer1.2.conv1.weight', 'layer5.0.conv1.weight', 'layer3.0.fc.scale', 'my_fc.weight']
)
def test_nothing_else_is_passed_over(variables, tensors, name):
    with pytest.raises(InputError, match=f'unexpected {re.escape(name)}'):
        weights.to_variables(tensors | {name: np.zeros(3)}, variables)


def test_one_error_lists_all_that_is_wrong(variables, tensors):
    tensors['layer1.0.conv1.weights'] = tensors.pop('layer1.0.conv1.weight')
    del tensors['layer3.1.bn2.running_var']
    tensors['extra'] = np.zeros(3)
    tensors['conv1.weight'] = np.zeros((8, 3, 3, 3))
    tensors['bn1.bias'] = np.zeros((8, 1))
    with pytest.raises(InputError) as error:
        weights.to_variables(tensors, variables)
    message = str(error.value)
    assert '\n' not in message
    for part in [
        'missing layer1.0.conv1.weight (did you mean layer1.0.conv1.weights?)',
        'missing layer3.1.bn2.running_var;',
        'unexpected extra',
        'unexpected layer1.0.conv1.weights',
        'conv1.weight is (8, 3, 3, 3), the network needs (8, 3, 7, 7)',
        'bn1.bias is (8, 1), the network needs (8,)',
    ]:
        assert part in message


def test_many_problems_hide_no_kind(variables, tensors):
    """Weights of a wider and deeper network, every name with a prefix but one."""
    wide = weights.from_variables(variables_of(50, width=16))
    tensors = {f'module.{name}': tensor for name, tensor in wide.items()}
    tensors['conv1.weight'] = tensors.pop('module.conv1.weight')
    with pytest.raises(InputError) as error:
        weights.to_variables(tensors, variables)
    for kind in ('missing bn1.bias', 'more missing', 'unexpected module.', 'misshapen conv1.w'):
        assert kind in str(error.value)
    assert len(str(error.value)) < 5000


# Files


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_file_of_any_float_becomes_float32(tmp_path, variables, tensors, dtype):
    stored = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(stored, tmp_path / 'weights.safetensors')
    loaded = weights.load(tmp_path / 'weights.safetensors')
    assert loaded.keys() == tensors.keys()
    found = weights.to_variables(loaded, zeros(variables))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype('float32')}
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), variables)
    assert_equal(found, expected)


WHOLE = save({'conv1.weight': np.ones((4, 4), np.float32), 'bn1.bias': np.ones(4, np.float32)})
HEADER = 8 + int.from_bytes(WHOLE[:8], 'little')
FLOAT8 = b'{"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}'


@pytest.mark.parametrize(
    'content',
    [
        b'',
        WHOLE[:5],
        WHOLE[: HEADER // 2],
        WHOLE[:HEADER],
        WHOLE[:-1],
        WHOLE + b'?',
        b'\x80\x04\x95' + b'pickle' * 100,
        b'PK\x03\x04' + bytes(500),
        len(FLOAT8).to_bytes(8, 'little') + FLOAT8 + b'1',
    ],
    ids='empty cut-length cut-header no-data cut-data longer pickle zip float8'.split(),
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, content):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(WHOLE)
    assert sorted(weights.load(path)) == ['bn1.bias', 'conv1.weight']
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f'weights {path}: ')) as error:
        weights.load(path)
    assert '\n' not in str(error.value)


def test_a_path_without_a_file_is_refused(tmp_path):
    for path in (tmp_path / 'nowhere.safetensors', ''):
        with pytest.raises(InputError, match='no such file; config key model.pretrained'):
            weights.load(path)
    with pytest.raises(InputError, match='a folder without checkpoints'):
        weights.load(tmp_path)
    path = tmp_path / 'checkpoints' / '7'
    path.mkdir(parents=True)
    with pytest.raises(InputError, match='checkpoints/7: a damaged checkpoint .*; there are 7$'):
        weights.load(path)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_number_that_is_none_is_refused_by_name(tmp_path, value, dtype):
    stored = {name: np.ones(5, dtype) for name in ('good', 'bad', 'fine')}
    stored['bad'][3] = value
    save_file(stored, tmp_path / 'weights.safetensors')
    with pytest.raises(InputError, match='NaN or infinity in bad$'):
        weights.load(tmp_path / 'weights.safetensors')


# Pixel families


@pytest.mark.parametrize(
    ('variance', 'family'),
    [
        ([0.1, 0.9, 6.0, 10.0], 'torchvision'),
        ([184.1, 3456.4, 5000.0, 83614.7], 'caffe'),  # the range of MSRA's ResNet-50
        ([0.0, 700.0, 3000.0, 9000.0], 'caffe'),  # a dead channel decides nothing
    ],
)
def test_the_stem_tells_the_pixels(variance, family):
    for dtype in (np.float32, ml_dtypes.bfloat16):
        assert weights.pixels({'bn1.running_var': np.array(variance, dtype)}) == family


def test_without_statistics_pixels_are_those_of_torchvision():
    assert weights.pixels({'conv1.weight': np.ones((8, 3, 7, 7))}) == 'torchvision'


def stem(scale, mean, variance):
    parts = {'weight': scale, 'running_mean': mean, 'running_var': variance}
    return {f'bn1.{part}': np.array(values, np.float32) for part, values in parts.items()}


def test_folded_norms_are_those_of_caffe():
    one = 1 - 1e-5
    assert weights.pixels(stem([0.5, 2.0], [0, 0], [one, one])) == 'caffe'
    assert weights.pixels(stem([1.0, 1.0], [0, 0], [1, 1])) == 'torchvision'  # as they begin
    assert weights.pixels(stem([0.5, 2.0], [0.1, 0], [one, one])) == 'torchvision'
