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
from rpn_jax.models.convolution import convolve, unfused

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
    less memory on GPUs; on CPUs XLA undoes it.
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
    axis_name: str | None = None  # the mapped axis of devices, for batch norm

    @nn.compact
    def __call__(self, images, train=False):
        dtype = jnp.dtype(self.dtype)
        conv = functools.partial(Conv, dtype=dtype, distribution=self.distribution)
        groups = math.gcd(32, self.width)  # 32 as in Wu and He 2018, where the width allows
        axis = self.axis_name
        norm = functools.partial(_norm, self.norm, groups=groups, dtype=dtype, axis_name=axis)
        learning = train and self.frozen_stages < 1
        stem = conv(self.width, 7, stride=2, name='stem_conv'), norm(learning, 'stem_norm')
        x = max_pool(relu(normalised(*stem, images.astype(self.dtype))))
        outputs = {}
        for stage in range(2, self.last_stage + 1):
            learning = train and self.frozen_stages < stage
            blocks = self._blocks(stage, conv, functools.partial(norm, learning))
            if stage in self.remat:
                for chain in chains(blocks):
                    x = nn.remat(functools.partial(applied, blocks=chain))(self, x)
            else:
                x = applied(self, x, blocks)
            outputs[f'conv{stage}'] = x
        return outputs

    def _blocks(self, stage, conv, norm):
        """Returns functions that make the blocks of a stage, one for each."""
        previous, dilation = (1, *self.dilations)[stage - 2 : stage]
        block = functools.partial(
            Bottleneck,
            width=self.width * 2 ** (stage - 2),
            stride_in_1x1=self.stride_in_1x1,
            conv=conv,
            norm=norm,
        )
        first = functools.partial(
            block,
            stride=stage_stride(stage, dilation),
            dilation=dilation if self.dilate_first_block or dilation == 1 else previous,
            project=True,
        )
        later = functools.partial(block, stride=1, dilation=dilation, project=False)
        made = [first] + [later] * (BLOCKS[self.depth][stage - 2] - 1)
        return [functools.partial(f, name=f'conv{stage}_block{i}') for i, f in enumerate(made)]


class Bottleneck(nn.Module):
    """Adds 1x1, 3x3 and 1x1 convolutions to a shortcut (Deep Residual Learning, figure 5)."""

    width: int
    stride: int
    dilation: int
    stride_in_1x1: bool
    project: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x):
        early, late = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        conv1 = self.conv(self.width, 1, stride=early, name='conv1')
        conv2 = self.conv(self.width, 3, stride=late, dilation=self.dilation, name='conv2')
        conv3 = self.conv(4 * self.width, 1, name='conv3')
        y = relu(normalised(conv1, self.norm('norm1'), x))
        y = relu(normalised(conv2, self.norm('norm2'), y))
        y = normalised(conv3, self.norm('norm3'), y)
        if self.project:
            conv = self.conv(4 * self.width, 1, stride=self.stride, name='shortcut_conv')
            x = normalised(conv, self.norm('shortcut_norm'), x)
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


def normalised(conv, norm, x):
    """Convolves and normalises; frozen statistics are a factor of the kernel and a shift."""
    if isinstance(norm, FrozenBatchNorm):
        factor, shift = norm(conv.features)
        return conv(x, factor) + shift.astype(conv.dtype)[None, None, None]
    return norm(conv(x))


@jax.custom_vjp
def relu(x):
    """Returns max(x, 0); its gradient reads the result, so that nothing before it is kept."""
    return jnp.maximum(x, 0)


def _relu_backward(out, gradient):
    return (_where_positive(out, gradient),)


relu.defvjp(lambda x: (relu(x),) * 2, _relu_backward)


@jax.custom_vjp
def residual(x, y):
    """Returns relu(x + y), computed once whatever reads it.

    XLA on CPUs fuses cheap arithmetic into all of its readers. The shortcuts of a ResNet are one
    chain of it, so that every block would add up all the blocks before it again, and the backward
    pass twice more: a fifth of the training step of ResNet-101 (experiments/README.md). On GPUs it
    is left to XLA.
    """
    return unfused(_rectified_sum, x, y)


def _residual_forward(x, y):
    out = residual(x, y)
    return out, out


def _residual_backward(out, gradient):
    gradient = unfused(_where_positive, out, gradient)
    return gradient, gradient


residual.defvjp(_residual_forward, _residual_backward)


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

    @nn.compact
    def __call__(self, x, factor=None):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param('kernel', initializer(self.distribution), shape, jnp.float32)
        kernel = kernel if factor is None else kernel * factor[None, None, None]
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return convolve(x, kernel, self.stride, self.dilation)


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
    """Returns the stage (1 the stem, 2 conv2, ..) of a top-level module of ResNet by its name.

    None is returned for the names of other modules.
    """
    if name in ('stem_conv', 'stem_norm'):
        return 1
    block = re.fullmatch(r'conv(\d)_block\d+', name)
    return int(block[1]) if block else None


def initializer(distribution):
    """Returns the initialiser of convolutions.

    'normal' is He et al. 2015 by fan out, 'uniform' is torch's default.
    """
    if distribution == 'normal':
        return nn.initializers.variance_scaling(2, 'fan_out', 'normal')
    if distribution == 'uniform':
        return nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    raise InputError(f"init: {distribution!r} is not one of 'normal', 'uniform'")


def check(
    depth,
    width=64,
    last_stage=4,
    dilations=(1, 1, 1, 1),
    norm='frozen',
    frozen_stages=0,
    init='normal',
    dtype='float32',
    remat=(),
    **_,
):
    """Raises InputError where the keywords of ResNet make no network."""
    initializer(init)
    for key, value, choices in [
        ('depth', depth, tuple(BLOCKS)),
        ('last_stage', last_stage, (3, 4, 5)),
        ('norm', norm, ('frozen', 'batch', 'group')),
        ('frozen_stages', frozen_stages, (0, 1, 2, 3, 4, 5)),
        ('dtype', dtype, ('float32', 'bfloat16')),
    ]:
        if value not in choices:
            raise InputError(f'{key}: {value!r} is not one of {choices}')
    if len(dilations) != 4 or not all(isinstance(d, int) and d >= 1 for d in dilations):
        raise InputError(f'dilations: {dilations!r} is not four integers >= 1')
    if not set(remat) <= set(range(2, last_stage + 1)):
        raise InputError(f'remat: {remat!r} is not of stages from 2 to {last_stage}, as (4,)')
    if not isinstance(width, int) or width < 1:
        raise InputError(f'width: {width!r} is not an integer >= 1')


def _norm(norm, learning, name, *, groups, dtype, axis_name):
    if norm == 'group':
        return nn.GroupNorm(num_groups=groups, epsilon=EPSILON, dtype=dtype, name=name)
    if norm == 'frozen' or not learning:
        return FrozenBatchNorm(name=name)
    return nn.BatchNorm(
        use_running_average=False,
        axis_name=axis_name,
        momentum=0.9,
        epsilon=EPSILON,
        dtype=dtype,
        name=name,
    )
