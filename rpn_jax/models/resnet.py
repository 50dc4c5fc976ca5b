"""ResNet-26/50/101/152: stride, dilation, norm and freezing per stage; every stage by name.

Stages carry the papers' names: the stem (conv1 and a max pool), then conv2 to conv5.
"""

import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rpn_jax.errors import InputError
from rpn_jax.models.convolution import WAYS, convolve, unfused

BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STEM_STRIDE = 4
EPSILON = 1e-5
AXIS = 'batch'  # the mapped axis of training, over which batch norm is synchronised


class ResNet(nn.Module):
    """Maps images [B, H, W, 3] to {'conv2': [B, h, w, 4 * width], ..} up to conv{last_stage}.

    dilations (conv2..conv5): d > 1 keeps that stage's stride at 1 and dilates its 3x3 convolutions
    by d. Its first block keeps the previous stage's dilation, as in torchvision; dilate_first_block
    is detectron2's rule. stride_in_1x1 puts a stage's stride where MSRA's weights want it. norm is
    'frozen' (statistics and scale never change), 'batch' (synchronised over axis_name, if any) or
    'group'. frozen_stages (1 the stem, 2 up to conv2, .. 5 all) keep their statistics whatever the
    norm.
    Stages in remat (4 is conv4) are rematerialised: maps are computed again for the gradients, in
    less memory on GPUs; on CPUs XLA undoes it. convolution is one of convolution.WAYS.
    """

    depth: int = 101
    last_stage: int = 4
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    norm: str = 'frozen'
    stride_in_1x1: bool = False
    frozen_stages: int = 0
    dtype: Any = 'float32'
    width: int = 64
    dilate_first_block: bool = False
    distribution: str = 'normal'  # 'normal' or 'uniform', as initializer takes it
    remat: tuple[int, ...] = ()
    convolution: str = 'auto'
    axis_name: str | None = None  # the mapped axis of devices, for batch norm

    @nn.compact
    def __call__(self, images, train=False):
        check(self)
        x = images.astype(self.dtype)
        x = max_pool(relu(self._layer(1, train, x, 'stem_conv', self.width, 7, stride=2)))
        outputs = {}
        for stage in range(2, self.last_stage + 1):
            for chain in chains(self._blocks(stage, train)):
                run = functools.partial(applied, blocks=chain)
                x = (nn.remat(run) if stage in self.remat else run)(self, x)
            outputs[f'conv{stage}'] = x
        return outputs

    @nn.nowrap
    def _blocks(self, stage, train):
        """Returns functions that make the blocks of a stage, one for each."""
        previous, dilation = (1, *self.dilations)[stage - 2 : stage]
        later = functools.partial(
            Bottleneck,
            width=self.width * 2 ** (stage - 2),
            dilation=dilation,
            stride_in_1x1=self.stride_in_1x1,
            layer=functools.partial(self._layer, stage, train),
        )
        first = functools.partial(
            later,
            stride=stage_stride(stage, dilation),
            dilation=dilation if self.dilate_first_block or dilation == 1 else previous,
        )
        blocks = [first] + [later] * (BLOCKS[self.depth][stage - 2] - 1)
        return [functools.partial(f, name=f'conv{stage}_block{i}') for i, f in enumerate(blocks)]

    @nn.nowrap  # so that what is made here belongs to the block that asks for it
    def _layer(self, stage, train, x, name, features, size, **steps):
        """Convolves and normalises; frozen statistics are a factor of the kernel and a shift."""
        dtype, norm_name = jnp.dtype(self.dtype), name.replace('conv', 'norm')
        how = dict(dtype=dtype, distribution=self.distribution, convolution=self.convolution)
        conv = Conv(features, size, **steps, **how, name=name)
        named = dict(epsilon=EPSILON, dtype=dtype, name=norm_name)
        if self.norm == 'group':  # 32 groups as in Wu and He 2018, where the width allows
            return nn.GroupNorm(num_groups=math.gcd(32, self.width), **named)(conv(x))
        if self.norm == 'frozen' or not train or stage <= self.frozen_stages:
            factor, shift = FrozenBatchNorm(name=norm_name)(features)
            return conv(x, factor) + shift.astype(dtype)[None, None, None]
        axis = self.axis_name
        norm = nn.BatchNorm(use_running_average=False, axis_name=axis, momentum=0.9, **named)
        return norm(conv(x))


class Bottleneck(nn.Module):
    """Adds 1x1, 3x3 and 1x1 convolutions to a shortcut (Deep Residual Learning, figure 5)."""

    width: int
    dilation: int
    stride_in_1x1: bool
    layer: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        early, late = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = relu(self.layer(x, 'conv1', self.width, 1, stride=early))
        y = relu(self.layer(y, 'conv2', self.width, 3, stride=late, dilation=self.dilation))
        y = self.layer(y, 'conv3', 4 * self.width, 1)
        if x.shape != y.shape:  # in the first block of a stage
            x = self.layer(x, 'shortcut_conv', 4 * self.width, 1, stride=self.stride)
        return residual(x, y)


def applied(_, x, blocks):
    """Makes blocks and calls one after the other; nn.remat wants their module as first argument."""
    for block in blocks:
        x = block()(x)
    return x


def chains(blocks):
    """Splits a stage of n blocks into chains of about sqrt(n).

    Kept are the inputs of the chains, and within one at a time all maps: least for such lengths, if
    all blocks keep as much (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost).
    """
    length = math.isqrt(len(blocks) - 1) + 1
    return [blocks[i : i + length] for i in range(0, len(blocks), length)]


@jax.custom_vjp
def relu(x):
    """Returns max(x, 0); its gradient reads the result, so that nothing before it is kept."""
    return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x),) * 2, lambda out, g: (_where_positive(out, g),))


@jax.custom_vjp
def residual(x, y):
    """Returns relu(x + y), computed once whatever reads it.

    XLA on CPUs fuses cheap arithmetic into all of its readers. The shortcuts of a ResNet are one
    chain of it, so that every block would add up all the blocks before it again, and the backward
    pass twice more: a fifth of the training step of ResNet-101 (experiments/README.md). On GPUs it
    is left to XLA.
    """
    return unfused(_rectified_sum, x, y)


residual.defvjp(
    lambda x, y: (residual(x, y),) * 2,
    lambda out, g: (unfused(_where_positive, out, g),) * 2,
)


def _rectified_sum(x, y):
    return jnp.maximum(x + y, 0)


def _where_positive(out, gradient):
    # Not out > 0: XLA would write x > 0 for it, and keep x as well as max(x, 0).
    return jax.lax.select(out != 0, gradient, jnp.zeros_like(gradient))


class Conv(nn.Module):
    """Convolves [B, h, w, C] with a square kernel of its own, as convolution.convolve does.

    `factor` [features], if any, multiplies the kernel, each channel of the output by its number.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    dtype: Any = jnp.float32
    distribution: str = 'normal'
    convolution: str = 'auto'

    @nn.compact
    def __call__(self, x, factor=None):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param('kernel', initializer(self.distribution), shape, jnp.float32)
        kernel = kernel if factor is None else kernel * factor[None, None, None]
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, self.dilation, self.convolution)


class FrozenBatchNorm(nn.Module):
    """Returns the factor and the shift [C] of each channel that frozen statistics come to."""

    @nn.compact
    def __call__(self, features):
        shape = (features,)
        scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32).value
        var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32).value
        factor = scale * jax.lax.rsqrt(var + EPSILON)
        return factor, bias - mean * factor


def max_pool(x):
    """Takes the maximum of [B, h, w, C] over 3x3 windows at stride 2, padded by 1 with -inf.

    Written as shifted maxima, first along rows and then along columns: the gradient of XLA's own
    pooling is several times slower on CPUs.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    h, w = ((n - 1) // 2 for n in x.shape[1:3])
    rows = functools.reduce(jnp.maximum, (x[:, i : i + 2 * h - 1 : 2] for i in range(3)))
    return functools.reduce(jnp.maximum, (rows[:, :, i : i + 2 * w - 1 : 2] for i in range(3)))


def stage_stride(stage, dilation):
    """Returns the stride of a stage: 2 from conv3 on, unless it is dilated."""
    return 2 if stage > 2 and dilation == 1 else 1


def total_stride(last_stage, dilations):
    """Returns the nominal stride in pixels of conv{last_stage}."""
    strides = (stage_stride(stage, dilations[stage - 2]) for stage in range(2, last_stage + 1))
    return STEM_STRIDE * math.prod(strides)


def stage_of(name):
    """Returns the stage (1 the stem, 2 conv2, ..) of a module of ResNet, None of other names."""
    match = re.fullmatch(r'stem_(conv|norm)|conv(\d)_block\d+', name)
    return match and int(match[2] or 1)


def initializer(distribution):
    """Returns how kernels begin: 'normal' as in He et al. 2015, by fan out, 'uniform' as torch."""
    if distribution == 'normal':
        return nn.initializers.variance_scaling(2, 'fan_out', 'normal')
    if distribution == 'uniform':
        return nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    raise InputError(f"init: {distribution!r} is not one of 'normal', 'uniform'")


def check(model):
    """Raises InputError where the fields of a ResNet make no network."""
    initializer(model.distribution)
    choices_of = {
        'depth': tuple(BLOCKS),
        'last_stage': (3, 4, 5),
        'norm': ('frozen', 'batch', 'group'),
        'frozen_stages': (0, 1, 2, 3, 4, 5),
        'dtype': ('float32', 'bfloat16'),
        'convolution': WAYS,
    }
    keys = {'convolution': 'conv'}  # fields whose key in a config has another name
    for name, choices in choices_of.items():
        value = getattr(model, name)
        shown = value if name != 'dtype' or isinstance(value, str) else jnp.dtype(value).name
        if shown not in choices:
            raise InputError(f'{keys.get(name, name)}: {value!r} is not one of {choices}')
    width, dilations, remat = model.width, model.dilations, model.remat
    if len(dilations) != 4 or not all(isinstance(d, int) and d >= 1 for d in dilations):
        raise InputError(f'dilations: {dilations!r} is not four integers >= 1')
    if not set(remat) <= set(range(2, model.last_stage + 1)):
        raise InputError(f'remat: {remat!r} is not of stages from 2 to {model.last_stage}, as (4,)')
    if not isinstance(width, int) or width < 1:
        raise InputError(f'width: {width!r} is not an integer >= 1')
