"""Convolutions in the way of each platform: all are the same, and each goes where it is fast."""

import functools
import re

import jax
import numpy as np
import pytest
from helpers import assert_near, normal, numpy_convolution

from rpn_jax.models.convolution import convolve, convolve_3x3
from rpn_jax.models.winograd import WIDE

CASES = [  # function, side of the kernel, batch and sides of the map, stride, dilation
    *((convolve, 1, *case, 1) for case in [((2, 5, 8), 1), ((1, 8, 8), 1), ((2, 5, 8), 2)]),
    *((convolve, size, (2, 9, 7), 2, 1) for size in (3, 5, 7)),
    *((convolve, 7, shape, 2, 1) for shape in [(2, 8, 12), (1, 1, 2)]),
    (convolve_3x3, 3, (1, 6, 8), 1, 1),
    (convolve_3x3, 3, (2, 5, 7), 1, 1),
    (convolve_3x3, 3, (2, 9, 14), 1, 2),
    (convolve_3x3, 3, (1, 9, 1), 1, 4),
    (convolve_3x3, 3, (1, 1, 2), 1, 5),  # the kernel reaches beyond it everywhere
]


def numpy_gradients(x, kernel, gradient, stride, dilation):
    """Returns the gradients of sum(gradient * convolution), tap by tap, in float64."""
    (h, w), (height, width) = x.shape[1:3], gradient.shape[1:3]
    margin = dilation * (len(kernel) // 2)
    padded = np.pad(x.astype(np.float64), ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)))
    of_x, of_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(kernel.shape[:2]):
        rows, columns = (
            slice(dilation * tap, dilation * tap + stride * count, stride)
            for tap, count in ((i, height), (j, width))
        )
        of_kernel[i, j] = np.einsum('bhwc,bhwf->cf', padded[:, rows, columns], gradient)
        of_x[:, rows, columns] += gradient @ kernel[i, j].T.astype(np.float64)
    return of_x[:, margin : margin + h, margin : margin + w], of_kernel


def on_no_cpu(*arrays, cpu, default):
    return default(*arrays)


@pytest.mark.parametrize('elsewhere', [False, True], ids=['cpu', 'elsewhere'])
@pytest.mark.parametrize(('function', 'size', 'shape', 'stride', 'dilation'), CASES)
def test_values_and_gradients_are_those_of_the_sums(
    function, size, shape, stride, dilation, elsewhere, monkeypatch
):
    if elsewhere:
        monkeypatch.setattr(jax.lax, 'platform_dependent', on_no_cpu)
    how = {'stride': stride} if function is convolve else {'dilation': dilation}
    x, kernel = normal(*shape, 3), normal(size, size, 3, 4, seed=1)
    out = numpy_convolution(x, kernel, stride, dilation)
    gradient = normal(*out.shape, seed=2)

    @jax.jit
    def both(x, kernel):
        out, pull = jax.vjp(functools.partial(function, **how), x, kernel)
        return out, *pull(gradient)

    expected = out, *numpy_gradients(x, kernel, gradient, stride, dilation)
    for ours, theirs in zip(both(x, kernel), expected, strict=True):
        assert_near(ours, theirs, 4e-6)


# What is lowered for which platform


def texts(function, *arguments):
    """Returns what is lowered for GPUs and for CPUs."""
    traced = jax.jit(function).trace(*arguments)
    return {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ('cuda', 'cpu')}


@pytest.mark.parametrize(
    ('function', 'shape', 'size', 'how', 'convolutions_and_products'),
    [  # of the gradients of a loss; GPUs have no Winograd, and multiply for most gradients of 1x1
        (convolve_3x3, (1, 4, 4, WIDE), 3, {'dilation': 2}, {'cuda': [3, 0], 'cpu': [0, 12]}),
        (convolve, (1, 8, 8, 8), 1, {}, {'cuda': [1, 2], 'cpu': [0, 3]}),
        (convolve, (1, 6, 6, 8), 1, {}, {'cuda': [2, 1], 'cpu': [0, 3]}),
        (convolve, (1, 16, 16, 8), 1, {'stride': 2}, {'cuda': [3, 0], 'cpu': [0, 3]}),
    ],
)
def test_gpus_convolve_and_cpus_multiply(function, shape, size, how, convolutions_and_products):
    x, kernel = normal(*shape), normal(size, size, shape[-1], shape[-1])
    loss = jax.grad(lambda *a: (function(*a, **how) ** 2).sum(), (0, 1))
    names = 'convolution', 'dot_general'
    assert convolutions_and_products == {
        platform: [text.count(f'stablehlo.{name}') for name in names]
        for platform, text in texts(loss, x, kernel).items()
    }


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
