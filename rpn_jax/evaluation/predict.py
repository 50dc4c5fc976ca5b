"""Prediction: from a batch of images to proposals, on one device or several."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.models import resnet, rpn
from rpn_jax.ops import boxes as box
from rpn_jax.ops.anchors import Anchors
from rpn_jax.ops.matching import match
from rpn_jax.ops.proposals import Proposals, propose
from rpn_jax.training.parallel import here

SAMPLING = 'samples', 'positive_fraction'  # keywords of matching.assign that are not for matching


class Prediction(NamedTuple):
    """What a network predicts for one image, beside its ground truth: NumPy, in canvas pixels."""

    position: int  # of the image in its split
    proposals: Proposals
    logits: np.ndarray  # [A]
    deltas: np.ndarray  # [A, 4]
    anchors: Anchors
    gt_boxes: np.ndarray  # [G, 4]
    gt_kind: np.ndarray  # [G], 0 for padding
    size: np.ndarray  # [2] float32, (height, width) of the image inside its canvas
    labels: np.ndarray  # [A] of all anchors: 1 foreground, 0 background, -1 ignored
    matched: np.ndarray  # [A] row of the ground truth that each anchor is matched to
    decoded: np.ndarray  # [A, 4] the anchors as their deltas move them
    clipped: np.ndarray  # [A, 4] those boxes clipped to the image

    @classmethod
    def of(cls, position, proposals, maps, anchors, gt_boxes, gt_kind, size, targets):
        """Returns the Prediction of one image, whose anchors are matched and decoded here.

        maps are (logits, deltas); targets are keywords of matching.assign.
        """
        rules = {k: float(v) for k, v in targets.items() if k not in SAMPLING}
        image = gt_boxes, gt_kind, np.float32(size)
        followed = _follow(maps[1], anchors, *image, rules)
        anchors, *maps, followed = jax.device_get((anchors, *maps, followed))
        return cls(position, proposals, *maps, anchors, *image, *followed)


def make_predict(model, *, proposals, pixels=None, devices=None):
    """Returns predict(variables, batch) -> Proposals of NumPy arrays [N, P, ..] in canvas pixels.

    proposals are keywords of propose, pixels a normalization.Pixels (by default torchvision's),
    devices by default the first local one. batch has `image` [N, H, W, 3] and `size` [N, 2]; N is a
    multiple of the number of devices. With dense=True predict returns (Proposals, logits [N, A],
    deltas [N, A, 4]). With devices of several processes a batch holds the rows of this one, and
    what is returned those of all.
    """
    pixels = pixels or pixel_family('torchvision')
    devices = list(devices or jax.local_devices()[:1])
    own = len(here(devices))
    spread = own < len(devices)
    each = functools.partial(propose, **proposals)

    def apply(variables, batch):
        images = normalise(batch['image'], batch['size'], pixels)
        anchors = rpn.anchors_of(model, images.shape[1:3])
        logits, deltas = model.apply(variables, images)
        proposed = jax.vmap(each, (0, 0, None, 0))(logits, deltas, anchors, batch['size'])
        outputs = proposed, logits, deltas
        return jax.lax.all_gather(outputs, resnet.AXIS) if spread else outputs

    axes = {'in_axes': (None, 0), 'out_axes': None if spread else 0}
    mapped = jax.pmap(apply, resnet.AXIS, **axes, devices=devices)

    def predict(variables, batch, dense=False):
        count = len(batch['image']) // own * len(devices)
        rows = {name: batch[name] for name in ('image', 'size')}
        shards = {k: v.reshape(own, -1, *v.shape[1:]) for k, v in rows.items()}
        outputs = mapped(variables, shards)
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(count, *x.shape[2:]), outputs if dense else outputs[0]
        )

    predict.mapped = mapped  # for its cost analysis and its number of compilations
    return predict


@jax.jit
def _follow(deltas, anchors, gt_boxes, gt_kind, size, rules):
    """Returns labels and matched [A] of all anchors, and their boxes moved, and clipped [A, 4]."""
    labels, matched = match(anchors, gt_boxes, gt_kind, size=size, **rules)
    decoded = box.decode(deltas, anchors.boxes)
    return labels, matched, decoded, box.clip(decoded, size)
