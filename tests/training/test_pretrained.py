"""What a run starts from, and what its weights want of a config."""

import json

import jax
import numpy as np
import pytest
from helpers import finished_run, tiny_config
from safetensors.numpy import save_file

from rpn_jax.config import resolve
from rpn_jax.errors import InputError
from rpn_jax.training import checkpoint, loop, pretrained, workdir
from rpn_jax.training.step import init_state
from rpn_jax.weights import from_variables

RATIOS = (0.5, 1.0, 2.0)
CAFFE = {'data': {'pixels': 'caffe'}, 'model': {'stride_in_1x1': True}}
OURS = {
    'data': {'pixels': 'caffe', 'mean': (1.0, 2.0, 3.0), 'std': (4.0, 5.0, 6.0)},
    'model': {'stride_in_1x1': True},
}


@pytest.fixture
def msra(tmp_path):
    """Returns a weights file whose stem has the variance of pixels in 0..255."""
    parts = {'weight': [0.5, 2.0], 'running_mean': [0, 0], 'running_var': [3000, 4000]}
    tensors = {f'bn1.{part}': np.float32(values) for part, values in parts.items()}
    save_file(tensors, tmp_path / 'msra.safetensors')
    return str(tmp_path / 'msra.safetensors')


@pytest.fixture(params=['workdir', 'export'])
def ours(request, tmp_path):
    """Returns a workdir, or an exported file, whose config has the settings OURS."""
    if request.param == 'export':
        tensors = {'bn1.running_var': np.ones(2, np.float32)}
        save_file(tensors, tmp_path / 'x.safetensors', {'rpn_jax': json.dumps(OURS)})
        return str(tmp_path / 'x.safetensors')
    config = tiny_config(model__stride_in_1x1=True)
    config.data.update(OURS['data'])
    workdir.begin(tmp_path, config)
    (tmp_path / 'checkpoints/8').mkdir(parents=True)  # as of an earlier version: without a config
    return str(tmp_path)


def test_a_run_starts_from_another_runs_checkpoint():
    folder = finished_run().folder
    model, optimizer, _ = loop.build(tiny_config())
    for path, step in (('', None), ('checkpoints', None), ('checkpoints/6', 6)):
        variables, _ = checkpoint.variables(folder, step)
        tensors = pretrained.load(str(folder / path), 26, RATIOS)
        jax.tree.map(np.testing.assert_array_equal, dict(tensors), from_variables(variables))
    pretrained.check('', tensors, model)
    state = init_state(model, optimizer, 1, tensors)
    jax.tree.map(np.testing.assert_array_equal, state.variables, variables)


def test_a_run_has_no_keys_that_could_help():
    folder = str(finished_run().folder)
    model, *_ = loop.build(tiny_config(model__head_convs=2))
    with pytest.raises(InputError, match='set head_convs=1$'):
        pretrained.check(folder, pretrained.load(folder, 26, RATIOS), model)


def test_weights_of_another_network_are_refused_by_their_file(msra):
    model, *_ = loop.build(tiny_config())
    with pytest.raises(InputError, match=f'^{msra}: .*missing conv1.weight'):
        pretrained.check(msra, pretrained.load(msra, 26, RATIOS), model)


def test_weights_say_which_pixels_they_want(msra, ours):
    assert pretrained.expects(msra, RATIOS) == CAFFE
    assert pretrained.expects(ours, RATIOS) == OURS
    expected = {'data': {'pixels': 'torchvision'}, 'model': {'stride_in_1x1': False}}
    assert pretrained.expects('imagenet_v2', RATIOS) == expected


@pytest.mark.parametrize('text', ['no JSON', '[1]', '{}', '{"data": {"pixels": "x"}}'])
def test_what_a_strangers_file_says_of_itself_is_passed_over(tmp_path, text):
    tensors = {'bn1.running_var': np.float32([3000, 4000])}
    save_file(tensors, tmp_path / 'x.safetensors', {'rpn_jax': text})
    assert pretrained.expects(str(tmp_path / 'x.safetensors'), RATIOS) == CAFFE


@pytest.mark.parametrize(
    ('pixels', 'stride', 'warning'),
    [
        ('auto', True, ''),
        ('caffe', True, ''),
        ('auto', False, 'want model.stride_in_1x1=True, it is False'),
        ('torchvision', True, 'want data.pixels=caffe, it is torchvision'),
    ],
)
def test_weights_that_contradict_the_config_are_a_warning(msra, caplog, pixels, stride, warning):
    config = tiny_config(model__pretrained=msra, model__stride_in_1x1=stride, data__pixels=pixels)
    assert resolve(config).data.pixels == ('caffe' if pixels == 'auto' else pixels)
    assert caplog.messages == ([f'the weights {msra} {warning}'] if warning else [])


def test_our_own_weights_bring_their_mean_and_deviation(ours, caplog):
    """Even where the stem's norm shows nothing, as in a run from random weights."""
    config = tiny_config(model__pretrained=ours, data__pixels='auto', data__std=(7, 8, 9))
    data = resolve(config).data
    assert (data.pixels, data.mean, data.std) == ('caffe', (1, 2, 3), (7, 8, 9))
    expected = [
        'data.std=(4.0, 5.0, 6.0), it is (7, 8, 9)',
        'model.stride_in_1x1=True, it is False',
    ]
    assert caplog.messages == [f'the weights {ours} want {each}' for each in expected]
