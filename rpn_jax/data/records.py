"""What every source of images looks like: annotated records, and a function to read pixels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

OBJECT, DIFFICULT, CROWD = 1, 2, 3  # kinds of boxes; 0 is padding
SLACK = 1.0  # pixels a box may reach outside and is clipped; further out is an error


class Record(NamedTuple):
    """One annotated image, before any resize."""

    image_id: str
    size: tuple[int, int]  # height, width
    boxes: np.ndarray  # [n, 4] float32 (x0, y0, x1, y1), pixels of the original image, half open
    kind: np.ndarray  # [n] int32: 1 object, 2 difficult, 3 crowd


class Source(NamedTuple):
    """A split of a data set: all its records; read(position) gives uint8 [height, width, 3] RGB."""

    name: str
    records: Sequence[Record]
    read: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()  # what was left out or mended


def inside(corners, size):
    """Returns the corners (x0, y0, x1, y1) of a box, clipped to an image of (height, width).

    Raises ValueError where the box is inverted or reaches out by more than SLACK pixels.
    """
    (x0, y0, x1, y1), (height, width) = corners, size
    if x1 <= x0 or y1 <= y0:
        raise ValueError('is inverted')
    clipped = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    is_empty = clipped[0] >= clipped[2] or clipped[1] >= clipped[3]
    if is_empty or min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        raise ValueError(f'lies outside the {width:g} x {height:g} image')
    return clipped
