"""The region proposal network: a backbone and a head, its anchors, and what of it is frozen."""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.models import resnet
from rpn_jax.models.convolution import convolve
from rpn_jax.ops.anchors import Anchors, per_level

SMALLEST = (1, 64, 64, 3)  # images of any size give the same parameters


class RPN(nn.Module):
    """Maps normalised images [B, H, W, 3] to logits [B, A] and deltas [B, A, 4], float32.

    With index [B, S] the result is only of those anchors, [B, S] and [B, S, 4]. The backbone is
    any Flax module that maps (images, train) to one feature map [B, h, w, C], a tuple of them, or a
    dict whose last map is taken; map l is of ceil(side / strides[l]) cells along each side. Anchors
    are in the order of Anchors.of(shapes, strides, sizes, aspect_ratios).
    """

    backbone: nn.Module
    head: nn.Module
    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...] = ()  # of each level; only anchors_of reads them
    aspect_ratios: tuple[float, ...] = ()

    def __call__(self, images, index=None, train=False):
        maps = self.features(images, train)
        shapes, expected = map_shapes(maps), feature_shapes(self, images.shape[1:3])
        if shapes != expected:
            raise ValueError(
                f'the backbone makes feature maps of {shapes} cells; strides {self.strides} and '
                f'images of {images.shape[1:3]} pixels need {expected}'
            )
        return self.from_features(maps, index)

    def from_features(self, maps, index=None):
        """Returns logits and deltas, as a call does, of feature maps that are known already."""
        return self.head(maps, index)

    def features(self, images, train=False):
        """Returns the feature maps [B, h, w, C] under the head, a tuple with one for each level."""
        return _as_tuple(self.backbone(images, train))


class RPNHead(nn.Module):
    """Scores and refines K anchors per cell: 3x3 convolutions, ReLU and two 1x1 convolutions.

    The layers are those of Faster R-CNN, section 3.1, shared by all feature maps. Asked for S
    sampled anchors, the last 3x3 convolution reads the neighbourhoods of their cells only: the same
    numbers as the dense head at S instead of all cells. Where there are no more cells than S, the
    dense head is the cheaper one.
    """

    anchors_per_cell: int
    convs: int = 1
    dtype: Any = 'float32'
    distribution: str = 'normal'

    @nn.compact
    def __call__(self, maps, index=None):
        maps = tuple(x.astype(self.dtype) for x in _as_tuple(maps))
        k, channels = self.anchors_per_cell, maps[0].shape[-1]
        shapes = {f'conv{i or ""}': (3, 3, channels, channels) for i in range(self.convs)}
        shapes |= {'objectness': (1, 1, channels, k), 'deltas': (1, 1, channels, 4 * k)}
        layers = [Affine(shape, self.distribution, name=name)() for name, shape in shapes.items()]
        *first, last, objectness, deltas = jax.tree.map(lambda p: p.astype(self.dtype), layers)
        for kernel, bias in first:
            maps = tuple(nn.relu(convolve(x, kernel) + bias[None, None, None]) for x in maps)
        neighbours, cell, slot = _positions(map_shapes(maps), k)
        if index is not None and len(neighbours) > index.shape[1]:
            hidden = _neighbourhoods(maps, neighbours[cell[index]])
            hidden = hidden @ last[0].reshape(9 * channels, channels)
            index = k * jnp.arange(index.shape[1])[None] + slot[index]  # of the answers below
        else:
            flat = [convolve(x, last[0]).reshape(len(x), -1, channels) for x in maps]
            hidden = jnp.concatenate(flat, axis=1)
        hidden = nn.relu(hidden + last[1][None, None])
        logits, deltas = (
            (hidden @ kernel[0, 0] + bias[None, None]).astype(jnp.float32)
            for kernel, bias in (objectness, deltas)
        )
        logits, deltas = logits.reshape(len(logits), -1), deltas.reshape(len(deltas), -1, 4)
        if index is None:
            return logits, deltas
        return (
            jnp.take_along_axis(logits, index, 1),
            jnp.take_along_axis(deltas, index[..., None], 1),
        )


class Affine(nn.Module):
    """Holds the kernel and bias of a convolution; the head applies them in two ways."""

    shape: tuple[int, ...]
    distribution: str

    @nn.compact
    def __call__(self):
        normal = nn.initializers.normal(0.01)  # Faster R-CNN, section 3.1.3
        is_normal = self.distribution == 'normal'
        init = normal if is_normal else resnet.initializer(self.distribution)
        kernel = self.param('kernel', init, self.shape, jnp.float32)
        return kernel, self.param('bias', nn.initializers.zeros, self.shape[-1:], jnp.float32)


def build(model, anchors):
    """Returns the RPN of the config sections `model` and `anchors`, given as mappings.

    Raises InputError where they make no network.
    """
    keywords = {k: v for k, v in model.items() if k not in ('pretrained', 'pretrained_key', 'init')}
    keywords |= {k: tuple(keywords[k]) for k in ('dilations', 'remat') if k in keywords}
    keywords['distribution'] = model.get('init', 'normal')
    backbone = resnet.ResNet(**keywords, axis_name=resnet.AXIS)
    resnet.check(backbone)
    strides = (resnet.total_stride(backbone.last_stage, backbone.dilations),)
    ratios = tuple(anchors['aspect_ratios'])
    try:
        sizes = per_level(anchors['sizes'], len(strides), 'sizes')
        if not (all(sizes) and ratios and min(*ratios, *map(min, sizes)) > 0):
            raise ValueError(f'sizes {sizes} and aspect ratios {ratios} need values > 0')
    except (ValueError, TypeError) as error:
        raise InputError(f'anchors: {error}') from error
    count = len(sizes[0]) * len(ratios)
    head = RPNHead(count, dtype=backbone.dtype, distribution=backbone.distribution)
    return RPN(backbone, head, strides, sizes, ratios)


def feature_shapes(model, canvas):
    """Returns the shapes ((h, w), ..) of a model's feature maps for a canvas (height, width)."""
    return tuple(tuple(-(-side // stride) for side in canvas) for stride in model.strides)


def map_shapes(maps):
    """Returns the shapes ((h, w), ..) of one feature map [.., h, w, C] or a tuple of them."""
    return tuple(tuple(x.shape[-3:-1]) for x in _as_tuple(maps))


def anchors_of(model, canvas):
    """Returns the Anchors of a canvas (height, width) in pixels, in the order of the logits."""
    return anchors_of_maps(model, feature_shapes(model, canvas))


def anchors_of_maps(model, shapes):
    """Returns the Anchors of feature maps of these shapes ((h, w), ..)."""
    return Anchors.of(shapes, model.strides, model.sizes, model.aspect_ratios)


def frozen(model, params):
    """Returns a tree like params of booleans: True where a parameter never changes.

    Frozen are, wherever they stand below `backbone`, the first `frozen_stages` stages of a ResNet
    and, with norm 'frozen', the scale and bias of every norm. Of a backbone without these fields
    nothing is frozen.
    """
    stages = getattr(model.backbone, 'frozen_stages', 0)
    fixed_norms = getattr(model.backbone, 'norm', '') == 'frozen'

    def is_frozen(path, _):
        part, *names = (key.key for key in path)
        stage = next(filter(None, map(resnet.stage_of, names)), math.inf)
        return part == 'backbone' and (stage <= stages or (fixed_norms and is_norm(path)))

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def is_norm(path):
    """Says whether a parameter's path belongs to a norm, which weight decay does not touch."""
    return re.search('norm', path[-2].key, re.IGNORECASE) is not None


def _as_tuple(maps):
    """Returns feature maps as a tuple: of a dict the last one, of a single map that."""
    if isinstance(maps, dict):
        maps = list(maps.values())[-1]
    return tuple(maps) if isinstance(maps, tuple | list) else (maps,)


def _positions(shapes, k):
    """Returns where the anchors of feature maps of these shapes ((h, w), ..) are looked up.

    neighbours [cells, 9] are the rows, in all padded maps one after another, of a cell's 3x3
    neighbourhood; cell and slot [A] are the cell of each anchor and its number within the cell.
    """
    neighbours, start = [], 0
    for h, w in shapes:
        rows = start + np.arange((h + 2) * (w + 2), dtype=np.int32).reshape(h + 2, w + 2)
        neighbours.append(np.lib.stride_tricks.sliding_window_view(rows, (3, 3)).reshape(-1, 9))
        start += rows.size
    neighbours = np.concatenate(neighbours)
    cell, slot = np.indices((len(neighbours), k), np.int32).reshape(2, -1)
    return jnp.asarray(neighbours), jnp.asarray(cell), jnp.asarray(slot)


def _neighbourhoods(maps, rows):
    """Returns rows [B, S, 9] of padded feature maps [B, h, w, C], side by side: [B, S, 9 * C]."""
    b, c = len(rows), maps[0].shape[-1]
    padded = [jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(b, -1, c) for x in maps]
    padded = jnp.concatenate(padded, axis=1)
    # Whole rows: take_along_axis would look up every number of them by itself.
    found = jax.vmap(lambda x, i: x.at[i].get(mode='promise_in_bounds'))(padded, rows)
    return found.reshape(*rows.shape[:2], 9 * c)
