"""Measures whether boxes lie on objects by the edges of the image, without any network.

Along the border of an object's box an image has stronger edges than elsewhere. The score of boxes
is the mean logarithm of the edges across their borders, over those of the image: about 0.3 for the
boxes of photographs, 0 for boxes of other images.
"""

from typing import NamedTuple

import cv2
import numpy as np

BAND = 2  # pixels on either side of a border
ENOUGH = 40  # boxes from which the score can tell
CLEARLY = 3.0  # standard errors
TYPICAL = 0.25  # by which boxes of objects are above those of other images, or more
WAYS = {  # what may have happened to boxes, undone: (boxes, width, height, resize factors) -> boxes
    'x and y swapped': lambda b, w, h, f: b[:, [1, 0, 3, 2]],
    'mirrored': lambda b, w, h, f: np.stack([w - b[:, 2], b[:, 1], w - b[:, 0], b[:, 3]], 1),
    'upside down': lambda b, w, h, f: np.stack([b[:, 0], h - b[:, 3], b[:, 2], h - b[:, 1]], 1),
    'resized once more': lambda b, w, h, f: b * f,
    'not resized': lambda b, w, h, f: b / f,
    'as (x, y, width, height)': lambda b, w, h, f: np.concatenate(
        [b[:, :2], b[:, :2] + b[:, 2:]], 1
    ),
}


class Edges(NamedTuple):
    """Summed-area tables [h + 1, w + 1] of the edges along x and along y, of mean 1 each."""

    across_x: np.ndarray
    across_y: np.ndarray


def edges(image):
    """Returns the Edges of an image uint8 [h, w, 3]."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
    slopes = (np.abs(cv2.Sobel(grey, cv2.CV_32F, *axis)) for axis in ((1, 0), (0, 1)))
    return Edges(
        *(cv2.integral(slope / max(slope.mean(), 1e-6), sdepth=cv2.CV_64F) for slope in slopes)
    )


def scores(image_edges, boxes):
    """Returns the score of each box [n, 4], NaN where no border of it lies inside the image."""
    height, width = np.array(image_edges.across_x.shape) - 1
    found = []
    for x0, y0, x1, y1 in np.round(np.asarray(boxes, np.float64)).astype(int):
        bands = []
        for x in (x0, x1):
            if BAND < x < width - BAND:
                bands.append(_mean(image_edges.across_x, x - BAND, y0, x + BAND, y1))
        for y in (y0, y1):
            if BAND < y < height - BAND:
                bands.append(_mean(image_edges.across_y, x0, y - BAND, x1, y + BAND))
        bands = [band for band in bands if np.isfinite(band)]
        found.append(np.log(np.mean(bands) + 0.05) if bands else np.nan)
    return np.array(found, np.float64)


def _mean(sums, x0, y0, x1, y1):
    height, width = np.array(sums.shape) - 1
    (x0, x1), (y0, y1) = np.clip([x0, x1], 0, width), np.clip([y0, y1], 0, height)
    cells = (x1 - x0) * (y1 - y0)
    if cells <= 0:
        return np.nan
    return (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / cells


def compare(images, boxes, sizes):
    """Returns {way: (mean score, its standard error, boxes)} of boxes as they are, and changed.

    images are uint8 [h, w, 3], boxes [n, 4] those of each, sizes (height, width) of the originals.
    The ways are 'as they are', those of WAYS, and 'of other images', the score of boxes at random.
    """
    ways = {'as they are': [], **{way: [] for way in WAYS}, 'of other images': []}
    every = list(map(edges, images))
    for number, (own, mine) in enumerate(zip(every, boxes, strict=True)):
        height, width = np.array(own.across_x.shape) - 1
        ratio = np.array([width, height] * 2) / np.array([*sizes[number][::-1]] * 2)
        ways['as they are'].append(scores(own, mine))
        for way, change in WAYS.items():
            ways[way].append(scores(own, change(mine, width, height, ratio)))
        for other in boxes[:number] + boxes[number + 1 :]:
            ways['of other images'].append(scores(own, other[:1]))
    return {way: _summary(np.concatenate([np.zeros(0), *each])) for way, each in ways.items()}


def _summary(values):
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return np.nan, np.inf, len(values)
    return float(values.mean()), float(values.std() / np.sqrt(len(values))), len(values)
