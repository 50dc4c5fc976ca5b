"""What a file has beside an RPN's weights: each tensor is used, named in a note, or an error."""

import pickle
from collections import Counter

import numpy as np
import pytest
from helpers import variables_of

from rpn_jax import weights
from rpn_jax.errors import InputError
from rpn_jax.models import resnet, rpn
from rpn_jax.training import pretrained

MODEL = rpn.RPN(resnet.ResNet(26, 4, norm='frozen', width=8), rpn.RPNHead(3), (16,))
NET = {name: np.abs(tensor) for name, tensor in weights.from_variables(variables_of()).items()}
HEAD = {name: tensor for name, tensor in NET.items() if name.startswith('rpn.')}
BODY = {name: tensor for name, tensor in NET.items() if name not in HEAD}
OTHER = {name: tensor + 1 for name, tensor in BODY.items()}
COUNT, ONE, WHOLE = len(BODY), np.ones(1, np.float32), np.array([7])


def under(start, tensors):
    return {f'{start}.{name}': tensor for name, tensor in tensors.items()}


def as_type(dtype):
    return {name: tensor.astype(dtype) for name, tensor in BODY.items()}


MOCO = {
    **under('module.encoder_q', BODY | {'fc.0.weight': ONE}),
    **under('module.encoder_k', OTHER),
    **under('module', {'queue': ONE, 'queue_ptr': WHOLE}),
}
EMA = {'net': OTHER, 'ema': {'module': under('module', BODY)}, 'epoch': 7}
DETECTOR = {**under('backbone.body', BODY), **HEAD, 'roi_heads.box.weight': ONE}
PYRAMID = {**DETECTOR, 'backbone.fpn.inner_blocks.0.weight': ONE}
TEACHER = under('student', OTHER) | under('teacher.backbone', BODY) | {'teacher.head.0.bias': ONE}
TRAINING = {
    'optimizer': {'state': {0: {'step': 3, 'exp_avg': ONE}}, 'param_groups': [{'lr': 0.1}]},
    'model': DETECTOR,
    'lr_scheduler': {'milestones': Counter([16, 22])},
    'epoch': 25,
}
BACKBONE = under('backbone', BODY)
COUNTERS = {'bn1.num_batches_tracked': WHOLE, 'layer1.0.bn1.num_batches_tracked': WHOLE}


def loaded(tmp_path, content, key=''):
    """Returns what training gets of a file with this content, as it meets the network."""
    path = tmp_path / 'x'
    path.write_bytes(pickle.dumps(content))
    tensors = pretrained.load(str(path), 26, (0.5, 1, 2), key)
    pretrained.check(str(path), tensors, MODEL)
    return tensors


@pytest.mark.parametrize(
    ('content', 'key', 'used', 'note'),
    [
        (MOCO, '', BODY, f'module.encoder_k ({COUNT}), module.queue, module.queue_ptr, fc'),
        (MOCO, 'encoder_k', OTHER, f'module.encoder_q ({COUNT + 1}), module.queue, module.q'),
        ({'state_dict': MOCO}, 'module.encoder_k', OTHER, f'module.encoder_q ({COUNT + 1})'),
        (TRAINING, '', NET, 'optimizer, lr_scheduler, epoch, roi_heads'),
        (DETECTOR, 'backbone', BODY, f'rpn.head ({len(HEAD)}), roi_heads'),
        (PYRAMID, '', BODY, f'roi_heads, rpn.head ({len(HEAD)}), fpn'),
        (PYRAMID, 'backbone', BODY, f'rpn.head ({len(HEAD)}), roi_heads, fpn'),
        (EMA, 'net', OTHER, 'ema, epoch'),
        (EMA, 'ema', BODY, 'net, epoch'),
        ({'model': OTHER, 'ema': BODY}, '', OTHER, 'ema'),
        ({'model': {'name': 'rpn'}, 'state_dict': BODY}, '', BODY, 'model'),
        (TEACHER, 'teacher', BODY, f'student ({COUNT}), head'),
        (BODY | under('ema', OTHER), '', BODY, f'ema ({COUNT})'),
        (under('module._orig_mod', NET), '', NET, ''),
        ({'state_dict': under('model', DETECTOR)}, '', NET, 'roi_heads'),
        (under('module', BODY | {'projection_head.0.weight': ONE}), '', BODY, 'projection_head'),
        (under('encoder', BODY) | HEAD, '', NET, ''),
        (BACKBONE | {'neck.a': ONE, 'rpn_head.a': ONE, 'ptr': WHOLE}, '', BODY, 'ptr, neck, rpn_h'),
        (NET | COUNTERS | {'fc.weight': ONE}, '', NET, 'num_batches_tracked (2), fc'),
        (NET | {'layer4.0.a': ONE, 'layer4.1.a': ONE}, '', NET, 'layer4 (2)'),
        (NET | {'steps': [1], 'conv1_w_momentum': ONE, 'lr': ONE}, '', NET, 'steps, momentum, lr'),
        (as_type(np.float16), '', as_type(np.float16), ''),
        (as_type(np.float64), '', as_type(np.float64), ''),
    ],
)
def test_what_is_not_used_is_named(tmp_path, caplog, content, key, used, note):
    caplog.set_level('INFO')
    tensors = loaded(tmp_path, content, key)
    assert tensors.keys() == used.keys()
    for name, tensor in used.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert len(caplog.messages) == bool(note)
    assert not note or note in caplog.text and caplog.text.count('\n') == 1


KERNEL = BODY['layer1.0.conv1.weight']
SWAPPED = BODY['layer1.0.conv3.weight'].transpose(2, 3, 1, 0).copy()


@pytest.mark.parametrize(
    ('content', 'key', 'complaint'),
    [
        (EMA, '', rf'under net \({COUNT} tensors\), ema.module \({COUNT} tensors\); pretrained'),
        (EMA, 'nte', r'under net .*; pretrained_key picks one'),
        ({'model': BODY}, 'ema', "no tensors under pretrained_key='ema'; names begin with "),
        (TEACHER, '', 'several networks: student, teacher; pretrained_key picks one of them'),
        (under('a', DETECTOR) | under('b', DETECTOR), 'backbone', 'may be a.backbone, b.backbone'),
        (as_type(np.int8), '', 'no floating point numbers in '),
        (NET | {'layer1.0.conv1.weight': KERNEL * np.float32(np.nan)}, '', 'NaN or infinity'),
        (NET | {'bn1.running_var': -NET['bn1.running_var']}, '', 'below zero in bn1.running_var'),
        (NET | {'layer1.0.conv3.weight': SWAPPED}, '', 'misshapen layer1.0.conv3.weight'),
        (NET | {'layer3.9.conv1.weight': KERNEL}, '', 'unexpected layer3.9'),  # of a deeper network
        (NET | {'layer1.0.conv1.bias': ONE}, '', 'unexpected layer1.0.conv1.bias'),
        (NET | {'layer1.0.se.fc1.weight': ONE}, '', 'unexpected layer1.0.se'),
        (NET | {'conv2.weight': ONE}, '', 'unexpected conv2'),  # of a deep stem
        (NET | {'rpn.head.cls_logits.bias': ONE}, '', "misshapen rpn.head.*; pretrained_key='back"),
    ],
)
def test_what_another_network_computes_is_an_error(tmp_path, content, key, complaint):
    with pytest.raises(InputError, match=complaint):
        loaded(tmp_path, content, key)


def test_kernels_of_zeros_are_a_warning(tmp_path, caplog):
    loaded(tmp_path, NET | {'layer1.0.conv1.weight': np.zeros_like(KERNEL)})
    assert caplog.messages == [
        f'the weights {tmp_path / "x"} are nothing but zeros in layer1.0.conv1.weight'
    ]
