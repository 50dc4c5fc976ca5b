"""Winograd's filtering: mapped, as exact as XLA, and only where it pays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_near, normal, numpy_convolution

from rpn_jax.models.convolution import convolve, convolve_3x3, direct
from rpn_jax.models.winograd import WIDE


def test_a_mapped_convolution_is_one_of_each():
    x, kernel = normal(3, 1, 5, 6, 4), normal(3, 3, 4, 5, seed=1)
    both = jax.value_and_grad(lambda *a: (convolve_3x3(*a) ** 2).sum(), (0, 1))
    mapped = jax.jit(jax.vmap(both, (0, None)))(x, kernel)
    for i, image in enumerate(x):
        one = jax.jit(both)(image, kernel)
        for ours, theirs in zip(*map(jax.tree.leaves, (mapped, one)), strict=True):
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
