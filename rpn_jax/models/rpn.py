"""The region proposal network: ResNet and head, dense or only at sampled cells; its anchors."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rpn_jax.errors import InputError
from rpn_jax.models import resnet
from rpn_jax.models.convolution import convolve
from rpn_jax.ops import anchors as anchor


class RPN(nn.Module):
    """Maps normalised images [B, H, W, 3] to logits [B, A] and deltas [B, A, 4], float32.

    With index [B, S] the answer is only for those anchors, [B, S] and [B, S, 4].
    """

    backbone: nn.Module
    head: nn.Module
    sizes: tuple[float, ...]
    aspect_ratios: tuple[float, ...]

    def __call__(self, images, index=None, train=False):
        return self.from_features(self.features(images, train), index)

    def from_features(self, features, index=None):
        """Returns logits and deltas as a call does, of feature maps [B, h, w, C] that are there."""
        return self.head(features, index)

    def features(self, images, train=False):
        """Returns the last stage's feature map [B, h, w, C]."""
        return self.backbone(images, train)[f'conv{self.backbone.last_stage}']


class Head(nn.Module):
    """Scores and refines K anchors per cell: 3x3 convolution, ReLU and two 1x1 convolutions.

    The layers are those of Faster R-CNN, section 3.1. Asked for S sampled anchors, the head reads
    the 3x3 neighbourhood of their cells alone: the same numbers as the dense head at S instead of
    h * w positions. Where h * w <= S the dense head is the cheaper one.
    """

    anchors_per_cell: int
    dtype: Any = 'float32'
    distribution: str = 'normal'

    @nn.compact
    def __call__(self, features, index=None):
        b, h, w, c = features.shape
        k = self.anchors_per_cell
        sampled = index is not None and h * w > index.shape[1]
        params = jax.tree.map(lambda p: p.astype(self.dtype), self._params(c))
        if sampled:
            hidden = _neighbourhoods(features, index // k).astype(self.dtype)
            hidden = hidden @ params['conv'][0].reshape(9 * c, c)
        else:
            hidden = convolve(features.astype(self.dtype), params['conv'][0]).reshape(b, h * w, c)
        hidden = nn.relu(hidden + params['conv'][1][None, None])
        logits, deltas = (
            (hidden @ kernel[0, 0] + bias[None, None]).astype(jnp.float32)
            for kernel, bias in (params['objectness'], params['deltas'])
        )
        if sampled:  # [B, S, K]: of each cell the one anchor that was asked for
            column = (index % k)[..., None]
            deltas = deltas.reshape(b, -1, k, 4)
            logits = jnp.take_along_axis(logits, column, 2)[..., 0]
            return logits, jnp.take_along_axis(deltas, column[..., None], 2)[..., 0, :]
        logits, deltas = logits.reshape(b, h * w * k), deltas.reshape(b, h * w * k, 4)
        if index is None:
            return logits, deltas
        return (
            jnp.take_along_axis(logits, index, 1),
            jnp.take_along_axis(deltas, index[..., None], 1),
        )

    def _params(self, c):
        k = self.anchors_per_cell
        return {
            'conv': Affine((3, 3, c, c), self.distribution, name='conv')(),
            'objectness': Affine((1, 1, c, k), self.distribution, name='objectness')(),
            'deltas': Affine((1, 1, c, 4 * k), self.distribution, name='deltas')(),
        }


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


def build(config):
    """Returns the RPN that config.model and config.anchors describe."""
    keywords = {k: v for k, v in config.model.items() if k != 'pretrained'}
    keywords |= {k: tuple(keywords[k]) for k in ('dilations', 'remat') if k in keywords}
    resnet.check(**keywords)
    keywords['distribution'] = keywords.pop('init')
    sizes, ratios = tuple(config.anchors.sizes), tuple(config.anchors.aspect_ratios)
    if not sizes or not ratios or min(sizes + ratios) <= 0:
        raise InputError('config keys anchors.sizes and anchors.aspect_ratios need values > 0')
    return RPN(
        backbone=resnet.ResNet(**keywords),
        head=Head(len(sizes) * len(ratios), keywords['dtype'], keywords['distribution']),
        sizes=sizes,
        aspect_ratios=ratios,
    )


def feature_shape(model, canvas):
    """Returns the (h, w) of the feature map under the head for a canvas (height, width)."""
    stride = _stride(model)
    return tuple(-(-side // stride) for side in canvas)


def anchors(model, canvas):
    """Returns the anchors [A, 4] of a canvas (height, width), in pixels, in the logits' order."""
    return grid(model, feature_shape(model, canvas))


def grid(model, shape):
    """Returns the anchors [A, 4] of a feature map (h, w)."""
    base = anchor.base_anchors(model.sizes, model.aspect_ratios)
    return anchor.grid(base, shape, _stride(model))


def frozen(model, params):
    """Returns a tree like params of booleans: True where a parameter never changes.

    Frozen are the backbone's first `frozen_stages` stages and, with norm 'frozen', the scale and
    bias of every norm.
    """

    def is_frozen(path, _):
        part, module, *rest = (key.key for key in path)
        if part != 'backbone':
            return False
        norms = model.backbone.norm == 'frozen' and is_norm(path)
        return norms or resnet.stage_of(module) <= model.backbone.frozen_stages

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def is_norm(path):
    """Says whether a parameter's path belongs to a norm, which weight decay leaves alone."""
    return 'norm' in path[-2].key


def _stride(model):
    return resnet.total_stride(model.backbone.last_stage, model.backbone.dilations)


def _neighbourhoods(features, cell):
    """Returns the 3x3 neighbourhoods [B, S, 9 * C] of cells [B, S] of features [B, h, w, C]."""
    b, h, w, c = features.shape
    padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(b, -1, c)
    corner = cell // w * (w + 2) + cell % w
    offsets = (jnp.arange(3)[:, None] * (w + 2) + jnp.arange(3)[None, :]).reshape(-1)
    index = (corner[:, :, None] + offsets[None, None, :]).reshape(b, -1)
    # Whole rows: take_along_axis would look up every number of them by itself.
    rows = jax.vmap(lambda cells, i: cells.at[i].get(mode='promise_in_bounds'))(padded, index)
    return rows.reshape(b, cell.shape[1], 9 * c)
