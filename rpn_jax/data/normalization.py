"""Pixel families: the channel order, mean and standard deviation that weights expect."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rpn_jax.errors import InputError


class Pixels(NamedTuple):
    """How uint8 RGB becomes network input: (channels in `order` - mean) / std, all in 0..255."""

    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


FAMILIES = {
    # torchvision's RGB statistics, there on a 0..1 scale
    'torchvision': Pixels(
        'RGB', (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)
    ),
    # MSRA's weights: BGR minus the ImageNet mean, no deviation
    'caffe': Pixels('BGR', (103.06, 115.90, 123.15), (1.0, 1.0, 1.0)),
}


def pixel_family(pixels, mean=(), std=()):
    """Returns the Pixels of a family by name, with another mean or std where given.

    mean and std are in the family's channel order, on a scale of 0 to 255; () keeps the family's.
    Raises InputError for an unknown family and for what is not three numbers.
    """
    if pixels not in FAMILIES:
        choices = ', '.join(map(repr, ('auto', *FAMILIES)))
        raise InputError(f'pixels {pixels!r} is not one of {choices}')
    family = FAMILIES[pixels]
    for key, values in (('mean', mean), ('std', std)):
        allowed = all(map(math.isfinite, values)) and (key == 'mean' or all(v > 0 for v in values))
        if len(values) not in (0, 3) or not allowed:
            more = ', above 0' if key == 'std' else ''
            raise InputError(f'{key} {values!r} is not three numbers{more}, or () for the default')
        if values and all(0 < v < 1 for v in values):
            raise InputError(
                f'{key} {values!r} is on a scale of 0 to 1; pixels are 0 to 255: multiply by 255'
            )
    return family._replace(mean=tuple(mean) or family.mean, std=tuple(std) or family.std)


def normalise(images, size, pixels):
    """Returns network input [B, H, W, 3] float32 from uint8 RGB images; zero outside size [B, 2].

    size is (height, width). Images that are floating point already are returned as they are.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    images = images.astype(jnp.float32)
    if pixels.order == 'BGR':
        images = images[..., ::-1]
    mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (pixels.mean, pixels.std))
    rows = jnp.arange(images.shape[1])[None, :] < size[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < size[:, 1:]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, (images - mean) / std, 0)


def denormalise(images, pixels):
    """Returns uint8 RGB images from network input [B, H, W, 3]: the inverse of normalise."""
    images = np.asarray(images, np.float32) * np.float32(pixels.std) + np.float32(pixels.mean)
    images = images[..., ::-1] if pixels.order == 'BGR' else images
    return np.clip(np.round(images), 0, 255).astype(np.uint8)
