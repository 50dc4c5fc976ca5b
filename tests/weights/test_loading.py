"""Loading weights: any float becomes float32, numbers are finite, the stem shows the pixels."""

import os
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rpn_jax import weights
from rpn_jax.errors import InputError
from rpn_jax.training import pretrained

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_file_of_any_float_becomes_float32(tmp_path, dtype):
    kernel, path = np.random.default_rng(0).normal(size=(3, 3, 2, 4)), tmp_path / 'x.safetensors'
    variables = {'params': {'backbone': {'stem_conv': {'kernel': kernel.astype(np.float32)}}}}
    tensors = weights.from_variables(variables)
    save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, path)
    loaded = weights.load(path)
    assert loaded.keys() == tensors.keys()
    (leaf,) = jax.tree.leaves(weights.to_variables(loaded, variables))
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, kernel.astype(np.float32).astype(dtype).astype(np.float32))


def test_the_order_of_a_detectron2_head_depends_on_the_aspect_ratios(tmp_path):
    name = 'proposal_generator.rpn_head.objectness_logits.bias'
    save_file({name: np.arange(6, dtype=np.float32)}, tmp_path / 'x')
    for aspect_ratios, order in {2: [0, 2, 4, 1, 3, 5], 3: [0, 3, 1, 4, 2, 5]}.items():
        loaded = weights.load(tmp_path / 'x', aspect_ratios)
        np.testing.assert_array_equal(loaded['rpn.head.cls_logits.bias'], order)


def test_a_path_without_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path, problem in {
        tmp_path / 'nowhere.safetensors': 'no such file',
        '': 'no such file',
        tmp_path: 'a folder without checkpoints',
        tmp_path / 'pipe': 'no file',
        tmp_path / ('x' * 300): '.*File name too long',
    }.items():
        with pytest.raises(InputError, match=f'^weights {re.escape(str(path))}: {problem}'):
            weights.load(path)
        with pytest.raises(InputError):
            pretrained.expects(path, (1,))
    path = tmp_path / 'checkpoints' / '7'
    path.mkdir(parents=True)
    with pytest.raises(InputError, match='checkpoints/7: a damaged checkpoint .*; there are 7$'):
        pretrained.load_weights(path)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused_by_name(dtype, value):
    tensors = {name: np.ones(5, dtype) for name in ('good', 'bad', 'fine')}
    tensors['bad'][3] = value
    with pytest.raises(InputError, match='^x: NaN or infinity in bad$'):
        weights.checked(tensors, 'x')
    counter = {'bn1.num_batches_tracked': np.array(7), 'fc.weight': np.float32([np.nan])}
    assert weights.checked(counter, 'x') is counter  # nothing uses these


def stem(scale, mean, variance):
    values = {'weight': scale, 'running_mean': mean, 'running_var': variance}
    return {f'bn1.{name}': np.array(value, np.float32) for name, value in values.items()}


ONE = 1 - 1e-5  # the variance of a norm that was folded


@pytest.mark.parametrize(
    ('tensors', 'family'),
    [
        ({'bn1.running_var': np.array([0.1, 0.9, 6.0, 10.0])}, 'torchvision'),
        ({'bn1.running_var': np.array([0.0, 700.0, 3000], ml_dtypes.bfloat16)}, 'caffe'),  # MSRA's
        ({'bn1.running_var': np.array([])}, 'torchvision'),
        ({'conv1.weight': np.ones((8, 3, 7, 7))}, 'torchvision'),
        (stem([0.5, 2.0], [0, 0], [ONE, ONE]), 'caffe'),  # norms that were folded
        (stem([1.0, 1.0], [0, 0], [1, 1]), 'torchvision'),  # norms as they begin
        (stem([0.5, 2.0], [0.1, 0], [ONE, ONE]), 'torchvision'),
    ],
)
def test_the_stem_shows_the_pixels(tensors, family):
    assert weights.pixels(tensors) == family
