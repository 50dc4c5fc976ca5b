"""Baselines: boxes that are drawn without the image, and anchors with perfect regression.

An average recall means little without them: the blind baselines show how much of it comes from the
number of boxes and from where objects usually are, the oracle shows what the anchors can reach.

size is (height, width) of one image in pixels. Boxes are float64 [count, 4] (x0, y0, x1, y1) in
[0, width] x [0, height], in the pixels of the size and anchors given; their order is their rank.
"""

from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.data.records import OBJECT
from rpn_jax.errors import InputError
from rpn_jax.evaluation.predict import SAMPLING
from rpn_jax.ops.anchors import boxes_of
from rpn_jax.ops.boxes import clip, decode, encode
from rpn_jax.ops.matching import FOREGROUND, match

# A name's position is part of its random seed: append, never reorder.
BLIND = ('random_boxes', 'random_anchors', 'gaussian_boxes', 'quadrants')


class Gaussian(NamedTuple):
    """A normal distribution over centre x, y and log width, height, in units of the image's."""

    mean: np.ndarray  # [4] float64
    covariance: np.ndarray  # [4, 4] float64


def draw(name, seed, image_index, count, size, anchors, gaussian):
    """Draws the boxes of one of BLIND for one image, at random by seed and image index.

    seed and image_index, the image's position in its data set, are not negative.
    """
    rng = np.random.default_rng((seed, image_index, BLIND.index(name)))
    if name == 'random_anchors':
        return random_anchors(rng, count, anchors, size)
    if name == 'gaussian_boxes':
        return gaussian_boxes(rng, count, size, gaussian)
    make = {'random_boxes': random_boxes, 'quadrants': quadrants}[name]
    return make(rng, count, size)


def random_boxes(rng, count, size):
    """Draws boxes between two corners, each uniform over the image."""
    corners = np.sort(rng.random((count, 2, 2)), axis=1)
    return corners.reshape(count, 4) * _extent(size)


def random_anchors(rng, count, anchors, size):
    """Draws min(count, A) anchors without replacement and clips them to the image.

    anchors are Anchors, of all levels alike, or boxes [A, 4].
    """
    anchors = np.asarray(boxes_of(anchors), np.float64)
    index = rng.choice(len(anchors), min(count, len(anchors)), replace=False)
    return np.clip(anchors[index], 0, _extent(size))


def fit_gaussian(records):
    """Returns the Gaussian of the objects (kind 1) of records, usually those of the train split.

    Boxes without an area do not count. Raises InputError if no box is left.
    """
    relative = [r.boxes[r.kind == OBJECT] / _extent(r.size) for r in records]
    relative = np.concatenate([np.zeros((0, 4)), *relative])
    low, high = relative[:, :2], relative[:, 2:]
    real = np.all(high > low, axis=1)
    if not real.any():
        raise InputError(
            'no training image has an object, so that the baseline gaussian_boxes cannot be '
            'fitted; check the training split'
        )
    low, high = low[real], high[real]
    sample = np.concatenate([(low + high) / 2, np.log(high - low)], axis=1)
    # The maximum-likelihood covariance: of a single box it is 0, not undefined.
    return Gaussian(sample.mean(axis=0), np.cov(sample, rowvar=False, bias=True))


def gaussian_to_json(gaussian):
    """Returns a Gaussian as plain JSON, which holds it to the last bit: a dict of lists."""
    return {name: values.tolist() for name, values in gaussian._asdict().items()}


def gaussian_from_json(content):
    """Returns the Gaussian of what gaussian_to_json returned; raises ValueError for what is not."""
    try:
        mean, covariance = (np.array(content[name], np.float64) for name in Gaussian._fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'not a mean [4] and a covariance [4, 4] ({error})') from error
    finite = np.all(np.isfinite(mean)) and np.all(np.isfinite(covariance))
    if mean.shape != (4,) or covariance.shape != (4, 4) or not finite:
        raise ValueError('not a mean [4] and a covariance [4, 4] of finite numbers')
    least = np.linalg.eigvalsh(covariance).min()
    inside = np.all(np.abs(mean[:2] - 0.5) < 0.51) and np.all(mean[2:] < 0.01)
    if not np.allclose(covariance, covariance.T) or least < -1e-6 or not inside:
        raise ValueError('not a mean and a covariance of boxes in their images')
    return Gaussian(mean, covariance)


def gaussian_boxes(rng, count, size, gaussian):
    """Draws boxes from a Gaussian of centre and log size, clipped to the image.

    As the baseline of Hosang et al. (arXiv:1502.05082), with log width and height for their square
    root of area and log aspect ratio, and all four correlated.
    """
    sample = rng.multivariate_normal(gaussian.mean, gaussian.covariance, count)
    centre, half = sample[:, :2], np.exp(sample[:, 2:]) / 2
    relative = np.concatenate([centre - half, centre + half], axis=1)
    return np.clip(relative, 0, 1) * _extent(size)


def quadrants(rng, count, size):
    """Draws boxes in the four quadrants in turn, of uniform size, then of uniform position."""
    turn = np.arange(count) % 4
    corner = np.stack([turn % 2, turn // 2], axis=1)
    side = rng.random((count, 2))
    low = corner + rng.random((count, 2)) * (1 - side)
    return np.concatenate([low, low + side], axis=1) * (_extent(size) / 2)


def oracle(anchors, gt_boxes, gt_kind, size, **targets):
    """Returns every foreground anchor moved onto its object, [positives, 4], not ranked.

    What perfect regression gives, with deltas clamped as in decode. anchors are Anchors or boxes
    [A, 4], gt_boxes [G, 4] and gt_kind [G] the ground truth, padded to one G so that this compiles
    once for each canvas; targets are keywords of matching.assign.
    """
    if not np.any(np.asarray(gt_kind) == OBJECT):
        return np.zeros((0, 4))
    rules = {k: v for k, v in targets.items() if k not in SAMPLING}
    moved, positive = _move(boxes_of(anchors), gt_boxes, gt_kind, size, rules)
    return np.asarray(moved, np.float64)[np.asarray(positive)]


@jax.jit
def _move(anchors, gt_boxes, gt_kind, size, rules):
    labels, matched = match(anchors, gt_boxes, gt_kind, size=size, **rules)
    deltas = encode(gt_boxes[matched], anchors)
    return clip(decode(deltas, anchors), size), labels == FOREGROUND


def _extent(size):
    height, width = size
    return np.array([width, height, width, height], np.float64)
