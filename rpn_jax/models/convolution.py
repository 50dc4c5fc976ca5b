"""Convolutions, each in the way that is fastest where it runs; all are the same up to rounding."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from rpn_jax.models import winograd

EVEN = 64  # on GPUs a 1x1 kernel's gradient is a product if the rows are a multiple of this
FEW = 8  # channels below which a GPU's matrix units have little to do
WAYS = 'auto', 'xla'


def convolve(x, kernel, stride=1, dilation=1, way='auto'):
    """Convolves [B, h, w, C] with [k, k, C, F], padded by dilation * (k // 2) on each side.

    That is torch's padding; Flax's 'SAME' pads stride-2 convolutions unevenly and shifts their
    features by a pixel. The way is one of WAYS: 'auto' the fastest that is known on a platform,
    'xla' XLA's own convolution.
    """
    size = len(kernel)
    if way == 'xla':
        return direct(x, kernel, stride, dilation)
    if size == 1:
        return convolve_1x1(x, kernel, stride)
    if stride == 2 and dilation == 1 and x.shape[-1] < FEW:
        return convolve_stem(x, kernel)
    if size == 3 and stride == 1 and winograd.pays(x, kernel, dilation):
        return convolve_3x3(x, kernel, dilation)
    return direct(x, kernel, stride, dilation)


def direct(x, kernel, stride=1, dilation=1, padding=None):
    """Returns what convolve does, by XLA's own convolution; padding is (before, after) a side."""
    margin = dilation * (len(kernel) // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(padding or (margin, margin),) * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def space_to_depth(x, kernel):
    """Computes a convolution of stride 2 as one of stride 1 on 2x2 pixels folded into channels.

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
    return direct(x, kernel, padding=(low, taps - 1 - low))


def convolve_1x1(x, kernel, stride=1):
    """Returns what convolve does of a 1x1 kernel.

    On CPUs it is a matrix product, which XLA runs faster than a convolution. On GPUs the
    convolution takes a shift, a shortcut and a ReLU along; its gradients are products there too,
    but for those with a stride and a kernel's of an uneven number of rows.
    """
    as_product, as_convolution = (functools.partial(f, stride=stride) for f in (product, direct))

    def gradients_elsewhere(x, kernel, gradient):
        # On GPUs XLA (of jax 0.11) fuses the rows that a stride leaves out into a product, and
        # dies. It splits a kernel's long sum over rows: uneven ones make it copy both operands.
        of_input = as_product if stride == 1 else as_convolution
        even = math.prod(gradient.shape[:3]) % EVEN == 0
        return _gradients(of_input, of_input if even else as_convolution, x, kernel, gradient)

    of_cpu = functools.partial(_gradients, as_product, as_product)
    return _by_platform(x, kernel, as_product, as_convolution, of_cpu, gradients_elsewhere)


def product(x, kernel, stride=1):
    """Returns what convolve does of a 1x1 kernel, as a matrix product."""
    x = x[:, ::stride, ::stride]
    # Of rows [B * h * w, C]: the gradient of a product of maps transposes them first.
    rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return rows.reshape(*x.shape[:3], -1)


def convolve_stem(x, kernel):
    """Returns what convolve does of a stem, at stride 2.

    On GPUs it is `space_to_depth`, on CPUs the kernel's gradient is `gradient_by_columns`.
    """
    strided = functools.partial(direct, stride=2)

    def gradients_of_cpu(x, kernel, gradient):
        of_input = jax.linear_transpose(lambda x: strided(x, kernel), x)
        return of_input(gradient)[0], gradient_by_columns(x, gradient, len(kernel))

    elsewhere = functools.partial(_gradients, space_to_depth, space_to_depth)
    return _by_platform(x, kernel, strided, space_to_depth, gradients_of_cpu, elsewhere)


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


def convolve_3x3(x, kernel, dilation=1):
    """Returns what convolve does of a 3x3 kernel: on CPUs by Winograd's filtering, else by XLA."""
    functions = winograd.convolve, winograd.of_input, winograd.of_kernel
    filtered, of_input, of_kernel = (_isolated(f, dilation=dilation) for f in functions)
    plain = functools.partial(direct, dilation=dilation)

    def gradients_of_cpu(x, kernel, gradient):
        return of_input(gradient, kernel), of_kernel(x, gradient)

    elsewhere = functools.partial(_gradients, plain, plain)
    return _by_platform(x, kernel, filtered, plain, gradients_of_cpu, elsewhere)


def _by_platform(x, kernel, of_cpu, elsewhere, gradients_of_cpu, gradients_elsewhere):
    """Convolves by of_cpu or elsewhere(x, kernel); it has no forward-mode derivative.

    The gradients of input and kernel are those of gradients_..(x, kernel, gradient of the outputs).
    """

    @jax.custom_vjp
    def convolved(*arrays):
        return jax.lax.platform_dependent(*arrays, cpu=of_cpu, default=elsewhere)

    def backward(arrays, gradient):
        ways = dict(cpu=gradients_of_cpu, default=gradients_elsewhere)
        return jax.lax.platform_dependent(*arrays, gradient, **ways)

    convolved.defvjp(lambda *arrays: (convolved(*arrays), arrays), backward)
    return convolved(x, kernel)


def _gradients(of_input, of_kernel, x, kernel, gradient):
    """Returns the gradients of input and kernel, each of a function of both."""
    inputs = jax.linear_transpose(lambda x: of_input(x, kernel), x)
    kernels = jax.linear_transpose(lambda kernel: of_kernel(x, kernel), kernel)
    return inputs(gradient)[0], kernels(gradient)[0]


def unfused(function, *arrays):
    """Calls function(*arrays), on CPUs so that XLA fuses it with nothing around it."""
    return jax.lax.platform_dependent(*arrays, cpu=_isolated(function), default=function)


def _isolated(function, **static):
    """Returns function(*arrays, **static), traced once, which XLA fuses with nothing around it."""

    def called(*arrays):
        with set_xla_metadata(inlineable='false'):
            return jax.jit(function, static_argnames=(*static,))(*arrays, **static)

    return called
