"""Pixels on their way to the network and back: order, scale, and zero outside the picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.data.normalization import FAMILIES, denormalise, normalise, pixel_family
from rpn_jax.errors import InputError

SIZE = np.float32([[8, 8], [5, 7]])  # of the images inside the canvas of 8 x 8


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


def inside(size=SIZE):
    rows, columns = np.arange(8)[None, :, None, None], np.arange(8)[None, None, :, None]
    return (rows < size[:, 0, None, None, None]) & (columns < size[:, 1, None, None, None])


@pytest.mark.parametrize('family', list(FAMILIES))
def test_every_byte_comes_back(family):
    levels = np.arange(256, dtype=np.uint8)
    images = np.stack([levels, levels[::-1], np.roll(levels, 77)], -1).reshape(1, 16, 16, 3)
    pixels = pixel_family(family)
    network = normalise(images, np.float32([[16, 16]]), pixels)
    assert network.dtype == np.float32
    np.testing.assert_array_equal(denormalise(network, pixels), images)


def test_torchvision_is_its_formula(images):
    """ToTensor, then Normalize with the statistics of ImageNet."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = np.where(inside(), (images / 255.0 - mean) / std, 0)
    network = normalise(images, SIZE, pixel_family('torchvision'))
    np.testing.assert_allclose(network, expected, atol=1e-5)


def test_caffe_is_blue_green_red_minus_the_mean(images):
    expected = np.where(inside(), images[..., ::-1] - np.array([103.06, 115.90, 123.15]), 0)
    function = functools.partial(normalise, pixels=pixel_family('caffe'))
    for normalised in (function(images, SIZE), jax.jit(function)(images, SIZE)):
        np.testing.assert_allclose(normalised, expected, atol=1e-4)
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert np.argmax(normalise(red, SIZE[:1], pixel_family('caffe'))[0, 0, 0]) == 2


def test_outside_the_image_is_zero_whatever_lies_there(images):
    pixels = pixel_family('torchvision')
    network = np.asarray(normalise(images, SIZE, pixels))
    assert not network[1, 5:].any()
    assert not network[1, :, 7:].any()
    assert np.all(network[1, :5, :7] != 0)
    noise = np.where(inside(), images, 255 - images)
    np.testing.assert_array_equal(network, normalise(noise, SIZE, pixels))


def test_floating_point_passes_as_it_is(images):
    for dtype in (np.float32, jnp.bfloat16):
        network = jnp.asarray(images, dtype) / 7
        again = normalise(network, SIZE, pixel_family('caffe'))
        assert again.dtype == dtype
        np.testing.assert_array_equal(again, network)


def test_what_no_camera_saw_is_cut_off():
    network = np.array([-1e4, 0, 1e4], np.float32).reshape(1, 1, 1, 3)
    network = denormalise(network, pixel_family('torchvision'))
    assert network.dtype == np.uint8
    assert network.tolist() == [[[[0, round(0.456 * 255), 255]]]]


def test_mean_and_std_replace_the_family_in_its_own_order(images):
    mean, std = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]  # blue, green, red; a config may hold lists
    pixels = pixel_family('caffe', mean, std)
    expected = np.where(inside(), (images[..., ::-1] - np.array(mean)) / np.array(std), 0)
    np.testing.assert_allclose(normalise(images, SIZE, pixels), expected, rtol=1e-5)
    family = FAMILIES['caffe']
    assert pixel_family('caffe') == family == pixel_family('caffe', (), ())
    assert pixel_family('caffe', mean) == (family.order, (1, 2, 3), family.std)
    assert pixel_family('caffe', (), std) == (family.order, family.mean, (4, 5, 6))
    assert pixel_family('caffe', (0, 0, 0)).mean == (0, 0, 0)


@pytest.mark.parametrize(
    ('key', 'arguments'),
    [
        ('pixels', ('imagenet',)),
        ('pixels', ('auto',)),  # settled by the weights, before anyone asks for a family
        ('mean', ('caffe', (1, 2))),
        ('mean', ('caffe', (1, 2, 3, 4))),
        ('std', ('torchvision', (), (1,))),
        ('std', ('torchvision', (), (1, 0, 1))),
    ],
)
def test_a_wrong_value_is_named(key, arguments):
    with pytest.raises(InputError, match=f'{key} '):
        pixel_family(*arguments)
