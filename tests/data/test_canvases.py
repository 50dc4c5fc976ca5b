"""Canvases are few, hold every image, and waste as little as a brute-force search finds."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from rpn_jax.data.canvases import WORTH, resized_size, short_side, square

SIDES = strategies.integers(1, 3000)
PHOTOGRAPHS = [(375, 500)] * 50 + [(333, 500)] * 40 + [(500, 375)] * 20 + [(500, 333)] * 10


def plan(sizes, limit=4, least=1, image_size=600, max_size=1000):
    return short_side(sizes, image_size=image_size, max_size=max_size, limit=limit, least=least)


def area(canvases):
    """Returns the pixels of the canvases of all images."""
    return int(np.prod(canvases.shapes, 1)[canvases.of].sum())


@pytest.mark.parametrize(
    ('size', 'resized'),
    [
        ((500, 375), (800, 600)),
        ((333, 500), (600, 901)),
        ((100, 500), (200, 1000)),  # the long side binds
        ((1, 5000), (1, 1000)),  # never less than a pixel
    ],
)
def test_the_short_side_is_resized_unless_the_long_one_binds(size, resized):
    assert resized_size(size, 600, 1000) == resized


def test_as_many_canvases_as_are_worth_it_and_asked_for():
    plans = [plan(PHOTOGRAPHS, limit) for limit in (1, 2, 3, 4)]
    assert [len(each.shapes) for each in plans] == [1, 2, 3, 4]
    paddings = [each.padding for each in plans]
    assert paddings == sorted(paddings, reverse=True) and 0.01 < paddings[-1] < 0.05
    assert plans[0].shapes == ((928, 928),)
    assert plans[-1].shapes == ((608, 800), (608, 928), (800, 608), (928, 608))
    assert np.bincount(plans[-1].of).tolist() == [50, 40, 20, 10]
    assert len(plan([(375, 500)] * 1000 + [(375, 400)], 4).shapes) == 1  # saves next to nothing


def test_sides_are_multiples_of_the_coarsest_stride():
    shapes = short_side(PHOTOGRAPHS, image_size=600, max_size=1000, limit=2, multiple=64).shapes
    assert shapes == ((640, 960), (960, 640))


def test_too_small_groups_are_merged():
    sizes = PHOTOGRAPHS + [(100, 500)]
    canvases = plan(sizes, 5, least=16)
    assert np.bincount(canvases.of).min() >= 16 and np.bincount(canvases.of).sum() == len(sizes)
    assert plan(sizes[:3], least=16).shapes == ((608, 800),)  # fewer images than a batch


def test_a_square_stretches_everything_without_padding():
    canvases = square(64, 3)
    assert canvases.shapes == ((64, 64),) and canvases.padding == 0
    assert canvases.of.tolist() == [0, 0, 0] and canvases.sizes.tolist() == [[64, 64]] * 3


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    strategies.lists(strategies.tuples(SIDES, SIDES), min_size=1, max_size=30),
    strategies.integers(1, 5),
    strategies.integers(1, 4),
)
def test_every_image_fits_its_canvas(sizes, limit, least):
    canvases = plan(sizes, limit, least)
    assert 1 <= len(canvases.shapes) <= limit
    assert len(set(canvases.shapes)) == len(canvases.shapes) or least > 1
    shapes = np.array(canvases.shapes)
    assert np.all(canvases.sizes <= shapes[canvases.of]) and not np.any(shapes % 32)
    assert 0 <= canvases.padding < 1
    counts = np.bincount(canvases.of, minlength=len(shapes))
    assert counts.min() >= min(least, len(sizes))
    short, long = np.sort(canvases.sizes, 1).T
    assert np.all((long == 1000) & (short <= 600) | (short == 600) & (long <= 1000))


@hypothesis.settings(max_examples=25)
@hypothesis.given(strategies.lists(strategies.integers(600, 1000), min_size=2, max_size=7))
def test_no_other_split_of_wide_images_is_cheaper(widths):
    sizes = [(600, width) for width in widths]
    needed = -(-np.array(widths) // 32) * 32
    own = area(plan(sizes, 3))
    cheapest = min(
        sum(608 * needed[np.array(labels) == g].max() * labels.count(g) for g in set(labels))
        for labels in itertools.product(range(3), repeat=len(widths))
    )
    assert cheapest <= own <= cheapest * (1 + 3 * WORTH)
