"""Convolutions, each in the way that is fastest where it runs; all are the same up to rounding."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from rpn_jax.models import winograd

EVEN = 64  # on GPUs a 1x1 kernel's gradient is a product if the rows are a multiple of this
FEW = 8  # channels below which a GPU's matrix units have little to do


def convolve(x, kernel, stride=1, dilation=1):
    """Convolves [B, h, w, C] with [k, k, C, F], padded by dilation * (k // 2) on each side.

    That is torch's padding; Flax's 'SAME' pads stride-2 convolutions unevenly and shifts their
    features by a pixel.
    """
    size = len(kernel)
    if size == 1:
        return convolve_1x1(x, kernel, stride)
    if stride == 2 and dilation == 1 and x.shape[-1] < FEW:
        return convolve_stem(x, kernel)
    if size == 3 and stride == 1 and winograd.pays(x, kernel, dilation):
        return convolve_3x3(x, kernel, dilation)
    return direct(x, kernel, stride, dilation)


def direct(x, kernel, stride=1, dilation=1):
    """Returns what convolve does, by XLA's own convolution."""
    margin = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((margin, margin), (margin, margin)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def space_to_depth(x, kernel):
    """Returns what `direct` does at stride 2, at stride 1 of 2x2 pixels that became channels.

    A stem's three channels leave most of a matrix unit idle; twelve, and four of zeros, do not.
    """
    size = len(kernel)
    margin = size // 2
    front = margin % 2  # so that a cell begins where the kernel does
    kernel = jnp.pad(kernel, ((front, (size + front) % 2),) * 2 + ((0, 0),) * 2)
    x = jnp.pad(x, ((0, 0), *((0, n % 2) for n in x.shape[1:3]), (0, 0)))
    (batch, h, w, c), taps = x.shape, len(kernel) // 2
    x = x.reshape(batch, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    kernel = kernel.reshape(taps, 2, taps, 2, c, -1).transpose(0, 2, 1, 3, 4, 5)
    zeros = (0, -4 * c % FEW)
    x = jnp.pad(x.reshape(*x.shape[:3], 4 * c), ((0, 0),) * 3 + (zeros,))
    kernel = jnp.pad(kernel.reshape(taps, taps, 4 * c, -1), ((0, 0),) * 2 + (zeros, (0, 0)))
    low = (margin + front) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((low, taps - 1 - low),) * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_1x1(x, kernel, stride=1):
    """Returns what convolve does of a 1x1 kernel; it has no forward-mode derivative.

    On CPUs it is a matrix product, which XLA runs faster than a convolution. On GPUs the
    convolution takes a shift, a shortcut and a ReLU along; its gradients are products there too,
    but for those with a stride and a kernel's of an uneven number of rows.
    """
    of_cpu, elsewhere = (functools.partial(f, stride=stride) for f in (product, direct))
    return jax.lax.platform_dependent(x, kernel, cpu=of_cpu, default=elsewhere)


def _forward_1x1(x, kernel, stride):
    return convolve_1x1(x, kernel, stride), (x, kernel)


def _backward_1x1(stride, saved, gradient):
    # On GPUs XLA (of jax 0.11) fuses the rows that a stride leaves out into a product, and dies. It
    # splits a kernel's long sum over rows: where these are uneven, it copies both operands first.
    as_product, as_convolution = (functools.partial(f, stride=stride) for f in (product, direct))
    of_input = as_product if stride == 1 else as_convolution
    of_kernel = of_input if math.prod(gradient.shape[:3]) % EVEN == 0 else as_convolution
    of_cpu = functools.partial(_gradients, as_product, as_product)
    elsewhere = functools.partial(_gradients, of_input, of_kernel)
    return jax.lax.platform_dependent(*saved, gradient, cpu=of_cpu, default=elsewhere)


def _gradients(of_input, of_kernel, x, kernel, gradient):
    """Returns the gradients of input and kernel, each of a function of both."""
    inputs = jax.linear_transpose(lambda x: of_input(x, kernel), x)
    kernels = jax.linear_transpose(lambda kernel: of_kernel(x, kernel), kernel)
    return inputs(gradient)[0], kernels(gradient)[0]


convolve_1x1.defvjp(_forward_1x1, _backward_1x1)


def product(x, kernel, stride=1):
    """Returns what convolve does of a 1x1 kernel, as a matrix product."""
    x = x[:, ::stride, ::stride]
    # Of rows [B * h * w, C]: the gradient of a product of maps transposes them first.
    rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return rows.reshape(*x.shape[:3], -1)


@jax.custom_vjp
def convolve_stem(x, kernel):
    """Returns what convolve does of a stem, at stride 2; it has no forward-mode derivative.

    On GPUs it is `space_to_depth`, on CPUs the kernel's gradient is `gradient_by_columns`.
    """
    of_cpu = functools.partial(direct, stride=2)
    return jax.lax.platform_dependent(x, kernel, cpu=of_cpu, default=space_to_depth)


def _forward_stem(x, kernel):
    return convolve_stem(x, kernel), (x, kernel)


def _backward_stem(saved, gradient):
    def of_cpu(x, kernel, gradient):
        of_input = jax.linear_transpose(lambda x: direct(x, kernel, stride=2), x)
        return of_input(gradient)[0], gradient_by_columns(x, gradient, len(kernel))

    elsewhere = functools.partial(_gradients, space_to_depth, space_to_depth)
    return jax.lax.platform_dependent(*saved, gradient, cpu=of_cpu, default=elsewhere)


convolve_stem.defvjp(_forward_stem, _backward_stem)


def gradient_by_columns(x, gradient, size):
    """Returns the gradient [k, k, C, F] of a kernel that made [B, h', w', F] at stride 2.

    A convolution along the height, with the columns of all images as its channels; k is odd. XLA by
    itself makes one over both sides: for a stem ten times as slow on CPUs, and less exact.
    """
    (batch, _, _, channels), (down, across) = x.shape, gradient.shape[1:3]
    margin, last = size // 2, 2 * across - 1
    x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    columns = jnp.stack([x[:, :, i : i + last : 2] for i in range(size)])
    columns = columns.transpose(0, 4, 2, 1, 3).reshape(size * channels, -1, batch * across)
    gradient = gradient.transpose(1, 0, 2, 3).reshape(down, batch * across, -1)
    kernel = jax.lax.conv_general_dilated(
        columns,
        gradient,
        window_strides=(1,),
        padding=((0, 2 * down - 2 + size - columns.shape[1]),),
        rhs_dilation=(2,),
        dimension_numbers=('NHC', 'HIO', 'NHC'),
    )
    return kernel.reshape(size, channels, size, -1).transpose(2, 0, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_3x3(x, kernel, dilation=1):
    """Returns what convolve does of a 3x3 kernel: on CPUs by Winograd's filtering, else by XLA.

    It has no forward-mode derivative.
    """
    elsewhere = functools.partial(direct, dilation=dilation)
    return unfused(_dilated(winograd.convolve, dilation), x, kernel, elsewhere=elsewhere)


def _forward(x, kernel, dilation):
    return convolve_3x3(x, kernel, dilation), (x, kernel)


def _backward(dilation, saved, gradient):
    x, kernel = saved
    plain = functools.partial(direct, dilation=dilation)

    def plain_of_input(gradient, kernel):
        return jax.linear_transpose(lambda x: plain(x, kernel), x)(gradient)[0]

    def plain_of_kernel(x, gradient):
        return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(gradient)[0]

    of_input, of_kernel = (_dilated(f, dilation) for f in (winograd.of_input, winograd.of_kernel))
    return (
        unfused(of_input, gradient, kernel, elsewhere=plain_of_input),
        unfused(of_kernel, x, gradient, elsewhere=plain_of_kernel),
    )


convolve_3x3.defvjp(_forward, _backward)


@functools.cache
def _dilated(function, dilation):
    """Returns the same function each time, so that JAX traces it once for all blocks of a stage."""
    return functools.partial(function, dilation=dilation)


def unfused(function, *arrays, elsewhere=None):
    """Calls function(*arrays), on CPUs so that XLA fuses it with nothing around it.

    On other platforms `elsewhere`, by default the function, is called without that restriction.
    """

    def called(*arrays):
        with set_xla_metadata(inlineable='false'):
            return jax.jit(function)(*arrays)

    return jax.lax.platform_dependent(*arrays, cpu=called, default=elsewhere or function)
