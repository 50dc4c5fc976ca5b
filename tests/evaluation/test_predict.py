"""Prediction: from batches of images to proposals, the same on one device and on several."""

import jax
import numpy as np
from helpers import random_variables, tiny_config

from rpn_jax.evaluation.predict import make_predict
from rpn_jax.models import rpn


def test_one_device_is_the_default_and_predicts_as_several():
    config = tiny_config()
    model = rpn.build(config.model, config.anchors)
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    batch = {'image': images, 'size': np.float32([[64, 64], [64, 40], [40, 64], [50, 50]])}
    variables = random_variables(model)
    one, several = (
        make_predict(model, proposals=config.proposals, devices=devices)
        for devices in (None, jax.devices())
    )
    expected, logits, deltas = several(variables, batch, dense=True)
    assert logits.shape == deltas.shape[:2] == (4, sum(rpn.anchors_of(model, (64, 64)).levels))
    edges = expected.boxes.max(axis=1)[:, 2:]
    assert np.all(edges <= batch['size'][:, ::-1]) and np.ptp(edges) > 9
    for ours, theirs in zip(one(variables, batch), expected, strict=True):
        assert len(ours) == 4
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
