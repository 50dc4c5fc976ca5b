"""What every source of images gives: annotated records, and a function that reads their pixels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rpn_jax.data import images
from rpn_jax.data.images import BadRecord

SLACK = 1.0  # pixels a box may reach outside and is clipped; further out is an error
CLIPPED = 'box up to 1 pixel outside its image, clipped'


class Kind:
    """The codes of what a row of the ground truth is."""

    PADDING, OBJECT, DIFFICULT, CROWD = range(4)  # difficult as in VOC, crowd as in COCO


OBJECT, DIFFICULT, CROWD = Kind.OBJECT, Kind.DIFFICULT, Kind.CROWD  # the same, in short


class Record(NamedTuple):
    """One annotated image, before any resize."""

    image_id: str
    size: tuple[int, int]  # height, width; (0, 0) where only the image file knows
    boxes: np.ndarray  # [n, 4] float32 (x0, y0, x1, y1), pixels of the original image, half open
    kind: np.ndarray  # [n] int32, codes of Kind
    remarks: tuple[str, ...] = ()  # what is odd and harmless, once per occurrence


class Problem(NamedTuple):
    """Why an image cannot be trained on."""

    kind: str  # a few words, to count by
    message: str  # what is wrong, and in which file
    position: int = -1  # of the record; -1 where it belongs to none


class Files(NamedTuple):
    """The image files of a source's records, by position."""

    names: Sequence[str]  # for messages
    load: Callable[[int], bytes]  # the bytes of the file; raises BadRecord
    stamp: Callable[[int], str]  # another one where the file may have changed; '' if it is gone


class Source(NamedTuple):
    """A split of a data set: its records, and read(position) -> uint8 [height, width, 3] RGB."""

    name: str
    records: Sequence[Record]
    read: Callable[[int], np.ndarray]
    files: Files | None = None  # None: the images are drawn
    problems: tuple[Problem, ...] = ()  # of the annotations
    notes: tuple[str, ...] = ()  # what was left out, and what is odd and harmless


def from_paths(name, records, paths, problems=()):
    """Returns the Source of records whose images are the files at paths, one each."""

    def stamp(position):
        try:
            status = paths[position].stat()
        except OSError:
            return ''
        return f'{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}'

    files = Files([str(path) for path in paths], lambda i: images.load(paths[i]), stamp)
    return Source(name, records, reader(records, files), files, tuple(problems))


def reader(records, files):
    """Returns the function read(position) that decodes files and checks their sizes."""

    def read(position):
        data, where = files.load(position), files.names[position]
        return images.decode(data, where, records[position].size)

    return read


def select(source, positions):
    """Returns the source with only the records at these positions."""
    files = source.files and Files(
        [source.files.names[i] for i in positions],
        lambda i: source.files.load(positions[i]),
        lambda i: source.files.stamp(positions[i]),
    )
    records = [source.records[i] for i in positions]
    return source._replace(
        records=records, read=lambda i: source.read(positions[i]), files=files, problems=()
    )


def record_of(image_id, size, boxes, kind, remarks=()):
    """Returns a Record of lists of boxes and kinds."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Record(image_id, tuple(size), boxes, np.asarray(kind, np.int32), tuple(remarks))


def without_boxes(image_id, size=(0, 0)):
    """Returns the Record of an image without annotations."""
    return record_of(image_id, size, [], [])


def clip_box(corners, size):
    """Returns the corners (x0, y0, x1, y1) of a box, clipped to an image of (height, width).

    Raises BadRecord, whose message names no box, where it is inverted or reaches out by more than
    SLACK pixels.
    """
    (x0, y0, x1, y1), (height, width) = corners, size
    if x1 <= x0 or y1 <= y0:
        raise BadRecord('box inverted', 'is inverted')
    clipped = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    is_empty = clipped[0] >= clipped[2] or clipped[1] >= clipped[3]
    if is_empty or min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        where = f'lies outside the {width:g} x {height:g} image'
        raise BadRecord('box outside its image', where)
    return clipped


def inside_folder(name, *, nested=False):
    """Returns whether a name from a file stays in the folder that it is looked up in."""
    steps = Path(name).parts
    is_plain = steps and '..' not in steps and not {'\\', '\0'} & set(name)
    return bool(is_plain) and not name.startswith('/') and (nested or len(steps) == 1)
