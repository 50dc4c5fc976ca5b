"""What is read of a network is what its maps, gradients and proposals are."""

import jax
import numpy as np
import pytest
from config_cases import config_of

from rpn_jax import data
from rpn_jax.data.normalization import pixel_family
from rpn_jax.diagnosis import network
from rpn_jax.models import rpn
from rpn_jax.training import loop
from rpn_jax.training.step import init_state

PYRAMID = dict(
    model__fpn_stages=(2, 3), model__fpn_channels=16, anchors__sizes=((16,), (24,), (40,))
)


@pytest.mark.parametrize('changes', [{}, PYRAMID])
def test_dead_channels_pulls_and_scores_are_those_of_the_network(changes):
    config = config_of(model__norm='group', model__fpn_norm='', **changes)
    options = data.options(**config.data)
    source = data.open_split(options, 'train', seed=0)
    batch = data.train_batch(source, options, seed=0)(0)
    model = rpn.build(config.model, config.anchors)
    _, optimizer, _ = loop.build(config)
    variables = jax.device_get(init_state(model, optimizer, 0).variables)
    measure = network.make_measure(
        model,
        seed=0,
        devices=jax.local_devices()[:1],
        pixels=pixel_family('torchvision'),
        targets=config.targets,
        loss={'box_weight': 0.0},
    )
    found = measure(variables, batch)
    assert {*found['dead']} == {'conv2', 'conv3', 'head'} and max(found['dead'].values()) < 0.5
    assert found['gradients']['objectness'] > 0 == found['gradients']['box'] == found['box']
    assert all(0.3 < score < 0.7 for score in found['scores'])
    assert found['boxes'].shape == (4, network.BEST, 4) and found['valid'].any()
    head = variables['params']['head']['conv']
    head['bias'] = np.where(np.arange(len(head['bias'])) % 4, -1e6, head['bias'])
    assert measure(variables, batch)['dead']['head'] >= 0.75


def test_the_spread_of_boxes_is_that_of_their_log_sizes():
    sides = np.array([10.0, 20.0, 40.0])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert network.spread(boxes) == pytest.approx(np.std(np.log(sides)))
    assert network.spread(boxes[:1]) == network.spread(boxes[:0]) == 0
