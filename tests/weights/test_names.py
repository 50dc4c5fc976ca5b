"""Names of Caffe2 and detectron2 become torchvision's; their heads' anchors come in our order."""

import numpy as np
import pytest

from rpn_jax import weights
from rpn_jax.models import resnet
from rpn_jax.ops import anchors
from rpn_jax.weights.names import to_torchvision

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
RPN_HEAD = 'proposal_generator.rpn_head'
NAMES = {  # theirs: torchvision's
    # Caffe2
    'conv1_w': 'conv1.weight',
    'res_conv1_bn_s': 'bn1.weight',
    'res_conv1_bn_rm': 'bn1.running_mean',
    'conv1_gn_b': 'bn1.bias',
    'res2_0_branch1_w': 'layer1.0.downsample.0.weight',
    'res2_0_branch1_bn_b': 'layer1.0.downsample.1.bias',
    'res3_1_branch2a_w': 'layer2.1.conv1.weight',
    'res3_1_branch2a_bn_running_mean': 'layer2.1.bn1.running_mean',
    'res4_22_branch2b_w': 'layer3.22.conv2.weight',
    'res4_22_branch2b_bn_gamma': 'layer3.22.bn2.weight',
    'res4_22_branch2b_gn_s': 'layer3.22.bn2.weight',
    'res5_2_branch2c_bn_beta': 'layer4.2.bn3.bias',
    'res5_2_branch2c_bn_riv': 'layer4.2.bn3.running_var',
    'res5_2_branch2c_bn_running_var': 'layer4.2.bn3.running_var',
    'conv_rpn_w': 'rpn.head.conv.0.0.weight',
    'rpn_cls_logits_b': 'rpn.head.cls_logits.bias',
    'rpn_bbox_pred_w': 'rpn.head.bbox_pred.weight',
    'fpn_inner_res5_2_sum_w': 'fpn.inner_blocks.0.0.weight',  # the finest here, being alone
    'fpn_inner_res4_22_sum_lateral_gn_b': 'fpn.inner_blocks.0.1.bias',
    'conv_rpn_fpn2_w': 'rpn.head.conv.0.0.weight',
    'rpn_bbox_pred_fpn2_b': 'rpn.head.bbox_pred.bias',
    'fc1000_w': 'fc.weight',
    'pred_b': 'fc.bias',
    # detectron2
    'stem.conv1.weight': 'conv1.weight',
    'backbone.stem.conv1.norm.bias': 'bn1.bias',
    'backbone.bottom_up.stem.conv1.norm.running_mean': 'bn1.running_mean',
    'backbone.bottom_up.res2.0.shortcut.weight': 'layer1.0.downsample.0.weight',
    'backbone.res5.2.shortcut.norm.running_var': 'layer4.2.downsample.1.running_var',
    'backbone.bottom_up.res4.22.conv3.weight': 'layer3.22.conv3.weight',
    'res4.22.conv2.norm.weight': 'layer3.22.bn2.weight',
    f'{RPN_HEAD}.conv.weight': 'rpn.head.conv.0.0.weight',
    f'{RPN_HEAD}.conv.conv0.bias': 'rpn.head.conv.0.0.bias',
    f'{RPN_HEAD}.conv.conv1.bias': 'rpn.head.conv.1.0.bias',
    'stem.fc.weight': 'fc.weight',
    'backbone.fpn_lateral3.norm.running_var': 'fpn.inner_blocks.0.1.running_var',
    # mmdetection
    'backbone.gn1.bias': 'bn1.bias',
    'neck.lateral_convs.0.conv.weight': 'fpn.inner_blocks.0.0.weight',
    'neck.fpn_convs.3.bn.running_mean': 'fpn.layer_blocks.3.1.running_mean',
    'rpn_head.rpn_conv.weight': 'rpn.head.conv.0.0.weight',
    'rpn_head.rpn_conv.1.conv.bias': 'rpn.head.conv.1.0.bias',
    'rpn_head.rpn_cls.weight': 'rpn.head.cls_logits.weight',
    'rpn_head.rpn_reg.bias': 'rpn.head.bbox_pred.bias',
    # torchvision's detectors, and its head until 0.14
    'backbone.layer1.0.conv1.weight': 'layer1.0.conv1.weight',
    'backbone.body.bn1.num_batches_tracked': 'bn1.num_batches_tracked',
    'module.backbone.body.layer4.2.downsample.1.bias': 'layer4.2.downsample.1.bias',
    'rpn.head.conv.bias': 'rpn.head.conv.0.0.bias',
    'backbone.fpn.inner_blocks.0.weight': 'fpn.inner_blocks.0.0.weight',
    'rpn.head.conv.1.0.weight': 'rpn.head.conv.1.0.weight',
    # nobody's
    'res9_0_branch2d_w': 'res9_0_branch2d_w',
    'backbone.fpn.extra_blocks.p6.weight': 'backbone.fpn.extra_blocks.p6.weight',
    'my_s': 'my_s',
}


@pytest.mark.parametrize(('theirs', 'ours'), NAMES.items())
def test_names_become_torchvisions(theirs, ours):
    assert next(iter(to_torchvision({theirs: np.ones(3)}, None))) == ours


def test_other_parts_of_a_detector_are_dropped():
    others = (
        'conv1_w_momentum conv1_b lr weight_order pixel_mean cls_score_w bbox_pred_b '
        'roi_heads.box_predictor.bbox_pred.bias rpn.anchor_generator.cell_anchors.0'
    )
    assert to_torchvision(dict.fromkeys(others.split(), np.ones(3)), None) == {}


@pytest.mark.parametrize('suffix', ['s', 'gamma'])
def test_folded_norms_of_caffe2_divide_by_exactly_one(suffix):
    file = {f'res_conv1_bn_{suffix}': np.float32([0.5, 2]), 'conv1_w': np.ones((2, 3, 7, 7))}
    tensors = to_torchvision(file | {f'res2_0_branch1_bn_{suffix}': np.ones(3)}, None)
    assert weights.pixels(tensors) == 'caffe'
    for norm, size in {'bn1': 2, 'layer1.0.downsample.1': 3}.items():
        deviation = np.sqrt(tensors[f'{norm}.running_var'] + resnet.EPSILON)
        np.testing.assert_allclose(deviation, np.ones(size), rtol=1e-7)
        np.testing.assert_array_equal(tensors[f'{norm}.running_mean'], np.zeros(size))
    unfolded = file | {'res_conv1_bn_riv': np.float32([3, 4])}
    np.testing.assert_array_equal(to_torchvision(unfolded, None)['bn1.running_var'], [3, 4])


TORCHVISION = 'rpn.head.cls_logits', 'rpn.head.bbox_pred'
DETECTRON2 = f'{RPN_HEAD}.objectness_logits', f'{RPN_HEAD}.anchor_deltas'
CELLS = 'proposal_generator.anchor_generator.cell_anchors.0'


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
def test_a_detectron2_head_comes_in_the_order_of_our_anchors(sizes, ratios, has_cells):
    """detectron2: for size, for ratio. Ours: as anchors.base_anchors has them."""
    file = head([(size, ratio) for size in sizes for ratio in ratios], DETECTRON2)
    if has_cells:  # the file has its anchors, so nobody has to know them
        sides = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios]
        file[CELLS] = np.array([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])
    tensors = to_torchvision(file, None if has_cells else len(ratios))
    base = np.asarray(anchors.base_anchors(sizes, ratios))
    width, height = (base[:, 2:] - base[:, :2]).T
    order = tensors['rpn.head.cls_logits.weight'][:, :, 0, 0]
    np.testing.assert_allclose(order[:, 0], np.sqrt(width * height), rtol=0.04)  # rounded anchors
    np.testing.assert_allclose(order[:, 1], height / width, rtol=0.1)
    assert_head(tensors, order)


def test_who_names_no_ratios_gets_three():
    file = head([(size, ratio) for size in SIZES for ratio in RATIOS], DETECTRON2)
    assert_head(to_torchvision(file, None), [(size, ratio) for ratio in RATIOS for size in SIZES])


@pytest.mark.parametrize('names', [TORCHVISION, ('rpn_cls_logits', 'rpn_bbox_pred')])
def test_heads_of_torchvision_and_caffe2_keep_their_order(names):
    order = [(size, ratio) for ratio in RATIOS for size in SIZES]
    file = head(order, names)
    if names != TORCHVISION:
        file = {n.replace('.weight', '_w').replace('.bias', '_b'): t for n, t in file.items()}
    assert_head(to_torchvision(file, 3), order)


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
def test_a_head_of_other_anchors_is_refused(cells, complaint):
    file = head([(size, ratio) for size in SIZES for ratio in RATIOS], DETECTRON2)
    file |= {} if cells is None else {CELLS: np.array(cells)}
    with pytest.raises(ValueError, match=complaint):
        to_torchvision(file, 4)


def test_one_tensor_under_two_names_is_refused():
    file = dict.fromkeys(['conv1_w', 'backbone.conv1.weight'], np.ones(3))
    with pytest.raises(ValueError, match='conv1_w and backbone.conv1.weight are the same tensor'):
        to_torchvision(file, None)
