"""Pixels on their way to the network and back: order, scale, and zero outside the picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.data.normalization import FAMILIES, denormalise, normalise, pixel_family
from rpn_jax.errors import InputError

SIZE = np.float32([[8, 8], [5, 7]])  # of the images inside the canvas of 8 x 8
IMAGES = np.random.default_rng(0).integers(1, 256, (2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ('family', 'order', 'mean', 'std'),
    [
        # ToTensor, then Normalize with the statistics of ImageNet
        (('torchvision',), 'RGB', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        (('caffe',), 'BGR', (103.06, 115.90, 123.15), (1, 1, 1)),
        # a config's mean and std are in the family's order, and may be lists
        (('caffe', [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), 'BGR', (1, 2, 3), (4, 5, 6)),
        (('torchvision', (), (4, 5, 6)), 'RGB', (123.675, 116.28, 103.53), (4, 5, 6)),
    ],
)
def test_input_is_its_formula_and_zero_outside_the_image(family, order, mean, std):
    pixels = pixel_family(*family)
    inside = np.zeros(IMAGES.shape, bool)
    inside[0], inside[1, :5, :7] = True, True
    channels = IMAGES[..., ['RGB'.index(channel) for channel in order]]
    expected = np.where(inside, (channels - np.array(mean)) / np.array(std), 0)
    function = functools.partial(normalise, pixels=pixels)
    for normalised in (function(IMAGES, SIZE), jax.jit(function)(IMAGES, SIZE)):
        assert normalised.dtype == np.float32
        np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('family', list(FAMILIES))
def test_every_byte_comes_back_and_what_no_camera_saw_is_cut_off(family):
    levels, pixels = np.arange(256, dtype=np.uint8), pixel_family(family)
    images = np.stack([levels, levels[::-1], np.roll(levels, 77)], -1).reshape(1, 16, 16, 3)
    network = normalise(images, np.float32([[16, 16]]), pixels)
    np.testing.assert_array_equal(denormalise(network, pixels), images)
    network = denormalise(np.full((1, 1, 2, 3), [[-1e4], [1e4]], np.float32), pixels)
    assert network.dtype == np.uint8 and network.tolist() == [[[[0] * 3, [255] * 3]]]


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_floating_point_passes_as_it_is(dtype):
    network = jnp.asarray(IMAGES, dtype) / 7
    again = normalise(network, SIZE, pixel_family('caffe'))
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, network)


@pytest.mark.parametrize(
    ('complaint', 'arguments'),
    [
        ("pixels 'imagenet' is not one of 'auto', 'torchvision', 'caffe'", ('imagenet',)),
        ("pixels 'auto' ", ('auto',)),  # settled by the weights, before anyone asks for a family
        ('mean .* is not three numbers, or', ('caffe', (1, 2))),
        ('mean .* is not three numbers', ('caffe', (1, 2, 3, 4))),
        ('mean .* is not three numbers', ('caffe', (1, 2, float('nan')))),
        ('mean .* 0 to 1; pixels are 0 to 255', ('caffe', (0.4, 0.5, 0.6))),
        ('std .* is not three numbers, above 0', ('torchvision', (), (1,))),
        ('std .* is not three numbers, above 0', ('torchvision', (), (1, 0, 1))),
    ],
)
def test_a_wrong_value_is_named(complaint, arguments):
    with pytest.raises(InputError, match=f'^{complaint}'):
        pixel_family(*arguments)
    assert pixel_family('caffe', (0, 0, 0)).mean == (0, 0, 0)
