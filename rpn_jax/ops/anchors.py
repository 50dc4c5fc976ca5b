"""Anchors: boxes of a few sizes and shapes around every cell of one or more feature maps."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['boxes', 'level', 'cell', 'type'],
    meta_fields=['types', 'levels'],
)
@dataclasses.dataclass(frozen=True)
class Anchors:
    """The anchors of an image: level after level, in a level cell by cell and row by row.

    The anchors of a cell are contiguous, so that a head's output [h, w, K] needs no transpose.
    """

    boxes: jax.Array  # [A, 4] float32, pixels
    level: jax.Array  # [A] int32
    cell: jax.Array  # [A] int32, counted within the level
    type: jax.Array  # [A] int32, row of types
    types: tuple[tuple[float, float], ...]  # (size, aspect ratio), those of a level together
    levels: tuple[int, ...]  # number of anchors of each level

    @classmethod
    def of(cls, shapes, strides, sizes, aspect_ratios):
        """Returns the anchors of feature maps of shapes ((h, w), ..) and strides in pixels.

        sizes is a tuple of sizes in pixels for each level, aspect_ratios (height / width) a tuple
        for all levels or one for each. Strides are nominal: the cell in column x stands at
        x * stride, whatever the image's size. Raises ValueError where the numbers of levels differ.
        """
        sizes = per_level(sizes, len(shapes), 'sizes')
        if not any(isinstance(ratios, tuple | list) for ratios in aspect_ratios):
            aspect_ratios = [tuple(aspect_ratios)] * len(shapes)
        ratios = per_level(aspect_ratios, len(shapes), 'aspect_ratios')
        if len(strides) != len(shapes):
            raise ValueError(f'strides {strides!r}: not a number for each of {len(shapes)} levels')
        rows, types = [], ()
        for level, (shape, stride) in enumerate(zip(shapes, strides, strict=True)):
            boxes = grid(base_anchors(sizes[level], ratios[level]), shape, stride)
            own = tuple((size, ratio) for ratio in ratios[level] for size in sizes[level])
            each = math.prod(shape), len(own)  # cells, anchors of a cell
            cell, slot = (jax.lax.broadcasted_iota(jnp.int32, each, i).reshape(-1) for i in (0, 1))
            rows.append((boxes, jnp.full_like(cell, level), cell, slot + len(types)))
            types += own
        columns = (jnp.concatenate(column) for column in zip(*rows, strict=True))
        return cls(*columns, types=types, levels=tuple(len(boxes) for boxes, *_ in rows))


def boxes_of(anchors):
    """Returns the boxes [A, 4] of Anchors; an array passes as it is."""
    return anchors.boxes if isinstance(anchors, Anchors) else anchors


def per_level(values, levels, name):
    """Returns a tuple of values for each level; for one level a plain tuple of numbers will do.

    Raises ValueError, which begins with the name, where there is not a tuple for each level.
    """
    nested = [isinstance(value, tuple | list) for value in values]
    if levels == 1 and not any(nested):
        values, nested = (tuple(values),), [True]
    if not all(nested) or len(values) != levels:
        raise ValueError(f'{name} {values!r}: not a tuple of numbers for each of {levels} levels')
    return tuple(map(tuple, values))


def base_anchors(sizes, aspect_ratios):
    """Returns the anchors [K, 4] float32 of one cell, centred on the cell's corner, in pixels.

    An aspect ratio is height / width and keeps the area: size 32 and ratio 0.5 make a box 46 wide
    and 22 high. Ratio-major (all sizes of the first ratio come first), corners rounded half to
    even, as in torchvision's AnchorGenerator.
    """
    roots = [math.sqrt(ratio) for ratio in aspect_ratios]
    # In Python's own floats, so that no device or compiler rounds a corner the other way.
    halves = [(round(size / root / 2), round(size * root / 2)) for root in roots for size in sizes]
    return jnp.array([(-w, -h, w, h) for w, h in halves], jnp.float32)


def grid(base, shape, stride):
    """Returns the anchors [h * w * K, 4] of one feature map: base [K, 4] at every cell's corner.

    shape is (h, w) of the actual feature map, stride its nominal stride in pixels.
    """
    h, w = shape
    x = jnp.arange(w, dtype=jnp.float32) * stride
    y = jnp.arange(h, dtype=jnp.float32) * stride
    y, x = jnp.meshgrid(y, x, indexing='ij')
    corner = jnp.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (corner + jnp.asarray(base, jnp.float32)[None]).reshape(-1, 4)
