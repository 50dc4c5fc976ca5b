"""A feature pyramid: maps of several strides with the same channels (Lin et al. 2017)."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rpn_jax.errors import InputError
from rpn_jax.models import patches
from rpn_jax.models.convolution import WAYS, convolve
from rpn_jax.models.resnet import EPSILON, FrozenBatchNorm

NORMS = '', 'frozen', 'batch', 'group'
# As torchvision's kaiming_uniform_(a=1) and detectron2's c2_xavier_fill.
XAVIER = nn.initializers.variance_scaling(1, 'fan_in', 'uniform')


class FPN(nn.Module):
    """Maps feature maps [B, h, w, C], from fine to coarse, to as many of the same channels.

    A 1x1 convolution of each map is added to the coarser sum, enlarged to its size by repetition
    (torch's interpolate, 'nearest'); a 3x3 convolution follows. `extra` further levels come of the
    last one, each by taking every other cell. norm, behind each convolution, is '' (none; the
    convolutions have a bias), 'frozen', 'batch' (synchronised over axis_name, if any) or 'group'.
    """

    channels: int = 256
    extra: int = 1
    norm: str = ''
    dtype: Any = 'float32'
    convolution: str = 'auto'  # one of convolution.WAYS
    axis_name: str | None = None

    @nn.compact
    def __call__(self, maps, train=False, cells=None, radius=0):
        """Returns a tuple of maps, or the Patches of this radius around Cells of theirs.

        The last convolution then reads the neighbourhoods of the cells only, in the levels that
        have more cells than these.
        """
        check(self)
        maps = maps if isinstance(maps, tuple | list) else (maps,)
        maps = [x.astype(self.dtype) for x in maps]
        sums = [self._layer(train, x, f'lateral{i}', 1) for i, x in enumerate(maps)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + enlarged(sums[i + 1], sums[i].shape[1:3])
        names = [f'output{i}' for i in range(len(sums))]
        if cells is None:
            outputs = [self._layer(train, *each, 3) for each in zip(sums, names, strict=True)]
            return (*outputs, *self._further(outputs[-1]))
        neighbours = cells.row.shape[1] * (2 * radius + 1) ** 2
        found = None
        for level, (x, name) in enumerate(zip(sums, names, strict=True)):
            is_read_whole = level == len(sums) - 1 and self.extra
            if is_read_whole or neighbours >= math.prod(x.shape[1:3]) or not self._is_affine(train):
                output = self._layer(train, x, name, 3)
                levels = (output, *self._further(output)) if is_read_whole else (output,)
                own = patches.around(levels, cells, radius, level)
            else:
                own = patches.around((x,), cells, radius + 1, level)
                own = patches.convolve(own, *self._affine(x.shape[-1], name, 3))
            found = own if found is None else patches.merged(found, own)
        return found

    def _further(self, x):
        """Returns the extra levels, by max pooling with a window of 1 and a stride of 2."""
        return [x[:, :: 2**i, :: 2**i] for i in range(1, self.extra + 1)]

    @nn.nowrap
    def _is_affine(self, train):
        """Says whether a layer is a kernel and a bias, whatever the other cells hold."""
        return self.norm in ('', 'frozen') or (self.norm == 'batch' and not train)

    def _layer(self, train, x, name, size):
        """Convolves and normalises."""
        kernel, bias = self._affine(x.shape[-1], name, size, self._is_affine(train))
        x = convolve(x, kernel, way=self.convolution)
        if bias is not None:
            return x + bias[None, None, None]
        named = dict(epsilon=EPSILON, dtype=jnp.dtype(self.dtype), name=f'{name}_norm')
        if self.norm == 'group':
            return nn.GroupNorm(num_groups=math.gcd(32, self.channels), **named)(x)
        axis = self.axis_name
        return nn.BatchNorm(use_running_average=False, axis_name=axis, momentum=0.9, **named)(x)

    def _affine(self, inputs, name, size, with_norm=True):
        """Returns the kernel and the bias of a layer, its norm's factor and shift included."""
        shape = size, size, inputs, self.channels
        kernel, bias = Affine(shape, XAVIER, bias=not self.norm, name=name)()
        if self.norm and with_norm:
            factor, bias = FrozenBatchNorm(name=f'{name}_norm')(self.channels)
            kernel = kernel * factor[None, None, None]
        return kernel.astype(self.dtype), bias if bias is None else bias.astype(self.dtype)


class Affine(nn.Module):
    """Holds the kernel and the bias, if any, of a convolution, which is applied in several ways."""

    shape: tuple[int, ...]
    initializer: Any
    bias: bool = True

    @nn.compact
    def __call__(self):
        kernel = self.param('kernel', self.initializer, self.shape, jnp.float32)
        zeros = nn.initializers.zeros
        return kernel, self.param(
            'bias', zeros, self.shape[-1:], jnp.float32
        ) if self.bias else None


def check(fpn):
    """Raises InputError where the fields of an FPN make no pyramid."""
    if fpn.channels < 1 or fpn.extra < 0 or fpn.norm not in NORMS or fpn.convolution not in WAYS:
        raise InputError(
            f'fpn_channels: {fpn.channels}, fpn_extra {fpn.extra}, fpn_norm {fpn.norm!r} and conv '
            f'{fpn.convolution!r} need at least 1, at least 0, one of {NORMS} and one of {WAYS}'
        )


def enlarged(x, shape):
    """Returns a map [B, h, w, C] with every cell repeated, cut to the shape (h', w').

    h' is 2 * h or 2 * h - 1, or h, and w' likewise. Raises ValueError for others.
    """
    for axis, (now, wanted) in enumerate(zip(x.shape[1:3], shape, strict=True), 1):
        if now not in (wanted, -(-wanted // 2)):
            raise ValueError(f'a feature map of {x.shape[1:3]} cells below one of {tuple(shape)}')
        if now != wanted:
            x = jnp.repeat(x, 2, axis)
    return x[:, : shape[0], : shape[1]]
