"""Winograd's filtering against a brute-force twin: values and gradients, dilations, odd maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_near, normal, numpy_convolution

from rpn_jax.models import convolution
from rpn_jax.models.convolution import convolve, convolve_3x3, direct
from rpn_jax.models.winograd import WIDE

pytestmark = pytest.mark.usefixtures('quick_compilation')
MAPS = [  # (batch, height, width), dilation
    ((1, 6, 8), 1),
    ((2, 5, 7), 1),
    ((2, 9, 14), 2),
    ((1, 11, 16), 3),
    ((1, 9, 1), 4),
    ((1, 1, 2), 5),  # the kernel reaches beyond it everywhere
    ((1, 1, 1), 1),
]


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


def everywhere_else(function, *arrays, elsewhere=None):
    """Stands for `unfused` where there is no CPU."""
    return (elsewhere or function)(*arrays)


@pytest.mark.parametrize(
    ('shape', 'dilation', 'other'), [*((*case, False) for case in MAPS), (*MAPS[2], True)]
)
def test_values_and_gradients_are_those_of_the_sums(shape, dilation, other, monkeypatch):
    if other:
        monkeypatch.setattr(convolution, 'unfused', everywhere_else)
    x, kernel = normal(*shape, 5), normal(3, 3, 5, 7, seed=1)
    gradient = normal(*shape, 7, seed=2)

    @jax.jit
    def both(x, kernel):
        out, pull = jax.vjp(lambda x, kernel: convolve_3x3(x, kernel, dilation), x, kernel)
        return out, *pull(gradient)

    expected = numpy_gradients(x, kernel, gradient, dilation)
    expected = numpy_convolution(x, kernel, dilation=dilation), *expected
    for ours, theirs in zip(both(x, kernel), expected, strict=True):
        assert_near(ours, theirs, 4e-6)


def test_a_mapped_convolution_is_one_of_each():
    x, kernel = normal(3, 1, 5, 6, 4), normal(3, 3, 4, 5, seed=1)

    def both(x, kernel):
        return jax.value_and_grad(lambda *a: (convolve_3x3(*a) ** 2).sum(), (0, 1))(x, kernel)

    value, gradients = jax.jit(jax.vmap(both, (0, None)))(x, kernel)
    for i, image in enumerate(x):
        out = numpy_convolution(image, kernel)
        assert_near(value[i], (out**2).sum(), 4e-6)
        expected = numpy_gradients(image, kernel, 2 * out, 1)
        for ours, theirs in zip(gradients, expected, strict=True):
            assert_near(ours[i], theirs, 4e-6)


def test_it_errs_hardly_more_than_xla():
    x, kernel = normal(1, 24, 24, 128), normal(3, 3, 128, 128, seed=1)
    exact = numpy_convolution(x, kernel)
    errors = [np.abs(f(x, kernel) - exact).std() for f in (convolve_3x3, direct)]
    assert errors[0] < 3 * errors[1] and errors[0] < 5e-7 * exact.std()


def is_xlas(x, kernel, **how):
    """Says whether convolve hands a convolution on to XLA as it is."""
    jaxpr = jax.make_jaxpr(functools.partial(convolve, **how))(x, kernel)
    return [e.primitive.name for e in jaxpr.eqns] == ['conv_general_dilated']


def test_what_does_not_pay_goes_to_xla():
    x, kernel = normal(1, 16, 16, WIDE), normal(3, 3, WIDE, WIDE)
    assert not is_xlas(x, kernel) and not is_xlas(x, kernel, dilation=2)
    others = [
        (x, kernel[..., :-1], {}),
        (x[..., :-1], kernel[:, :, :-1], {}),
        (x, kernel, {'stride': 2}),
        (x[:, :8, :8], kernel, {}),  # so few tiles that the kernel's transform is most of it
        (x, kernel, {'dilation': 6}),  # its tiles would cover 24 x 24
        (x.astype(np.float16), kernel.astype(np.float16), {}),
        (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), {}),
    ]
    assert all(is_xlas(x, kernel, **how) for x, kernel, how in others)


@pytest.mark.xla
def test_wide_maps_take_fewer_products():
    """16 for 36, and the transforms."""
    x, kernel = normal(1, 32, 32, 2 * WIDE), normal(3, 3, 2 * WIDE, 2 * WIDE)
    ours, xlas = (
        jax.jit(f).lower(x, kernel).compile().cost_analysis()['flops'] for f in (convolve, direct)
    )
    assert 16 / 36 * xlas < ours < 0.6 * xlas
