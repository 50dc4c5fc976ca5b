"""Names of Caffe2 and detectron2 become torchvision's; their heads' anchors come in our order."""

import functools
import pickle

import jax
import numpy as np
import pytest
from helpers import variables_of

from rpn_jax import weights
from rpn_jax.errors import InputError
from rpn_jax.models import resnet
from rpn_jax.ops import anchors

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
SHORT = {'weight': 's', 'bias': 'b', 'running_mean': 'rm', 'running_var': 'riv'}
LONG = {'weight': 'gamma', 'bias': 'beta'}


def caffe2(name, suffixes=SHORT):
    """Returns Caffe2's name of a tensor of torchvision's ResNet: layer2.0.bn1.bias .."""
    module, _, parameter = name.rpartition('.')
    suffix = suffixes.get(parameter, parameter)
    if module in ('conv1', 'bn1'):
        return 'conv1_w' if module == 'conv1' else f'res_conv1_bn_{suffix}'
    layer, block, conv, *number = module.split('.')
    branch = '1' if conv == 'downsample' else f'2{"abc"[int(conv[-1]) - 1]}'
    start = f'res{int(layer[-1]) + 1}_{block}_branch{branch}'
    return f'{start}_w' if number == ['0'] or conv.startswith('conv') else f'{start}_bn_{suffix}'


def detectron2(name, prefix=''):
    """Returns detectron2's name of a tensor of torchvision's ResNet."""
    module, _, parameter = name.rpartition('.')
    if module in ('conv1', 'bn1'):
        return f'{prefix}stem.conv1.{"norm." if module == "bn1" else ""}{parameter}'
    layer, block, conv, *number = module.split('.')
    norm = 'norm.' if number == ['1'] or conv.startswith('bn') else ''
    conv = 'shortcut' if conv == 'downsample' else f'conv{conv[-1]}'
    return f'{prefix}res{int(layer[-1]) + 1}.{block}.{conv}.{norm}{parameter}'


def load(path, tensors, **keywords):
    path.write_bytes(pickle.dumps(tensors, protocol=2))
    return weights.load(path, **keywords)


@functools.cache
def backbone():
    """Returns (variables, their tensors without a head) of a small network."""
    variables = variables_of(26, 5)
    tensors = weights.from_variables(variables)
    return variables, {k: v for k, v in tensors.items() if not k.startswith('rpn.')}


def fill(path, file):
    """Returns the variables of the network with the weights of a file."""
    return weights.to_variables(load(path, file), backbone()[0])


def test_caffe2_files_with_folded_norms_fill_the_network(tmp_path):
    variables, tensors = backbone()
    file = {caffe2(name): tensor for name, tensor in tensors.items() if '.running_' not in name}
    assert 'res2_0_branch1_bn_s' in file and 'res5_1_branch2c_w' in file
    extra = {'fc1000_w': np.ones((10, 4)), 'fc1000_b': np.ones(10), 'conv1_b': np.ones(8)}
    extra |= {'conv1_w_momentum': np.ones(3)}
    loaded = load(tmp_path / 'R.pkl', {'blobs': file | extra})
    assert weights.pixels(loaded) == 'caffe'
    taken = weights.to_variables(loaded, variables)
    jax.tree.map(np.testing.assert_array_equal, taken['params'], variables['params'])
    for path, leaf in jax.tree_util.tree_leaves_with_path(taken['batch_stats']):
        if path[-1].key == 'var':  # what makes the norm's deviation exactly one
            np.testing.assert_allclose(leaf + resnet.EPSILON, 1, rtol=1e-7)
        else:
            assert not leaf.any()


D2_EXTRA = {
    'pixel_mean': np.ones((3, 1, 1)),
    'roi_heads.box_predictor.bbox_pred.bias': np.ones(4),
    'stem.fc.weight': np.ones((10, 4)),
    'stem.fc.bias': np.ones(10),
}


@pytest.mark.parametrize(
    ('rename', 'extra'),
    [
        (caffe2, {}),
        (lambda name: caffe2(name, LONG), {}),
        (detectron2, D2_EXTRA),
        (lambda name: detectron2(name, 'backbone.'), D2_EXTRA),
        (lambda name: detectron2(name, 'backbone.bottom_up.'), D2_EXTRA),
        ('module.{}'.format, {}),
        ('backbone.{}'.format, {}),
        ('backbone.body.{}'.format, {}),
        ('module.backbone.{}'.format, {}),
    ],
)
def test_files_of_every_library_fill_the_network(tmp_path, rename, extra):
    variables, tensors = backbone()
    file = {rename(name): tensor for name, tensor in tensors.items()}
    assert len(file) == len(tensors)  # each has a name of its own
    taken = fill(tmp_path / 'R.pkl', {'model': file | extra, '__author__': 'someone'})
    jax.tree.map(np.testing.assert_array_equal, taken, variables)


TORCHVISION = 'rpn.head.cls_logits', 'rpn.head.bbox_pred'
DETECTRON2 = [f'proposal_generator.rpn_head.{n}' for n in ('objectness_logits', 'anchor_deltas')]


def head(order, names):
    """Returns a head's tensors whose numbers tell each anchor: its size and its aspect ratio."""
    order = np.array(order, np.float32)
    total, coordinates = order.sum(1), np.tile(np.arange(4, dtype=np.float32), len(order))
    return {
        f'{names[0]}.weight': order[:, :, None, None],
        f'{names[0]}.bias': total,
        f'{names[1]}.weight': (order.repeat(4, axis=0) + coordinates[:, None])[..., None, None],
        f'{names[1]}.bias': total.repeat(4) + coordinates,
    }


def assert_head(tensors, order):
    for name, tensor in head(order, TORCHVISION).items():
        np.testing.assert_array_equal(tensors[name], tensor)


@pytest.mark.parametrize(
    ('sizes', 'ratios'),
    [(SIZES, RATIOS), ((32,), RATIOS), (SIZES, (1.0,)), ((64, 128), (0.5, 2.0))],
)
@pytest.mark.parametrize('has_cells', [False, True])
def test_a_detectron2_head_comes_in_the_order_of_our_anchors(tmp_path, sizes, ratios, has_cells):
    """detectron2: for size, for ratio. Ours: as anchors.base_anchors has them."""
    file = head([(size, ratio) for size in sizes for ratio in ratios], DETECTRON2)
    file['proposal_generator.rpn_head.conv.weight'] = np.ones((2, 2, 3, 3))
    if has_cells:  # the file has its anchors, so nobody has to know them
        sides = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios]
        cells = [(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides]
        file['proposal_generator.anchor_generator.cell_anchors.0'] = np.array(cells)
    loaded = load(tmp_path / 'R.pkl', file, aspect_ratios=None if has_cells else len(ratios))
    base = np.asarray(anchors.base_anchors(sizes, ratios))
    width, height = (base[:, 2:] - base[:, :2]).T
    order = loaded['rpn.head.cls_logits.weight'][:, :, 0, 0]
    np.testing.assert_allclose(order[:, 0], np.sqrt(width * height), rtol=0.04)  # rounded anchors
    np.testing.assert_allclose(order[:, 1], height / width, rtol=0.1)
    assert_head(loaded, order)
    assert 'rpn.head.conv.0.0.weight' in loaded


def test_heads_of_torchvision_and_caffe2_keep_their_order(tmp_path):
    order = [(size, ratio) for ratio in RATIOS for size in SIZES]
    file, kernel = head(order, TORCHVISION), np.ones((2, 2, 3, 3))
    short = {'rpn.head.': 'rpn_', '.weight': '_w', '.bias': '_b'}
    of_caffe2 = {
        functools.reduce(lambda n, s: n.replace(*s), short.items(), k): file[k] for k in file
    }
    for tensors in (
        file | {'rpn.head.conv.weight': kernel},  # its name until torchvision 0.14
        of_caffe2 | {'conv_rpn_w': kernel},
    ):
        loaded = load(tmp_path / 'R.pkl', tensors)
        assert loaded.keys() == {*file, 'rpn.head.conv.0.0.weight'}
        assert_head(loaded, order)


def test_blocks_and_head_convolutions_have_numbers(tmp_path):
    for name in ('res4_22_branch2c_w', 'backbone.bottom_up.res4.22.conv3.weight'):
        assert list(load(tmp_path / 'R.pkl', {name: np.ones(3)})) == ['layer3.22.conv3.weight']
    names = [f'proposal_generator.rpn_head.conv.conv{i}.bias' for i in range(2)]
    loaded = load(tmp_path / 'R.pkl', {name: np.ones(3) for name in names})
    assert loaded.keys() == {'rpn.head.conv.0.0.bias', 'rpn.head.conv.1.0.bias'}


@pytest.mark.parametrize(
    ('cells', 'complaint'),
    [
        (None, 'not of 4 aspect ratios; aspect_ratios must be'),
        ([(0, 0, 2, 8), (0, 0, 8, 2), (0, 0, 4, 16), (0, 0, 16, 4)], 'have 2 aspect ratios, not 4'),
        (np.zeros((0, 4)), 'cell_anchors that are no boxes'),
        ([(0, 0, np.nan, 1)], 'cell_anchors that are no boxes'),
        ([(0, 0, 2, 2), (0, 0, 2, 2), (0, 0, 9, 9)], 'not some aspect ratios of some sizes'),
    ],
)
def test_a_head_of_other_anchors_is_refused(tmp_path, cells, complaint):
    file = head([(size, ratio) for size in SIZES for ratio in RATIOS], DETECTRON2)
    if cells is not None:
        file['proposal_generator.anchor_generator.cell_anchors.0'] = np.array(cells)
    with pytest.raises(InputError, match=complaint):
        load(tmp_path / 'R.pkl', file, aspect_ratios=4)


def test_one_tensor_under_two_names_and_a_foreign_name_are_refused(tmp_path):
    file = {'conv1_w': np.ones(3), 'backbone.conv1.weight': np.ones(3)}
    with pytest.raises(InputError, match='conv1_w and backbone.conv1.weight are the same tensor'):
        load(tmp_path / 'R.pkl', file)
    file = {caffe2(name): tensor for name, tensor in backbone()[1].items()}
    with pytest.raises(InputError, match='unexpected res9_0_branch2d_w$'):
        fill(tmp_path / 'R.pkl', file | {'res9_0_branch2d_w': np.ones(3)})
