"""Convolutions in the way of each platform: all are the same, and each goes where it is fast."""

import functools
import itertools
import re

import jax
import numpy as np
import pytest
from helpers import assert_near, normal

from rpn_jax.models import convolution
from rpn_jax.models.convolution import _gradients, convolve, convolve_3x3, direct, product
from rpn_jax.models.winograd import WIDE

pytestmark = pytest.mark.usefixtures('quick_compilation')


def with_gradients(function, x, kernel):
    """Returns the outputs, and the gradients of input and kernel for fixed weights of these."""

    @jax.jit
    def both(x, kernel):
        out, pull = jax.vjp(function, x, kernel)
        return out, *pull(normal(*out.shape, seed=2))

    return both(x, kernel)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('other', [False, True], ids=['cpu', 'elsewhere'])
def test_a_1x1_convolution_is_a_product_of_pixels(stride, other, monkeypatch):
    if other:
        monkeypatch.setattr(convolution, 'product', direct)
    x, kernel = normal(2, 5, 8, 4), normal(1, 1, 4, 3, seed=1)
    out, of_x, of_kernel = with_gradients(lambda *a: convolve(*a, stride), x, kernel)
    seen, gradient = x[:, ::stride, ::stride], normal(*out.shape, seed=2)
    assert_near(out, seen @ kernel[0, 0], 4e-6)
    expected = np.zeros_like(x)
    expected[:, ::stride, ::stride] = gradient @ kernel[0, 0].T
    assert_near(of_x, expected, 4e-6)
    assert_near(of_kernel[0, 0], np.einsum('bhwc,bhwf->cf', seen, gradient), 4e-6)


@pytest.mark.parametrize(
    ('size', 'shape'),
    [(3, (8, 12)), (3, (9, 7)), (5, (10, 5)), (5, (1, 2)), (7, (8, 12)), (7, (9, 7)), (7, (1, 2))],
)
def test_a_stem_is_a_strided_convolution_on_each_platform(size, shape):
    x, kernel = normal(2, *shape, 3), normal(size, size, 3, 4, seed=1)
    expected = with_gradients(functools.partial(direct, stride=2), x, kernel)
    for ours in (convolution.space_to_depth, functools.partial(convolve, stride=2)):
        for mine, theirs in zip(with_gradients(ours, x, kernel), expected, strict=True):
            assert_near(mine, theirs, 4e-6)


@pytest.mark.parametrize('stride', [1, 2])
def test_gradients_of_products_and_of_convolutions_are_the_same(stride):
    x, kernel = normal(2, 5, 7, 6), normal(1, 1, 6, 4)
    gradient = normal(*product(x, kernel, stride).shape)
    both = [functools.partial(function, stride=stride) for function in (product, direct)]
    results = [
        _gradients(*functions, x, kernel, gradient)
        for functions in itertools.product(both, repeat=2)
    ]
    for gradients in results:
        for ours, theirs in zip(gradients, results[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# What is lowered for which platform


def texts(function, *arguments):
    """Returns what is lowered for GPUs and for CPUs."""
    traced = jax.jit(function).trace(*arguments)
    return {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ('cuda', 'cpu')}


def operations(convolved, x, kernel):
    """Returns how many convolutions and products the gradients of a loss take, by platform."""
    loss = jax.grad(lambda *a: (convolved(*a) ** 2).sum(), (0, 1))
    names = 'convolution', 'dot_general'
    return {
        platform: [text.count(f'stablehlo.{name}') for name in names]
        for platform, text in texts(loss, x, kernel).items()
    }


def test_gpus_have_no_winograd():
    x, kernel = normal(1, 4, 4, WIDE), normal(3, 3, WIDE, WIDE)
    expected = {'cuda': [3, 0], 'cpu': [0, 12]}
    assert operations(lambda *a: convolve_3x3(*a, 2), x, kernel) == expected


@pytest.mark.parametrize(
    ('side', 'stride', 'on_gpus'), [(8, 1, [1, 2]), (6, 1, [2, 1]), (16, 2, [3, 0])]
)
def test_gpus_convolve_pixels_and_multiply_for_most_gradients(side, stride, on_gpus):
    x, kernel = normal(1, side, side, 8), normal(1, 1, 8, 8)
    expected = {'cuda': on_gpus, 'cpu': [0, 3]}
    assert operations(lambda *a: convolve(*a, stride), x, kernel) == expected


def test_gpus_see_a_stem_by_space_to_depth_and_cpus_its_gradient_as_columns():
    x, kernel = normal(2, 12, 10, 3), normal(7, 7, 3, 4)
    for platform, text in texts(lambda *a: convolve(*a, 2), x, kernel).items():
        (line,) = (line for line in text.splitlines() if 'stablehlo.convolution' in line)
        seen = {'cuda': '4x4x16x4', 'cpu': '7x7x3x4'}[platform]
        assert f'tensor<{seen}xf32>' in line
    loss = jax.grad(lambda kernel: (convolve(x, kernel, 2) ** 2).sum())
    for platform, text in texts(loss, kernel).items():
        operand = re.findall(r'stablehlo.convolution.*: \(tensor<(\w+)xf32>', text)[-1]
        # 7 taps of 3 channels, the height and margins, 5 columns of 2 images; cells of 16 channels
        assert operand == {'cpu': '21x18x10', 'cuda': '2x6x5x16'}[platform]
