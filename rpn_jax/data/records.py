"""What every source of images looks like: annotated records, and a function to read pixels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

OBJECT, DIFFICULT, CROWD = 1, 2, 3  # kinds of boxes; 0 is padding


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
