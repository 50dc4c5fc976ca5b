"""Variables by torchvision's names: there and back, what is ignored, and what is refused."""

import re

import jax
import numpy as np
import pytest
from helpers import variables_of

from rpn_jax import weights
from rpn_jax.errors import InputError


def zeros(variables):
    return jax.tree.map(np.zeros_like, variables)


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def variables():
    return variables_of()


@pytest.fixture
def tensors(variables):
    return weights.from_variables(variables)


def test_there_and_back_is_the_same_and_has_torchvisions_names():
    for variables in (variables_of(26, 3, 'group'), variables_of(50, 5, 'batch')):
        tensors = weights.from_variables(variables)
        assert len(tensors) == len(jax.tree.leaves(variables))
        assert_equal(weights.to_variables(tensors, zeros(variables)), variables)
    norm = ('weight', 'bias', 'running_mean', 'running_var')
    names = {'conv1.weight', *(f'bn1.{name}' for name in norm)}
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            for i in '123':
                names.add(f'layer{layer}.{block}.conv{i}.weight')
                names |= {f'layer{layer}.{block}.bn{i}.{name}' for name in norm}
        names.add(f'layer{layer}.0.downsample.0.weight')
        names |= {f'layer{layer}.0.downsample.1.{name}' for name in norm}
    for name in ('conv.0.0', 'cls_logits', 'bbox_pred'):
        names |= {f'rpn.head.{name}.weight', f'rpn.head.{name}.bias'}
    assert set(tensors) == names


def test_kernels_are_turned_into_torch_order(variables, tensors):
    assert tensors['conv1.weight'].shape == (8, 3, 7, 7)
    assert tensors['rpn.head.bbox_pred.weight'].shape == (12, 128, 1, 1)
    kernel = variables['params']['backbone']['conv3_block0']['conv2']['kernel']
    assert tensors['layer2.0.conv2.weight'][3, 5, 0, 2] == kernel[0, 2, 5, 3]
    mean = variables['batch_stats']['backbone']['conv3_block0']['shortcut_norm']['mean']
    np.testing.assert_array_equal(tensors['layer2.0.downsample.1.running_mean'], mean)


def test_a_nested_backbone_a_pyramid_and_a_deep_head_have_names(variables, tensors):
    """A network whose backbone is a ResNet inside, and a second layer; its head has two convs."""
    kernel = np.arange(36, dtype=np.float32).reshape(3, 3, 2, 2)
    head, own = variables['params']['head'], {'Dense_0': {'kernel': kernel[0, 0]}}
    network = {
        'params': {
            'backbone': {'body': variables['params']['backbone'], **own},
            'fpn': {'inner2': {'kernel': kernel}},
            'head': {**head, 'conv1': head['conv']},
        },
        'batch_stats': {'backbone': {'body': variables['batch_stats']['backbone']}},
    }
    named = weights.from_variables(network)
    assert named.keys() - tensors.keys() == {
        'Dense_0.weight',
        'fpn.inner2.weight',
        'rpn.head.conv.1.0.weight',
        'rpn.head.conv.1.0.bias',
    }
    assert_equal(weights.to_variables(named, zeros(network)), network)
    backbone = {k: t for k, t in named.items() if not k.startswith(('rpn.', 'fpn.'))}
    taken = weights.to_variables(backbone, zeros(network))['params']
    assert_equal(taken['backbone'], network['params']['backbone'])
    assert not any(leaf.any() for leaf in jax.tree.leaves((taken['fpn'], taken['head'])))
    late = {'backbone': {'conv4_block22': {'norm3': {'scale': np.ones(1)}}}}
    assert list(weights.from_variables({'params': late})) == ['layer3.22.bn3.weight']


def test_two_variables_of_one_name_are_refused():
    leaf = {'stem_conv': {'kernel': np.float32(1)}}
    with pytest.raises(ValueError, match='several variables .* conv1.weight'):
        weights.from_variables({'params': {'backbone': {'a': leaf, 'b': leaf}}})


def test_half_a_head_is_refused(variables, tensors):
    del tensors['rpn.head.cls_logits.bias']
    with pytest.raises(InputError, match=r'missing rpn\.head\.cls_logits\.bias'):
        weights.to_variables(tensors, variables)


def test_classifier_counters_and_higher_stages_are_ignored(variables, tensors):
    more = [
        'fc.weight',
        'fc.bias',
        'bn1.num_batches_tracked',
        'layer1.0.downsample.1.num_batches_tracked',
        'layer4.0.conv1.weight',
        'layer4.2.bn3.running_var',
    ]
    given = tensors | dict.fromkeys(more, np.zeros(5))
    assert_equal(weights.to_variables(given, zeros(variables)), variables)
    others = 'layer1.2.conv1.weight', 'layer5.0.conv1.weight', 'layer3.0.fc.scale', 'my_fc.weight'
    for name in others:
        with pytest.raises(InputError, match=f'unexpected {re.escape(name)}'):
            weights.to_variables(tensors | {name: np.zeros(3)}, variables)


def test_one_error_lists_all_that_is_wrong(variables, tensors):
    tensors['layer1.0.conv1.weights'] = tensors.pop('layer1.0.conv1.weight')
    del tensors['layer3.1.bn2.running_var']
    tensors['conv1.weight'] = np.zeros((8, 3, 3, 3))
    tensors['bn1.bias'] = np.zeros((8, 1))
    tensors |= {f'extra{i:02}': np.zeros(3) for i in range(25)}
    with pytest.raises(InputError) as error:
        weights.to_variables(tensors, variables)
    message = str(error.value)
    for problem in [
        'network: missing layer1.0.conv1.weight (did you mean layer1.0.conv1.weights?); ',
        'missing layer3.1.bn2.running_var; ',
        'unexpected extra19; and 6 more unexpected; misshapen ',
        'bn1.bias is (8, 1), the network needs (8,)',
        'conv1.weight is (8, 3, 3, 3), the network needs (8, 3, 7, 7)',
    ]:
        assert problem in message
    assert 'extra20' not in message and '\n' not in message
