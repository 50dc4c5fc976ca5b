"""Loading weights: any float becomes float32, numbers are finite, the stem shows the pixels."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import variables_of
from safetensors.numpy import save_file

from rpn_jax import weights
from rpn_jax.errors import InputError
from rpn_jax.training import pretrained


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_file_of_any_float_becomes_float32(tmp_path, dtype):
    variables, path = variables_of(), tmp_path / 'weights.safetensors'
    tensors = weights.from_variables(variables)
    save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, path)
    loaded = weights.load(path)
    assert loaded.keys() == tensors.keys()
    taken = weights.to_variables(loaded, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(taken)} == {np.dtype('float32')}
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), variables)
    jax.tree.map(np.testing.assert_array_equal, taken, expected)


def test_a_path_without_a_file_is_refused(tmp_path):
    for path in (tmp_path / 'nowhere.safetensors', ''):
        with pytest.raises(InputError, match=re.escape(f'weights {path}: no such file')):
            weights.load(path)
    with pytest.raises(InputError, match='a folder without checkpoints'):
        weights.load(tmp_path)
    path = tmp_path / 'checkpoints' / '7'
    path.mkdir(parents=True)
    with pytest.raises(InputError, match='checkpoints/7: a damaged checkpoint .*; there are 7$'):
        pretrained.load_weights(path)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float32])
def test_a_number_that_is_none_is_refused_by_name(tmp_path, dtype):
    for value in (np.nan, np.inf, -np.inf):
        tensors = {name: np.ones(5, dtype) for name in ('good', 'bad', 'fine')}
        tensors['bad'][3] = value
        save_file(tensors, tmp_path / 'weights.safetensors')
        with pytest.raises(InputError, match='NaN or infinity in bad$'):
            weights.load(tmp_path / 'weights.safetensors')


def stem(scale, mean, variance):
    values = {'weight': scale, 'running_mean': mean, 'running_var': variance}
    return {f'bn1.{name}': np.array(value, np.float32) for name, value in values.items()}


ONE = 1 - 1e-5  # the variance of a norm that was folded


@pytest.mark.parametrize(
    ('tensors', 'family'),
    [
        ({'bn1.running_var': np.array([0.1, 0.9, 6.0, 10.0])}, 'torchvision'),
        ({'bn1.running_var': np.array([184.1, 3456.4, 5000.0, 83614.7])}, 'caffe'),  # MSRA's
        ({'bn1.running_var': np.array([0.0, 700.0, 3000.0, 9000.0])}, 'caffe'),  # one is dead
        ({'bn1.running_var': np.array([0.0, 700.0, 3000], ml_dtypes.bfloat16)}, 'caffe'),
        ({'bn1.running_var': np.array([])}, 'torchvision'),
        ({'conv1.weight': np.ones((8, 3, 7, 7))}, 'torchvision'),
        (stem([0.5, 2.0], [0, 0], [ONE, ONE]), 'caffe'),  # norms that were folded
        (stem([1.0, 1.0], [0, 0], [1, 1]), 'torchvision'),  # norms as they begin
        (stem([0.5, 2.0], [0.1, 0], [ONE, ONE]), 'torchvision'),
    ],
)
def test_the_stem_shows_the_pixels(tensors, family):
    assert weights.pixels(tensors) == family
