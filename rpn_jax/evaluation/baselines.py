"""Draws the boxes of fake proposal networks, which never see the image, and of a perfect one.

An average recall means little without them: the fakes say how much of it is owed to the mere number
of boxes and to where objects usually are, the oracle says what the anchors leave to be reached.

size is (height, width) of one image in pixels. Boxes are float64 [count, 4] (x0, y0, x1, y1) in
[0, width] x [0, height], in the pixels of the size and anchors given; their order is their rank.
"""

from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.ops.boxes import clip, decode, encode
from rpn_jax.ops.matching import match

# A name's position is part of its random seed: append, never reorder.
BLIND = ('random_boxes', 'random_anchors', 'gaussian_boxes', 'quadrants')


class Gaussian(NamedTuple):
    """A normal distribution over centre x, y and log width, height, in units of the image's."""

    mean: np.ndarray  # [4] float64
    covariance: np.ndarray  # [4, 4] float64


def draw(name, seed, image_index, count, size, anchors, fitted):
    """Draws the boxes of one of BLIND for one image: a function of (seed, image index) alone.

    seed and image_index, the image's position in its data set, are not negative. anchors [A, 4] and
    fitted, from fit_gaussian, are for those that need them.
    """
    rng = np.random.default_rng((seed, image_index, BLIND.index(name)))
    if name == 'random_boxes':
        return random_boxes(rng, count, size)
    if name == 'random_anchors':
        return random_anchors(rng, count, anchors, size)
    if name == 'gaussian_boxes':
        return gaussian_boxes(rng, count, size, fitted)
    return quadrants(rng, count, size)


def random_boxes(rng, count, size):
    """Draws boxes between two corners, each uniform over the image."""
    corners = np.sort(rng.random((count, 2, 2)), axis=1)
    return corners.reshape(count, 4) * _extent(size)


def random_anchors(rng, count, anchors, size):
    """Draws min(count, A) of anchors [A, 4] without replacement and clips them to the image."""
    anchors = np.asarray(anchors, np.float64)
    index = rng.choice(len(anchors), min(count, len(anchors)), replace=False)
    return np.clip(anchors[index], 0, _extent(size))


def fit_gaussian(boxes, sizes):
    """Fits the Gaussian of the boxes of many images, usually the objects of the train split.

    boxes: a sequence of [G, 4] pixels; sizes: the (height, width) of those images. Boxes without an
    area do not count. Raises InputError if no box is left.
    """
    relative = [np.reshape(b, (-1, 4)) / _extent(s) for b, s in zip(boxes, sizes, strict=True)]
    relative = np.concatenate([np.zeros((0, 4)), *relative])
    low, high = relative[:, :2], relative[:, 2:]
    real = np.all(high > low, axis=1)
    if not real.any():
        raise InputError('gaussian_boxes: no train image has an object; check data.train_split')
    low, high = low[real], high[real]
    sample = np.concatenate([(low + high) / 2, np.log(high - low)], axis=1)
    # The maximum-likelihood covariance: of a single box it is 0, not undefined.
    return Gaussian(sample.mean(axis=0), np.cov(sample, rowvar=False, bias=True))


def gaussian_boxes(rng, count, size, fitted):
    """Draws boxes from a Gaussian of centre and log size, clipped to the image.

    One covariance for all four, because width goes with height and size with place. As the Gaussian
    baseline of Hosang et al. (arXiv:1502.05082), with log width and height for their square root of
    area and log aspect ratio.
    """
    sample = rng.multivariate_normal(fitted.mean, fitted.covariance, count)
    centre, half = sample[:, :2], np.exp(sample[:, 2:]) / 2
    relative = np.concatenate([centre - half, centre + half], axis=1)
    return np.clip(relative, 0, 1) * _extent(size)


def quadrants(rng, count, size):
    """Draws boxes in the four quadrants in turn, row by row: uniform size, then uniform place."""
    turn = np.arange(count) % 4
    corner = np.stack([turn % 2, turn // 2], axis=1)
    side = rng.random((count, 2))
    low = corner + rng.random((count, 2)) * (1 - side)
    return np.concatenate([low, low + side], axis=1) * (_extent(size) / 2)


def oracle(anchors, boxes, kind, size, **targets):
    """Moves every anchor that matching labels 1 exactly onto its object: what perfect deltas give.

    anchors [A, 4], boxes [G, 4], kind [G]; where all images are padded to one G this compiles once.
    targets: the keywords of rpn_jax.targets.assign; those of sampling change nothing, and `border`
    is in the pixels given. Deltas are clamped as decode does. Returns [positives, 4], not ranked.
    """
    if not np.any(np.asarray(kind) == 1):
        return np.zeros((0, 4))
    rules = {k: v for k, v in targets.items() if k not in ('samples', 'positive_fraction')}
    moved, positive = _move(anchors, boxes, kind, size, rules)
    return np.asarray(moved, np.float64)[np.asarray(positive)]


@jax.jit
def _move(anchors, boxes, kind, size, rules):
    labels, matched = match(anchors, boxes, kind, size=size, **rules)
    deltas = encode(boxes[matched], anchors)
    return clip(decode(deltas, anchors), size), labels == 1


def _extent(size):
    height, width = size
    return np.array([width, height, width, height], np.float64)
