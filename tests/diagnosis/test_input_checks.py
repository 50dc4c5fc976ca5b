"""Pixels and colours as the network gets them: what is odd is found."""

import numpy as np
import pytest
from config_cases import config_of

from rpn_jax.diagnosis import input_checks


@pytest.mark.parametrize(
    ('family', 'mean', 'deviation', 'levels', 'words'),
    [
        ('torchvision', 0, 1, [], ''),
        ('torchvision', 110, 60, ['error'], 'they are 0..255'),
        ('torchvision', 0, 0.01, ['error'], 'scale'),
        ('torchvision', 2, 1, ['warning'], 'scale'),
        ('torchvision', -15, 1, ['error'], 'scale'),
        ('caffe', 0, 60, [], ''),
        ('caffe', 110, 60, ['warning'], 'scale'),
        ('caffe', 0, 0.3, ['error'], 'scale'),
    ],
)
def test_pixels_are_on_the_scale_of_their_family(family, mean, deviation, levels, words):
    values = np.random.default_rng(0).normal(mean, deviation, (4000, 3))
    found = [*input_checks.pixels(values, config_of(data__pixels=family))]
    assert [each.level for each in found] == levels
    assert all(words in each.finding for each in found)


@pytest.mark.parametrize(
    ('tint', 'pretrained', 'is_found'),
    [(14, 'x', False), (-14, 'x', True), (-14, '', False), (0, 'x', False), (-3, 'x', False)],
)
def test_images_that_are_bluer_than_red_look_swapped(tint, pretrained, is_found):
    random = np.random.default_rng(0)
    means = random.normal(110, 20, (48, 3))
    means[:, 0] = means[:, 2] + random.permutation(np.linspace(-40, 40, 48)) + tint
    found = input_checks.colours(means, pretrained)
    assert [each.finding[:21] for each in found] == ['Red and blue look swa'] * is_found


def test_boxes_are_judged_by_what_alignment_measured():
    ways = dict.fromkeys(input_checks.UNDONE, (0.0, 0.05, 90))
    ways |= {'as they are': (0.3, 0.03, 90), 'of other images': (0.0, 0.01, 900)}
    assert [*input_checks.boxes(ways)] == []
    (found,) = input_checks.boxes(ways | {'as they are': (0.02, 0.03, 90)})
    assert found.level == 'error' and 'do not lie on objects' in found.finding
    swapped = {'as they are': (0.0, 0.03, 90), 'x and y swapped': (0.3, 0.04, 90)}
    (found,) = input_checks.boxes(ways | swapped)
    assert 'x and y are swapped' in found.finding and '0.30' in found.evidence
    assert [*input_checks.boxes(ways | {'as they are': (0.0, 0.03, 9)})] == []  # too few to tell
