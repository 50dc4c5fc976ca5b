"""Convolutions against a brute-force twin: values and gradients, dilations, odd maps, platforms."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_convolution
from hypothesis import given, settings
from hypothesis import strategies as st

from rpn_jax.models import convolution, winograd
from rpn_jax.models.convolution import _gradients, convolve, convolve_3x3, direct, product
from rpn_jax.models.winograd import WIDE

MAPS = [  # (batch, height, width), dilation
    ((1, 6, 8), 1),
    ((2, 5, 7), 1),
    ((2, 9, 14), 2),
    ((1, 11, 16), 3),
    ((1, 1, 2), 5),  # the kernel reaches beyond it everywhere
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numpy_gradients(x, kernel, gradient, dilation):
    """Returns the gradients of sum(gradient * convolution), tap by tap, in float64."""
    h, w = x.shape[1:3]
    margin = [(0, 0), (dilation, dilation), (dilation, dilation), (0, 0)]
    padded, of_x = np.pad(x, margin).astype(np.float64), np.zeros(np.pad(x, margin).shape)
    of_kernel = np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            window = np.s_[:, i * dilation : i * dilation + h, j * dilation : j * dilation + w]
            of_kernel[i, j] = np.einsum('bhwc,bhwf->cf', padded[window], gradient)
            of_x[window] += gradient @ kernel[i, j].T.astype(np.float64)
    return of_x[:, dilation : dilation + h, dilation : dilation + w], of_kernel


def assert_close(found, expected, bound=4e-6):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def everywhere_else(function, *arrays, elsewhere=None):
    """Stands for `unfused` where there is no CPU."""
    return (elsewhere or function)(*arrays)


@pytest.mark.parametrize('other', [False, True], ids=['cpu', 'elsewhere'])
@pytest.mark.parametrize(('shape', 'dilation'), MAPS)
def test_values_and_gradients_are_those_of_the_sums(shape, dilation, other, monkeypatch):
    if other:
        monkeypatch.setattr(convolution, 'unfused', everywhere_else)
    x, kernel = normal(*shape, 5), normal(3, 3, 5, 7, seed=1)
    gradient = normal(*shape, 7, seed=2)

    @jax.jit
    def both(x, kernel):
        out, pull = jax.vjp(lambda x, kernel: convolve_3x3(x, kernel, dilation), x, kernel)
        return out, *pull(gradient)

    found = both(x, kernel)
    expected = numpy_gradients(x, kernel, gradient, dilation)
    expected = numpy_convolution(x, kernel, dilation=dilation), *expected
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('other', [False, True], ids=['cpu', 'elsewhere'])
def test_a_1x1_convolution_is_a_product_of_pixels(stride, other, monkeypatch):
    if other:
        monkeypatch.setattr(convolution, 'product', direct)
    x, kernel = normal(2, 5, 8, 4), normal(1, 1, 4, 3, seed=1)
    out, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    seen = x[:, ::stride, ::stride]
    assert_close(out, seen @ kernel[0, 0])
    gradient = normal(*out.shape, seed=2)
    of_x, of_kernel = pull(gradient)
    expected = np.zeros_like(x)
    expected[:, ::stride, ::stride] = gradient @ kernel[0, 0].T
    assert_close(of_x, expected)
    assert_close(of_kernel[0, 0], np.einsum('bhwc,bhwf->cf', seen, gradient))


@pytest.mark.parametrize('size', [3, 5, 7])
@pytest.mark.parametrize('shape', [(8, 12), (9, 7), (1, 2)])
def test_space_to_depth_is_what_a_strided_kernel_sees(shape, size):
    x, kernel = normal(2, *shape, 3), normal(size, size, 3, 4, seed=1)
    found, pull = jax.vjp(convolution.space_to_depth, x, kernel)
    expected, expected_pull = jax.vjp(functools.partial(direct, stride=2), x, kernel)
    assert_close(found, expected)
    gradient = normal(*found.shape, seed=2)
    for ours, theirs in zip(pull(gradient), expected_pull(gradient), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize('size', [3, 5, 7])
@pytest.mark.parametrize('shape', [(8, 12), (9, 7), (10, 5), (1, 2)])
def test_gradients_of_a_stem_are_those_of_a_convolution(shape, size):
    x, kernel = normal(2, *shape, 3), normal(size, size, 3, 4, seed=1)
    found, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, 2), x, kernel)
    expected, expected_pull = jax.vjp(functools.partial(direct, stride=2), x, kernel)
    assert_close(found, expected)
    gradient = normal(*found.shape, seed=2)
    for ours, theirs in zip(pull(gradient), expected_pull(gradient), strict=True):
        assert_close(ours, theirs)


@settings(max_examples=15)
@given(h=st.integers(1, 9), w=st.integers(1, 9), dilation=st.integers(1, 4))
def test_filtering_is_a_convolution_on_maps_of_any_size(h, w, dilation):
    x, kernel = normal(1, h, w, 2), normal(3, 3, 2, 3, seed=1)
    found = winograd.convolve(x, kernel, dilation)
    assert_close(found, numpy_convolution(x, kernel, dilation=dilation))


def test_a_mapped_convolution_is_one_of_each():
    x, kernel = normal(3, 1, 5, 6, WIDE), normal(3, 3, WIDE, WIDE, seed=1)

    def both(x, kernel):
        return jax.value_and_grad(lambda *a: (convolve_3x3(*a) ** 2).sum(), (0, 1))(x, kernel)

    mapped = jax.vmap(both, (0, None))(x, kernel)
    for i, image in enumerate(x):
        found = jax.tree.leaves(jax.tree.map(lambda array, i=i: array[i], mapped))
        out = numpy_convolution(image, kernel)
        expected = (out**2).sum(), *numpy_gradients(image, kernel, 2 * out, 1)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs)


def test_it_errs_hardly_more_than_xla():
    x, kernel = normal(1, 38, 38, 256), normal(3, 3, 256, 256, seed=1)
    exact = numpy_convolution(x, kernel)
    errors = [np.abs(f(x, kernel) - exact).std() for f in (convolve_3x3, direct)]
    assert errors[0] < 3 * errors[1] and errors[0] < 5e-7 * exact.std()


def work(function, *arguments):
    """Returns XLA's count of FLOPs."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()['flops']


def test_wide_maps_take_sixteen_products_for_thirty_six():
    x, kernel = normal(1, 16, 16, WIDE), normal(3, 3, WIDE, WIDE)
    products, transforms = 16 * 64 * WIDE**2, (16 * 16 * 64 + 16 * 9 * WIDE + 4 * 16 * 64) * WIDE
    assert work(convolve, x, kernel) == pytest.approx(2 * (products + transforms), rel=0.01)


def test_what_does_not_pay_goes_to_xla():
    x, kernel = normal(1, 16, 16, WIDE), normal(3, 3, WIDE, WIDE)
    others = [
        (x, kernel[..., :-1], 1, 1),
        (x[..., :-1], kernel[:, :, :-1], 1, 1),
        (x, kernel, 2, 1),
        (x[:, :8, :8], kernel, 1, 1),  # so few tiles that the kernel's transform is most of it
        (x, kernel, 1, 6),  # its tiles would cover 24 x 24
    ]
    for x, kernel, stride, dilation in others:
        how = dict(stride=stride, dilation=dilation)
        found, expected = (work(functools.partial(f, **how), x, kernel) for f in (convolve, direct))
        assert found == expected


@pytest.mark.parametrize('changed', [np.float16, jnp.bfloat16])
def test_halves_go_to_xla(changed):
    x, kernel = normal(1, 16, 16, WIDE).astype(changed), normal(3, 3, WIDE, WIDE).astype(changed)
    np.testing.assert_array_equal(convolve(x, kernel), direct(x, kernel))


def test_gpus_are_left_to_xla():
    x, kernel = normal(1, 4, 4, WIDE), normal(3, 3, WIDE, WIDE)

    def loss(x, kernel):
        return (convolve_3x3(x, kernel, 2) ** 2).sum()

    assert lowered(loss, x, kernel) == {'cuda': [3, 0], 'cpu': [0, 12]}


@pytest.mark.parametrize(
    ('side', 'stride', 'on_gpus'), [(8, 1, [1, 2]), (6, 1, [2, 1]), (16, 2, [3, 0])]
)
def test_gpus_convolve_pixels_and_multiply_for_most_gradients(side, stride, on_gpus):
    x, kernel = normal(1, side, side, 8), normal(1, 1, 8, 8)

    def loss(x, kernel):
        return (convolve(x, kernel, stride) ** 2).sum()

    assert lowered(loss, x, kernel) == {'cuda': on_gpus, 'cpu': [0, 3]}


@pytest.mark.parametrize('stride', [1, 2])
def test_gradients_of_products_and_of_convolutions_are_the_same(stride):
    x, kernel = normal(2, 5, 7, 6), normal(1, 1, 6, 4)
    gradient = normal(*product(x, kernel, stride).shape)
    both = [functools.partial(function, stride=stride) for function in (product, direct)]
    found = [
        _gradients(*functions, x, kernel, gradient)
        for functions in itertools.product(both, repeat=2)
    ]
    for of_input, of_kernel in found:
        np.testing.assert_allclose(of_input, found[0][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(of_kernel, found[0][1], rtol=1e-5, atol=1e-5)


def test_gpus_see_a_stem_by_space_to_depth():
    x, kernel = normal(1, 8, 8, 3), normal(7, 7, 3, 4)
    traced = jax.jit(lambda x, kernel: convolve(x, kernel, 2)).trace(x, kernel)
    for platform, seen in (('cuda', '4x4x16x4'), ('cpu', '7x7x3x4')):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        (line,) = (line for line in text.splitlines() if 'stablehlo.convolution' in line)
        assert f'tensor<{seen}xf32>' in line


def test_cpus_see_a_stems_gradient_as_columns():
    x, kernel = normal(2, 12, 10, 3), normal(7, 7, 3, 4)

    def loss(kernel):
        return (convolve(x, kernel, 2) ** 2).sum()

    traced = jax.jit(jax.grad(loss)).trace(kernel)
    seen = {}
    for platform in ('cuda', 'cpu'):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        seen[platform] = re.findall(r'stablehlo.convolution.*: \(tensor<(\w+)xf32>', text)[-1]
    # 7 taps of 3 channels, the height and its margins, 5 columns of 2 images; cells of 16 channels
    assert seen == {'cpu': '21x18x10', 'cuda': '2x6x5x16'}


def lowered(loss, x, kernel):
    """Returns how many convolutions and products the gradients of a loss take, by platform."""
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ('cuda', 'cpu')}
    names = 'convolution', 'dot_general'
    return {p: [text.count(f'stablehlo.{n}') for n in names] for p, text in texts.items()}
