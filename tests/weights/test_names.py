"""Names of Caffe2 and detectron2 become torchvision's; their heads' anchors come in our order."""

import functools
import pickle
from collections import Counter

import jax
import numpy as np
import pytest
from helpers import variables_of

from rpn_jax import weights
from rpn_jax.errors import InputError
from rpn_jax.models import resnet
from rpn_jax.ops import anchors

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
PARTS = {'weight': 's', 'bias': 'b', 'running_mean': 'rm', 'running_var': 'riv'}


def caffe2(name, statistics=False):
    """conv3_block0.conv2 and so on -> the name in MSRA's files, '' for what they have not."""
    module, _, parameter = name.rpartition('.')
    if parameter in ('running_mean', 'running_var') and not statistics:
        return ''
    if module == 'conv1':
        return 'conv1_w'
    if module == 'bn1':
        return f'res_conv1_bn_{PARTS[parameter]}'
    layer, block, conv, *number = module.split('.')
    branch = '1' if conv == 'downsample' else f'2{"abc"[int(conv[-1]) - 1]}'
    start = f'res{int(layer[-1]) + 1}_{block}_branch{branch}'
    is_conv = number == ['0'] or conv.startswith('conv')
    return f'{start}_w' if is_conv else f'{start}_bn_{PARTS[parameter]}'


def detectron2(name, prefix):
    """conv3_block0.conv2 and so on -> the name in detectron2's files."""
    module, _, parameter = name.rpartition('.')
    if module in ('conv1', 'bn1'):
        return f'{prefix}stem.conv1.{"norm." if module == "bn1" else ""}{parameter}'
    layer, block, conv, *number = module.split('.')
    start = f'{prefix}res{int(layer[-1]) + 1}.{block}.'
    if conv == 'downsample':
        return f'{start}shortcut.{"norm." if number == ["1"] else ""}{parameter}'
    return f'{start}conv{conv[-1]}.{"norm." if conv.startswith("bn") else ""}{parameter}'


def load(path, tensors, **keywords):
    path.write_bytes(pickle.dumps(tensors, protocol=2))
    return weights.load(path, **keywords)


@functools.cache
def backbone(depth=50, last_stage=5):
    """Returns (variables, their tensors without a head) of a narrow network."""
    variables = variables_of(depth, last_stage)
    tensors = weights.from_variables(variables)
    return variables, {k: v for k, v in tensors.items() if not k.startswith('rpn.')}


@pytest.mark.parametrize('depth', [50, 101])
def test_caffe2_files_with_folded_norms_fill_the_network(tmp_path, depth):
    variables, tensors = backbone(depth)
    file = {caffe2(name): tensor for name, tensor in tensors.items() if caffe2(name)}
    assert 'res2_0_branch1_bn_s' in file and 'res5_2_branch2c_w' in file
    extra = {'fc1000_w': np.ones((10, 4)), 'fc1000_b': np.ones(10), 'conv1_b': np.ones(8)}
    extra |= {'conv1_w_momentum': np.ones(3)}
    found = load(tmp_path / 'R.pkl', {'blobs': file | extra})
    assert weights.pixels(found) == 'caffe'
    taken = weights.to_variables(found, variables)
    jax.tree.map(np.testing.assert_array_equal, taken['params'], variables['params'])
    for path, leaf in jax.tree_util.tree_leaves_with_path(taken['batch_stats']):
        if path[-1].key == 'var':  # what makes the norm's deviation exactly one
            np.testing.assert_allclose(leaf + resnet.EPSILON, 1, rtol=1e-7)
        else:
            assert not leaf.any()


@pytest.mark.parametrize('long', [False, True])
def test_caffe2_files_with_statistics_keep_them(tmp_path, long):
    variables, tensors = backbone(26)
    file = {caffe2(name, statistics=True): tensor for name, tensor in tensors.items()}
    if long:
        suffixes = {'_bn_s': '_bn_gamma', '_bn_b': '_bn_beta', '_bn_rm': '_bn_running_mean'}
        suffixes['_bn_riv'] = '_bn_running_var'
        for short, full in suffixes.items():
            file = {
                name.removesuffix(short) + full if name.endswith(short) else name: tensor
                for name, tensor in file.items()
            }
    taken = weights.to_variables(load(tmp_path / 'R.pkl', file), variables)
    jax.tree.map(np.testing.assert_array_equal, taken, variables)


@pytest.mark.parametrize(
    ('depth', 'prefix'), [(50, ''), (50, 'backbone.'), (101, 'backbone.bottom_up.')]
)
def test_detectron2_files_fill_the_network(tmp_path, depth, prefix):
    variables, tensors = backbone(depth)
    file = {detectron2(name, prefix): tensor for name, tensor in tensors.items()}
    assert f'{prefix}res2.0.shortcut.norm.running_var' in file
    extra = {'pixel_mean': np.ones((3, 1, 1)), 'roi_heads.box_predictor.bbox_pred.bias': np.ones(4)}
    extra |= {'stem.fc.weight': np.ones((10, 4)), 'stem.fc.bias': np.ones(10)}
    found = load(tmp_path / 'R.pkl', {'model': file | extra, '__author__': 'someone'})
    jax.tree.map(np.testing.assert_array_equal, weights.to_variables(found, variables), variables)


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'backbone.body.', 'module.backbone.'])
def test_prefixes_of_detectors_are_taken_off(tmp_path, prefix):
    variables, tensors = backbone(26)
    found = load(tmp_path / 'R.pkl', {f'{prefix}{name}': t for name, t in tensors.items()})
    jax.tree.map(np.testing.assert_array_equal, weights.to_variables(found, variables), variables)


def head(order, prefix):
    """Returns a head's tensors whose numbers tell each anchor: its size and its aspect ratio."""
    told = np.array(order, np.float32)
    names = [
        f'proposal_generator.rpn_head.{name}' for name in ('objectness_logits', 'anchor_deltas')
    ]
    if prefix != 'detectron2':
        names = prefix
    return {
        f'{names[0]}.weight': told[:, :, None, None],
        f'{names[0]}.bias': told[:, 0] + told[:, 1],
        f'{names[1]}.weight': np.repeat(told, 4, axis=0)[:, :, None, None]
        + np.tile(np.arange(4, dtype=np.float32), len(told))[:, None, None, None],
        f'{names[1]}.bias': np.repeat(told[:, 0] + told[:, 1], 4)
        + np.tile([0, 1, 2, 3], len(told)),
    }


@pytest.mark.parametrize(
    ('sizes', 'ratios'),
    [(SIZES, RATIOS), ((32,), RATIOS), (SIZES, (1.0,)), ((64, 128), (0.5, 2.0))],
)
@pytest.mark.parametrize('tells', [False, True])
def test_a_detectron2_head_comes_in_the_order_of_our_anchors(tmp_path, sizes, ratios, tells):
    """detectron2: for size, for ratio. Ours: as anchors.base_anchors has them."""
    file = head([(size, ratio) for size in sizes for ratio in ratios], 'detectron2')
    file['proposal_generator.rpn_head.conv.weight'] = np.ones((2, 2, 3, 3))
    if tells:  # the file knows its anchors, so nobody has to
        sides = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios]
        cells = [(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides]
        file['proposal_generator.anchor_generator.cell_anchors.0'] = np.array(cells)
    found = load(tmp_path / 'R.pkl', file, aspect_ratios=None if tells else len(ratios))
    base = np.asarray(anchors.base_anchors(sizes, ratios))
    width, height = (base[:, 2:] - base[:, :2]).T
    told = found['rpn.head.cls_logits.weight'][:, :, 0, 0]
    np.testing.assert_allclose(told[:, 0], np.sqrt(width * height), rtol=0.04)  # rounded anchors
    np.testing.assert_allclose(told[:, 1], height / width, rtol=0.1)
    ordered = head(told, ['rpn.head.cls_logits', 'rpn.head.bbox_pred'])
    for name, tensor in ordered.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert 'rpn.head.conv.0.0.weight' in found


def test_a_head_of_torchvision_stays_as_it_is(tmp_path):
    names = ['rpn.head.cls_logits', 'rpn.head.bbox_pred']
    file = head([(size, ratio) for ratio in RATIOS for size in SIZES], names)
    before = {'rpn.head.conv.weight': np.ones((2, 2, 3, 3))}  # its name until torchvision 0.14
    found = load(tmp_path / 'R.pkl', file | before)
    assert found.keys() == {*file, 'rpn.head.conv.0.0.weight'}
    for name, tensor in file.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_a_head_of_caffe2_stays_as_it_is(tmp_path):
    ours = ['rpn.head.cls_logits', 'rpn.head.bbox_pred']
    order = [(size, ratio) for ratio in RATIOS for size in SIZES]
    file = {
        name.replace('rpn.head.', 'rpn_').replace('.weight', '_w').replace('.bias', '_b'): tensor
        for name, tensor in head(order, ours).items()
    }
    found = load(tmp_path / 'R.pkl', file | {'conv_rpn_w': np.ones((2, 2, 3, 3))})
    for name, tensor in head(order, ours).items():
        np.testing.assert_array_equal(found[name], tensor)


def test_a_head_of_other_anchors_is_refused(tmp_path):
    file = head([(size, ratio) for size in SIZES for ratio in RATIOS], 'detectron2')
    with pytest.raises(
        InputError, match='not of 4 aspect ratios; config key anchors.aspect_ratios'
    ):
        load(tmp_path / 'R.pkl', file, aspect_ratios=4)


@pytest.mark.parametrize(
    ('cells', 'complaint'),
    [
        ([(0, 0, 2, 8), (0, 0, 8, 2), (0, 0, 4, 16), (0, 0, 16, 4)], 'its anchors have 2 aspect'),
        (np.zeros((0, 4)), 'cell_anchors that are no boxes'),
        ([(0, 0, np.nan, 1)], 'cell_anchors that are no boxes'),
        ([(0, 0, 2, 2), (0, 0, 2, 2), (0, 0, 9, 9)], 'not some aspect ratios of some sizes'),
    ],
)
def test_anchors_that_contradict_the_config_are_refused(tmp_path, cells, complaint):
    file = head([(size, ratio) for size in SIZES for ratio in RATIOS], 'detectron2')
    file['proposal_generator.anchor_generator.cell_anchors.0'] = np.array(cells)
    with pytest.raises(InputError, match=complaint):
        load(tmp_path / 'R.pkl', file, aspect_ratios=3)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    file = {'conv1_w': np.ones(3), 'backbone.conv1.weight': np.ones(3)}
    with pytest.raises(InputError, match='conv1_w and backbone.conv1.weight are the same tensor'):
        load(tmp_path / 'R.pkl', file)


def test_foreign_names_are_told_as_they_stand(tmp_path):
    variables, tensors = backbone(26)
    file = {caffe2(name, statistics=True): tensor for name, tensor in tensors.items()}
    file['res9_0_branch2d_w'] = np.ones(3)
    with pytest.raises(InputError, match='unexpected res9_0_branch2d_w$'):
        weights.to_variables(load(tmp_path / 'R.pkl', file), variables)


def test_the_names_of_this_file_are_a_network_whole():
    """Guards the twins above: every tensor of a ResNet-50 has one name of its own."""
    _, tensors = backbone(50)
    for rename in (lambda n: caffe2(n, True), lambda n: detectron2(n, '')):
        assert max(Counter(map(rename, tensors)).values()) == 1
