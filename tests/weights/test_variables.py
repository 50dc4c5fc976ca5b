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


@pytest.mark.parametrize(
    ('depth', 'last_stage', 'norm'), [(26, 3, 'group'), (50, 5, 'batch'), (26, 4, 'frozen')]
)
def test_there_and_back_is_the_same(depth, last_stage, norm):
    variables = variables_of(depth, last_stage, norm)
    tensors = weights.from_variables(variables)
    assert len(tensors) == len(jax.tree.leaves(variables))
    assert_equal(weights.to_variables(tensors, zeros(variables)), variables)
    if (depth, last_stage) == (50, 5):
        assert set(tensors) == names_of_torchvision()


def names_of_torchvision():
    """Returns the names in torchvision's ResNet-50, with the head of its Faster R-CNN."""
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
    return names


def test_kernels_are_turned_into_torch_order(variables, tensors):
    assert tensors['conv1.weight'].shape == (8, 3, 7, 7)
    assert tensors['rpn.head.bbox_pred.weight'].shape == (12, 128, 1, 1)
    kernel = variables['params']['backbone']['conv3_block0']['conv2']['kernel']
    assert tensors['layer2.0.conv2.weight'][3, 5, 0, 2] == kernel[0, 2, 5, 3]
    mean = variables['batch_stats']['backbone']['conv3_block0']['shortcut_norm']['mean']
    np.testing.assert_array_equal(tensors['layer2.0.downsample.1.running_mean'], mean)


def nested(variables):
    """Returns the variables of a network whose backbone is a ResNet inside, and a second layer.

    It has a pyramid, and a head of two 3x3 convolutions.
    """
    params, statistics = (variables[key]['backbone'] for key in ('params', 'batch_stats'))
    kernel = np.arange(36, dtype=np.float32).reshape(3, 3, 2, 2)
    head = variables['params']['head']
    return {
        'params': {
            'backbone': {'body': params, 'Dense_0': {'kernel': kernel[0, 0]}},
            'fpn': {'inner2': {'kernel': kernel}},
            'head': {**head, 'conv1': head['conv']},
        },
        'batch_stats': {'backbone': {'body': statistics}},
    }


def test_a_nested_backbone_a_pyramid_and_a_deep_head_have_names(variables, tensors):
    network = nested(variables)
    own = weights.from_variables(network)
    assert own.keys() - tensors.keys() == {
        'Dense_0.weight',
        'fpn.inner2.weight',
        'rpn.head.conv.1.0.weight',
        'rpn.head.conv.1.0.bias',
    }
    assert_equal(weights.to_variables(own, zeros(network)), network)
    backbone = {k: t for k, t in without_head(own).items() if not k.startswith('fpn.')}
    taken = weights.to_variables(backbone, zeros(network))['params']
    assert_equal(taken['backbone'], network['params']['backbone'])
    assert not any(leaf.any() for leaf in jax.tree.leaves((taken['fpn'], taken['head'])))
    late = {'backbone': {'conv4_block22': {'norm3': {'scale': np.ones(1)}}}}
    assert list(weights.from_variables({'params': late})) == ['layer3.22.bn3.weight']
    twice = {'backbone': {'a': {'stem_conv': 1}, 'b': {'stem_conv': 2}}}
    twice = jax.tree.map(lambda i: {'kernel': np.float32(i)}, twice)
    with pytest.raises(ValueError, match='several variables .* conv1.weight'):
        weights.from_variables({'params': twice})


def test_the_head_is_taken_where_there_is_one(variables, tensors):
    start = zeros(variables)
    taken = weights.to_variables(without_head(tensors), start)
    assert_equal(taken['params']['backbone'], variables['params']['backbone'])
    assert_equal(taken['params']['head'], start['params']['head'])
    del tensors['rpn.head.cls_logits.bias']  # half a head is none
    with pytest.raises(InputError, match=r'missing rpn\.head\.cls_logits\.bias'):
        weights.to_variables(tensors, start)


def test_classifier_counters_and_higher_stages_are_ignored(variables, tensors):
    more = {
        'fc.weight': np.zeros((1000, 256)),
        'fc.bias': np.zeros(1000),
        'bn1.num_batches_tracked': np.array(7),
        'layer1.0.downsample.1.num_batches_tracked': np.array(7),
        'layer4.0.conv1.weight': np.zeros((64, 128, 1, 1)),
        'layer4.2.bn3.running_var': np.zeros(5),
    }
    assert_equal(weights.to_variables(tensors | more, zeros(variables)), variables)
    others = 'layer1.2.conv1.weight', 'layer5.0.conv1.weight', 'layer3.0.fc.scale', 'my_fc.weight'
    for name in others:
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
    for problem in [
        'missing layer1.0.conv1.weight (did you mean layer1.0.conv1.weights?)',
        'missing layer3.1.bn2.running_var;',
        'unexpected extra',
        'unexpected layer1.0.conv1.weights',
        'conv1.weight is (8, 3, 3, 3), the network needs (8, 3, 7, 7)',
        'bn1.bias is (8, 1), the network needs (8,)',
    ]:
        assert problem in message


def test_many_problems_hide_no_kind(variables):
    """Weights of a wider and deeper network, every name with a prefix but one."""
    wide = weights.from_variables(variables_of(50, width=16))
    tensors = {f'module.{name}': tensor for name, tensor in wide.items()}
    tensors['conv1.weight'] = tensors.pop('module.conv1.weight')
    with pytest.raises(InputError) as error:
        weights.to_variables(tensors, variables)
    for kind in ('missing bn1.bias', 'more missing', 'unexpected module.', 'misshapen conv1.w'):
        assert kind in str(error.value)
    assert len(str(error.value)) < 5000
