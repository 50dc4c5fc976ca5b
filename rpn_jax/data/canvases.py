"""Canvases: the few static shapes that images of all sizes are resized onto."""

import itertools
from typing import NamedTuple

import numpy as np

WORTH = 0.02  # share of the pixels that another canvas must save


class Canvases(NamedTuple):
    """The canvas of each image of a split, and its size there."""

    shapes: tuple[tuple[int, int], ...]  # (height, width) of each canvas, pixels
    of: np.ndarray  # [n] int: the canvas of each image
    sizes: np.ndarray  # [n, 2] int: (height, width) of each image, resized

    @property
    def padding(self):
        """The share of the canvases' pixels that no image covers, over one pass of the split."""
        areas = np.prod(self.shapes, 1)[self.of]
        return 1 - np.prod(self.sizes, 1).sum() / areas.sum()


def square(size, count):
    """Returns the one canvas that every image is stretched to: (size, size)."""
    sizes = np.full((count, 2), size)
    return Canvases(((size, size),), np.zeros(count, int), sizes)


def short_side(sizes, *, image_size, max_size, limit, least=1, multiple=32):
    """Returns at most `limit` canvases with little padding for images of these sizes [n, 2].

    Every image is resized to a short side of image_size pixels, or less where its long side would
    exceed max_size (Faster R-CNN, section 3.3). A canvas holds at least `least` images, if there
    are as many: a smaller group is merged into the canvas that costs least. Sides are multiples of
    `multiple` pixels.
    """
    resized = np.array([resized_size(size, image_size, max_size) for size in sizes])
    needed = -(-resized // multiple) * multiple
    wide = needed[:, 1] >= needed[:, 0]
    options = [_groupings(needed, np.flatnonzero(mask), limit) for mask in (wide, ~wide)]
    choices = [(a + b, one + two) for (a, one), (b, two) in itertools.product(*options)]
    best, cost = [np.arange(len(needed))], needed[:, 0].max() * needed[:, 1].max() * len(needed)
    for price, groups in sorted(choices, key=lambda choice: len(choice[1])):
        if len(groups) <= limit and price < cost * (1 - WORTH):
            best, cost = groups, price
    groups = _merged(best, needed, least)
    of = np.zeros(len(resized), int)
    for number, group in enumerate(groups):
        of[group] = number
    shapes = tuple(tuple(needed[group].max(0).tolist()) for group in groups)
    return Canvases(shapes, of, resized)


def resized_size(size, image_size, max_size):
    """Returns the (height, width) in whole pixels that short_side gives an image of `size`."""
    scale = min(image_size / min(size), max_size / max(size))
    return tuple(max(1, int(side * scale + 0.5)) for side in size)


def _groupings(needed, members, limit):
    """Returns (cost, groups) of the cheapest splits of images into 0 to limit groups.

    Found by dynamic programming over the distinct long sides: a group has neighbours in length, and
    costs the area of its canvas for each of its images.
    """
    sides = np.sort(needed[members], 1)  # short, long
    lengths, bucket = np.unique(sides[:, 1], return_inverse=True)
    widths = np.array([sides[bucket == k, 0].max() for k in range(len(lengths))])
    counts = np.bincount(bucket)

    def cost(first, last):
        return counts[first:last].sum() * lengths[last - 1] * widths[first:last].max()

    best = {(0, 0): (0, ())}  # (groups, lengths covered) -> cost, where each group ends
    for number in range(1, limit + 1):
        for last in range(number, len(lengths) + 1):
            best[number, last] = min(
                (
                    best[number - 1, first][0] + cost(first, last),
                    (*best[number - 1, first][1], last),
                )
                for first in range(number - 1, last)
                if (number - 1, first) in best
            )
    return [
        (total, [members[(bucket >= a) & (bucket < b)] for a, b in itertools.pairwise((0, *ends))])
        for (_, last), (total, ends) in best.items()
        if last == len(lengths)
    ]


def _merged(groups, needed, least):
    """Merges every group of fewer than `least` images into the one where that costs least."""

    def area(*members):
        joined = np.concatenate(members)
        return np.prod(needed[joined].max(0)) * len(joined)

    while len(groups) > 1 and min(map(len, groups)) < least:
        small = groups.pop(int(np.argmin([len(group) for group in groups])))
        extra = [area(group, small) - area(group) for group in groups]
        host = int(np.argmin(extra))
        groups[host] = np.sort(np.concatenate([groups[host], small]))
    return groups
