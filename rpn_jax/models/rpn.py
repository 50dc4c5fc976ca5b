"""The region proposal network: a backbone and a head, its anchors, and what of it is frozen."""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rpn_jax.errors import InputError
from rpn_jax.models import fpn as pyramid
from rpn_jax.models import patches, resnet
from rpn_jax.models.convolution import convolve
from rpn_jax.models.fpn import FPN, Affine
from rpn_jax.ops.anchors import Anchors, per_level

SMALLEST = (1, 64, 64, 3)  # images of any size give the same parameters
TUPLES = 'dilations', 'remat'  # fields of ResNet that a config may give as lists
OTHERS = {  # keys of the section `model` that are no fields of ResNet
    *('conv', 'init', 'pretrained', 'pretrained_key', 'head_convs'),
    *('fpn_stages', 'fpn_channels', 'fpn_extra', 'fpn_norm'),
}


class RPN(nn.Module):
    """Maps normalised images [B, H, W, 3] to logits [B, A] and deltas [B, A, 4], float32.

    With index [B, S] the result is only of those anchors, [B, S] and [B, S, 4]. The backbone is
    any Flax module that maps (images, train) to one feature map [B, h, w, C], a tuple of them, or a
    dict, of which those called `reads` are taken, or the last. With an fpn they go through that.
    Map l under the head is of ceil(side / strides[l]) cells along each side. Anchors are in the
    order of Anchors.of(shapes, strides, sizes, aspect_ratios).
    """

    backbone: nn.Module
    head: nn.Module
    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...] = ()  # of each level; only anchors_of reads them
    aspect_ratios: tuple[float, ...] = ()
    fpn: nn.Module | None = None
    reads: tuple[str, ...] = ()

    def __call__(self, images, index=None, train=False):
        maps = self.backbone_maps(images, train)
        shapes, expected = self.level_shapes(maps), feature_shapes(self, images.shape[1:3])
        if shapes != expected:
            raise ValueError(
                f'the backbone makes feature maps of {shapes} cells; strides {self.strides} and '
                f'images of {images.shape[1:3]} pixels need {expected}'
            )
        return self.from_backbone_maps(maps, index, train)

    def backbone_maps(self, images, train=False):
        """Returns the tuple of the backbone's feature maps [B, h, w, C] that are read."""
        maps = self.backbone(images, train)
        if isinstance(maps, dict):
            maps = tuple(maps[name] for name in self.reads) or list(maps.values())[-1]
        return _as_tuple(maps)

    def features(self, images, train=False):
        """Returns the feature maps [B, h, w, C] under the head, a tuple with one for each level."""
        maps = self.backbone_maps(images, train)
        return self.fpn(maps, train) if self.fpn else maps

    def from_backbone_maps(self, maps, index=None, train=False):
        """Returns logits and deltas, as a call does, of backbone_maps that are known already."""
        maps = _as_tuple(maps)
        if self.fpn is None:
            return self.head(maps, index)
        shapes = self.level_shapes(maps)
        if index is None or not self.head.pays(shapes, index.shape[1]):
            return self.head(self.fpn(maps, train), index)
        cells, slot = patches.cells_of(index, shapes, self.head.anchors_per_cell)
        return self.head(self.fpn(maps, train, cells, self.head.convs), slot)

    @nn.nowrap
    def level_shapes(self, maps):
        """Returns the shapes ((h, w), ..) of the levels under the head, of the backbone's maps."""
        shapes = map_shapes(maps)
        for _ in range(self.fpn.extra if self.fpn else 0):
            shapes += (tuple(-(-side // 2) for side in shapes[-1]),)
        return shapes


class RPNHead(nn.Module):
    """Scores and refines K anchors per cell: 3x3 convolutions, ReLU and two 1x1 convolutions.

    The layers are those of Faster R-CNN, section 3.1, shared by all feature maps. Maps [B, h, w, C]
    give the logits [B, A] and deltas [B, A, 4] of all their anchors, or of those of index [B, S].
    Patches of radius `convs` around S cells give those of one anchor in each cell, whose number in
    the cell is index [B, S].
    """

    anchors_per_cell: int
    convs: int = 1
    dtype: Any = 'float32'
    distribution: str = 'normal'
    convolution: str = 'auto'  # one of convolution.WAYS

    @nn.compact
    def __call__(self, maps, index=None):
        k = self.anchors_per_cell
        if not isinstance(maps, patches.Patches):
            maps = _as_tuple(maps)
            if index is not None and self.pays(map_shapes(maps), index.shape[1]):
                cells, index = patches.cells_of(index, map_shapes(maps), k)
                maps = patches.around(maps, cells, self.convs)
        is_sampled, channels = isinstance(maps, patches.Patches), maps[0].shape[-1]
        maps = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(self.dtype), maps)
        shapes = {f'conv{i or ""}': (3, 3, channels, channels) for i in range(self.convs)}
        shapes |= {'objectness': (1, 1, channels, k), 'deltas': (1, 1, channels, 4 * k)}
        init = nn.initializers.normal(0.01)  # Faster R-CNN, section 3.1.3
        init = init if self.distribution == 'normal' else resnet.initializer(self.distribution)
        layers = [Affine(shape, init, name=name)() for name, shape in shapes.items()]
        *convs, objectness, deltas = jax.tree.map(lambda p: p.astype(self.dtype), layers)
        for kernel, bias in convs:
            if is_sampled:
                maps = patches.convolve(maps, kernel, bias, nn.relu)
            else:
                maps = [convolve(x, kernel, way=self.convolution) for x in maps]
                maps = [nn.relu(x + bias[None, None, None]) for x in maps]
        maps = maps[:1] if is_sampled else maps
        hidden = jnp.concatenate([x.reshape(len(x), -1, channels) for x in maps], axis=1)
        logits, deltas = (
            (hidden @ kernel[0, 0] + bias[None, None]).astype(jnp.float32)
            for kernel, bias in (objectness, deltas)
        )
        logits, deltas = logits.reshape(len(logits), -1), deltas.reshape(len(deltas), -1, 4)
        if index is None:
            return logits, deltas
        if is_sampled:
            index = k * jnp.arange(index.shape[1])[None] + index
        return (
            jnp.take_along_axis(logits, index, 1),
            jnp.take_along_axis(deltas, index[..., None], 1),
        )

    @nn.nowrap
    def pays(self, shapes, samples):
        """Says whether the head around so many cells costs less than at all cells of these maps."""
        sampled = samples * sum((2 * i + 1) ** 2 for i in range(self.convs))
        return sampled < self.convs * sum(map(math.prod, shapes))


def build(model, anchors):
    """Returns the RPN of the config sections `model` and `anchors`, given as mappings.

    Raises InputError where they make no network.
    """
    own = {field.name for field in dataclasses.fields(resnet.ResNet)} - {'parent', 'name'}
    keywords = {k: tuple(v) if k in TUPLES else v for k, v in model.items() if k in own}
    keywords['distribution'] = model.get('init', 'normal')
    keywords['convolution'] = model.get('conv', 'auto')
    if unknown := set(model) - own - OTHERS:
        raise TypeError(f'unknown keys of a model: {sorted(unknown)}')
    backbone = resnet.ResNet(**keywords, axis_name=resnet.AXIS)
    resnet.check(backbone)
    stages, fpn = tuple(model.get('fpn_stages', ())), None
    if stages:
        keywords = {k: model[f'fpn_{k}'] for k in ('channels', 'extra', 'norm')}
        keywords |= dict(dtype=backbone.dtype, convolution=backbone.convolution)
        fpn = FPN(**keywords, axis_name=resnet.AXIS)
        check_pyramid(backbone, fpn, stages)
    reads = stages or (backbone.last_stage,)
    strides = [resnet.total_stride(stage, backbone.dilations) for stage in reads]
    strides += [strides[-1] * 2**i for i in range(1, fpn.extra + 1)] if fpn else []
    ratios = tuple(anchors['aspect_ratios'])
    try:
        sizes = per_level(anchors['sizes'], len(strides), 'sizes')
        if not (all(sizes) and ratios and min(*ratios, *map(min, sizes)) > 0):
            raise ValueError(f'sizes {sizes} and aspect ratios {ratios} need values > 0')
        if len(counts := {len(each) for each in sizes}) > 1:
            raise ValueError(f'sizes {sizes}: the head needs as many of each level, not {counts}')
    except (ValueError, TypeError) as error:
        levels = f' (the strides of the levels are {tuple(strides)})' if fpn else ''
        raise InputError(f'anchors: {error}{levels}') from error
    head = RPNHead(
        len(sizes[0]) * len(ratios),
        model.get('head_convs', 1),
        dtype=backbone.dtype,
        distribution=backbone.distribution,
        convolution=backbone.convolution,
    )
    reads = tuple(f'conv{stage}' for stage in reads)
    return RPN(backbone, head, tuple(strides), sizes, ratios, fpn, reads)


def check_pyramid(backbone, fpn, stages):
    """Raises InputError where no pyramid stands on these stages (2, ..) of a ResNet."""
    last = backbone.last_stage
    if list(stages) != sorted(set(stages)) or not set(stages) <= {2, 3, 4, 5}:
        raise InputError(f'fpn_stages: {stages} are not stages from 2 to 5, from fine to coarse')
    if stages[-1] != last:
        raise InputError(
            f'fpn_stages: {stages} end at conv{stages[-1]}, the backbone at conv{last}; set '
            f'last_stage={stages[-1]}'
        )
    if any(b - a > 1 for a, b in zip(stages, stages[1:], strict=False)):
        raise InputError(f'fpn_stages: {stages} leave out a stage')
    pyramid.check(fpn)


def check_canvases(model, canvases):
    """Raises InputError where a level of a pyramid would be smaller than one cell of its own.

    canvases are (height, width) in pixels.
    """
    least, coarsest = min(map(min, canvases)), max(model.strides)
    if model.fpn and least < coarsest:
        raise InputError(
            f'image_size: a canvas with a side of {least} pixels is smaller than one cell of the '
            f'coarsest level, {coarsest} pixels; take larger images, or a smaller fpn_extra, or '
            f"with resize='short_side' canvas_multiple={coarsest}"
        )


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
    and, with norm 'frozen', the scale and bias of every norm there or in the `fpn`. Of a backbone
    without these fields nothing is frozen.
    """
    stages = getattr(model.backbone, 'frozen_stages', 0)
    modules = {'backbone': model.backbone, 'fpn': model.fpn}
    fixed_norms = {name for name, m in modules.items() if getattr(m, 'norm', '') == 'frozen'}

    def is_frozen(path, _):
        part, *names = (key.key for key in path)
        if part in fixed_norms and is_norm(path):
            return True
        stage = next(filter(None, map(resnet.stage_of, names)), math.inf)
        return part == 'backbone' and stage <= stages

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def is_norm(path):
    """Says whether a parameter's path belongs to a norm, which weight decay does not touch."""
    return re.search('norm', path[-2].key, re.IGNORECASE) is not None


def _as_tuple(maps):
    """Returns one feature map, or several, as a tuple."""
    return tuple(maps) if isinstance(maps, tuple | list) else (maps,)
