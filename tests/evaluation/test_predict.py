"""Prediction: from batches of images to proposals, the same on one device and on several."""

import jax
import numpy as np
from helpers import finished_run, tiny_config

from rpn_jax import data
from rpn_jax.data.canvases import square
from rpn_jax.evaluation.predict import make_predict
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint


def test_one_device_is_the_default_and_predicts_as_several():
    config = tiny_config(data__pixels='torchvision')
    options = data.Options(**config.data)
    source = data.open_split(options, options.eval_split, training=False)
    canvases = square(64, len(source.records))
    batch = data.batches.collate(source, canvases, range(4), max_boxes=16)
    variables, _ = checkpoint.variables(finished_run().folder)
    model = rpn.build(config.model, config.anchors)
    one, several = (
        make_predict(model, proposals=config.proposals, devices=devices)
        for devices in (None, jax.devices())
    )
    expected, logits, deltas = several(variables, batch, dense=True)
    assert logits.shape == deltas.shape[:2] == (4, sum(rpn.anchors_of(model, (64, 64)).levels))
    for ours, theirs in zip(one(variables, batch), expected, strict=True):
        assert len(ours) == 4
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
