"""Detectors on a pyramid: every trainer's names, what of a network they tell, what disagrees."""

import pickle
import re

import jax
import numpy as np
import pytest
from helpers import config_of

from rpn_jax import weights
from rpn_jax.config import with_keys
from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training import pretrained

ONE = np.ones(1, np.float32)
PYRAMID = {'last_stage': 5, 'fpn_stages': (2, 3, 4, 5), 'fpn_channels': 16}
SHORT = PYRAMID | {'last_stage': 4, 'fpn_stages': (2, 3, 4)}
COARSE = PYRAMID | {'fpn_stages': (3, 4, 5)}
V2 = PYRAMID | {'fpn_norm': 'batch', 'head_convs': 2}


def model_of(**changes):
    """Returns a tiny network with one anchor size for each level."""
    config = config_of(**changes)
    levels = len(config.model.fpn_stages) + config.model.fpn_extra
    sizes = tuple((2.0**i,) for i in range(levels)) if config.model.fpn_stages else (16.0,)
    config.anchors.sizes = sizes
    return rpn.build(config.model, config.anchors)


def detector(**changes):
    """Returns a tiny network's random tensors, by the names of torchvision's detectors."""
    shapes = pretrained.variable_shapes(model_of(**changes))
    rng = np.random.default_rng(0)
    return weights.from_variables(
        jax.tree.map(lambda s: np.abs(rng.standard_normal(s.shape)).astype(np.float32), shapes)
    )


def renamed(tensors, *rules):
    """Returns tensors by another trainer's names."""
    new = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        new[name] = tensor
    return new


def plain(tensors):
    return {re.sub(r'^backbone\.(body\.)?', '', name): t for name, t in tensors.items()}


def torchvision_before_014(tensors, _):
    return renamed(
        tensors,
        (r'(blocks\.\d)\.0', r'\1'),
        (r'(head\.conv)\.0\.0', r'\1'),
    )


def detectron2(tensors, first):
    stage, pyramid = (lambda m: f'res{int(m[1]) + 1}.'), r'backbone\.fpn\.{}_blocks\.(\d)\.{}\.'
    sides = np.float32([[22.6, 11.3], [16, 16], [11.3, 22.6]])
    cells = np.concatenate([-sides, sides], axis=1)
    anchors = 'proposal_generator.anchor_generator.cell_anchors.{}'
    rules = [
        (pyramid.format(*each), lambda m, to=to: f'backbone.fpn_{to.format(int(m[1]) + first)}.')
        for each, to in {
            ('inner', 0): 'lateral{}',
            ('inner', 1): 'lateral{}.norm',
            ('layer', 0): 'output{}',
            ('layer', 1): 'output{}.norm',
        }.items()
    ]
    several = any('rpn.head.conv.1.' in name for name in tensors)
    return {anchors.format(i): cells * 2**i for i in range(5)} | renamed(
        tensors,
        *rules,
        (r'body\.(conv1|bn1)', r'bottom_up.stem.\1'),
        (r'body\.layer(\d)\.', lambda m: f'bottom_up.{stage(m)}'),
        (r'downsample\.0', 'shortcut'),
        (r'downsample\.1', 'shortcut.norm'),
        (r'\.bn(\d)', r'.conv\1.norm'),
        (r'^rpn\.head', 'proposal_generator.rpn_head'),
        (r'_head\.conv\.(\d)\.0', r'_head.conv.conv\1' if several else '_head.conv'),
        ('cls_logits', 'objectness_logits'),
        ('bbox_pred', 'anchor_deltas'),
    )


def caffe2(tensors, first):
    blob = {2: 'res2_1_sum', 3: 'res3_1_sum', 4: 'res4_1_sum', 5: 'res5_1_sum'}
    top = max(int(m[1]) for m in map(re.compile(r'.*inner_blocks\.(\d)').match, tensors) if m)

    def lateral(match):
        level, norm = int(match[1]), '_gn' if match[2] == '1' else ''
        lateral = '' if level == top else '_lateral'
        return f'fpn_inner_{blob[level + first]}{lateral}{norm}.'

    def output(match):
        return f'fpn_{blob[int(match[1]) + first]}{"_gn" if match[2] == "1" else ""}.'

    return renamed(
        tensors,
        (r'backbone\.fpn\.inner_blocks\.(\d)\.(\d)\.', lateral),
        (r'backbone\.fpn\.layer_blocks\.(\d)\.(\d)\.', output),
        (r'backbone\.body\.', ''),
        ('^bn1', 'res_conv1_bn'),
        (r'layer(\d)\.(\d)\.', lambda m: f'res{int(m[1]) + 1}_{m[2]}_'),
        (r'downsample\.0', 'branch1'),
        (r'downsample\.1', 'branch1_bn'),
        (r'conv(\d)\.', lambda m: f'{"branch2" + " abc"[int(m[1])] if m.start() else "conv1"}.'),
        (r'_bn(\d)', lambda m: f'_branch2{" abc"[int(m[1])]}_bn'),
        (r'rpn\.head\.conv\.0\.0', f'conv_rpn_fpn{first}'),
        (r'rpn\.head\.(cls_logits|bbox_pred)', rf'rpn_\1_fpn{first}'),
        (r'n\.weight$', 'n_s'),
        (r'\.weight$', '_w'),
        (r'\.bias$', '_b'),
        (r'\.running_mean$', '_rm'),
        (r'\.running_var$', '_riv'),
    ) | {'conv1_b': ONE, 'fc6_w': ONE, 'cls_score_w': ONE}


def mmdetection(tensors, _, norm='bn'):
    several = any('rpn.head.conv.1.' in name for name in tensors)
    return {'roi_head.bbox_head.fc_cls.weight': ONE} | renamed(
        tensors,
        (r'fpn\.inner_blocks\.(\d)\.0', r'neck.lateral_convs.\1.conv'),
        (r'fpn\.layer_blocks\.(\d)\.0', r'neck.fpn_convs.\1.conv'),
        (r'fpn\.inner_blocks\.(\d)\.1', rf'neck.lateral_convs.\1.{norm}'),
        (r'fpn\.layer_blocks\.(\d)\.1', rf'neck.fpn_convs.\1.{norm}'),
        (r'backbone\.(body\.)?(neck)', r'\2'),
        (r'backbone\.body', 'backbone'),
        (r'\.bn(\d)', rf'.{norm}\1'),
        (
            r'rpn\.head\.conv\.(\d)\.0',
            r'rpn_head.rpn_conv.\1.conv' if several else 'rpn_head.rpn_conv',
        ),
        (r'rpn\.head\.cls_logits', 'rpn_head.rpn_cls'),
        (r'rpn\.head\.bbox_pred', 'rpn_head.rpn_reg'),
    )


def mmdetection_gn(tensors, first):
    return mmdetection(tensors, first, 'gn')


def as_it_is(tensors, _):
    return tensors | {'roi_heads.box_head.fc6.weight': ONE, 'bn.num_batches_tracked': np.array(7)}


def loaded(tmp_path, content, key='', **changes):
    """Returns what training gets of a file with this content, as it meets a network."""
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps(content))
    tensors = pretrained.load(str(path), 26, (0.5, 1, 2), key)
    pretrained.check(str(path), tensors, model_of(**changes))
    return tensors


@pytest.mark.parametrize(
    ('family', 'changes'),
    [
        (as_it_is, PYRAMID),
        (as_it_is, V2),
        (as_it_is, V2 | {'fpn_norm': 'frozen'}),
        (torchvision_before_014, PYRAMID),
        (detectron2, PYRAMID),
        (detectron2, COARSE),
        (detectron2, V2),
        (detectron2, SHORT | {'fpn_norm': 'group'}),
        (caffe2, PYRAMID),
        (caffe2, COARSE),
        (caffe2, SHORT | {'fpn_norm': 'group'}),
        (mmdetection, PYRAMID),
        (mmdetection, COARSE),
        (mmdetection, V2),
        (mmdetection_gn, PYRAMID | {'norm': 'group', 'fpn_norm': 'group'}),
    ],
)
def test_the_names_of_a_trainer_become_ours(tmp_path, family, changes):
    tensors = detector(**changes)
    file = family(tensors, changes['fpn_stages'][0])
    taken, expected = loaded(tmp_path, file, **changes), plain(tensors)
    assert sorted(taken) == sorted(expected)
    for name, tensor in taken.items():
        np.testing.assert_array_equal(tensor, expected[name])
    public = weights.load(tmp_path / 'x.pkl')
    assert sorted(set(tensors) - set(public)) == []
    assert weights.pixels(public) == weights.pixels(taken)


C4 = {'last_stage': 4}
FOUND = {name: detector(**changes) for name, changes in {'c4': C4, 'fpn': PYRAMID}.items()}
PARTS = {'pyramid': 'backbone.fpn', 'head': 'rpn.head'}


def without(part, tensors):
    return {name: t for name, t in tensors.items() if not name.startswith(PARTS[part])}


HEADLESS = without('head', detector(**COARSE))
RETINANET = HEADLESS | {'backbone.fpn.extra_blocks.p6.weight': ONE, 'head.regression_head.a': ONE}
BODY = without('pyramid', without('head', FOUND['fpn']))


@pytest.mark.parametrize(
    ('content', 'key', 'changes', 'used', 'notes'),
    [
        (RETINANET, '', COARSE, HEADLESS, ['backbone.fpn, head', 'first: head']),
        (RETINANET, '', C4, BODY, ['fpn (12), backbone.fpn, layer4 (35), head']),
        (FOUND['fpn'], '', C4, BODY, ['fpn (16), rpn.head (6)']),
        (FOUND['fpn'], 'backbone.body', PYRAMID, BODY, ['fpn', 'first: pyramid, head']),
        (FOUND['fpn'], 'backbone', PYRAMID, without('head', FOUND['fpn']), ['rpn', 'first: head']),
        (FOUND['c4'], '', SHORT, without('head', FOUND['c4']), ['rpn.head (6)', 'pyramid, head']),
        (mmdetection(HEADLESS, 3) | {'neck.fpn_convs.3.conv.weight': ONE}, '', COARSE, HEADLESS, 2),
        (
            BODY | {'neck.a': ONE, 'fc.weight': ONE},
            '',
            PYRAMID,
            BODY,
            ['neck, fc', 'pyramid, head'],
        ),
    ],
)
def test_what_a_network_has_no_place_for_or_lacks_is_noted(
    tmp_path, caplog, content, key, changes, used, notes
):
    caplog.set_level('INFO')
    tensors = loaded(tmp_path, content, key, **changes)
    last = 'layer4' if changes['last_stage'] == 4 else 'none'
    assert sorted(tensors) == sorted(name for name in plain(used) if not name.startswith(last))
    for message, note in zip(
        caplog.messages, notes if notes != 2 else ['roi', 'head'], strict=True
    ):
        assert note in message and message.startswith('note: ')


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (
            dict(depth=50),
            'with a pyramid on conv2 to conv5 and 2 head convolutions; set depth=26',
        ),
        (dict(width=16), 'of width 8 with a pyramid on conv2 to conv5 and 2 head.*; set width=8'),
        (COARSE, r'with a pyramid on conv2 to conv5 .*; set fpn_stages=\(2, 3, 4, 5\)'),
        (SHORT, r'; set fpn_stages=\(2, 3, 4, 5\), last_stage=5'),
        (dict(fpn_channels=32), 'on conv2 to conv5 of 16 channels and .*; set fpn_channels=16'),
        (dict(fpn_norm=''), "conv5 with batch norm and .*; set fpn_norm='batch'"),
        (dict(head_convs=1), 'and 2 head convolutions; set head_convs=2'),
        (dict(depth=50, head_convs=3), 'and 2 head convolutions; set depth=26, head_convs=2'),
    ],
)
def test_where_a_config_disagrees_with_weights_one_line_says_what_to_set(tmp_path, changes, told):
    with pytest.raises(InputError, match=f'x.pkl: hold ResNet-26 .*{told}') as error:
        loaded(tmp_path, detector(**V2), **V2 | changes)
    has_hint = set(changes) > {'depth'} or not changes.keys() & {'depth', 'width'}
    assert ("; pretrained_key='backbone' takes" in str(error.value)) == has_hint
    keys = {f'model.{key}' for key in re.findall(r'(\w+)=', told)}
    assert set(re.findall(r'model\.\w+', with_keys(str(error.value)))) >= keys


@pytest.mark.parametrize('changes', [PYRAMID, PYRAMID | {'fpn_stages': ()}])
def test_weights_that_lack_a_stage_name_the_last_that_they_have(tmp_path, changes):
    stages = r'fpn_stages=\(2, 3, 4\), ' if changes['fpn_stages'] else ''
    with pytest.raises(InputError, match=f'hold ResNet-26 up to conv4; set {stages}last_stage=4$'):
        loaded(tmp_path, FOUND['c4'], **changes)


def test_what_a_pyramids_head_reads_must_be_known(tmp_path):
    """As of a pyramid whose further levels are convolutions, or which has a path upwards."""
    for name in ('neck.pafpn_convs.0.conv.weight', 'backbone.top_block.p6.weight'):
        with pytest.raises(InputError, match=f"unexpected {name}; pretrained_key='backbone' takes"):
            loaded(tmp_path, FOUND['fpn'] | {name: ONE}, **PYRAMID)


def test_levels_of_several_aspect_ratios_are_refused(tmp_path):
    file = detectron2(FOUND['fpn'], 2)
    cells = 'proposal_generator.anchor_generator.cell_anchors.4'
    with pytest.raises(InputError, match="head's anchors have 2 and 3 aspect ratios, not 3"):
        loaded(tmp_path, file | {cells: file[cells][1:]}, **PYRAMID)
