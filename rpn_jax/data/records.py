"""What every source of images gives: annotated records, and a function that reads their pixels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from rpn_jax.data import images
from rpn_jax.data.images import BadRecord

SLACK = 1.0  # pixels a box may reach outside and is clipped; further out is an error
CLIPPED = 'box up to 1 pixel outside its image, clipped'
FAR = "box more than 1 pixel outside its image, clipped by on_bad='clip'"
UNSIZED = 'annotation without a size, which is taken from the image'


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
    coco_id: int | str | None = None  # the image's id in its json file of COCO
    areas: np.ndarray | None = None  # [n] float64 as annotated; None: those of the boxes
    classes: tuple[str, ...] | None = None  # of each box, '' where unknown; None: there are none


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
    turned: Mapping[int, int] = MappingProxyType({})  # EXIF orientations that are applied


class Source(NamedTuple):
    """A split of a data set: its records, and read(position) -> uint8 [height, width, 3] RGB."""

    name: str
    records: Sequence[Record]
    read: Callable[[int], np.ndarray]
    files: Files | None = None  # None: the images are drawn
    problems: tuple[Problem, ...] = ()  # of the annotations
    notes: tuple[str, ...] = ()  # what was left out, and what is odd and harmless
    annotations: Sequence[Path] = ()  # COCO's json file, or a file of VOC or YOLO for each record
    categories: Mapping[int | str, str] = MappingProxyType({})  # a name for each id, if it has ids
    chosen: tuple[str, ...] = ()  # the categories of its objects where others were left out
    unfiltered: Sequence[Record] | None = None  # the records with the objects of all categories


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
        orientation = files.turned.get(position, 1)
        return images.decode(data, where, records[position].size, orientation)

    return read


def with_all_categories(source):
    """Returns the records of a Source with the objects of all categories, chosen or not."""
    return source.records if source.unfiltered is None else source.unfiltered


def select(source, positions):
    """Returns the source with only the records at these positions."""
    turned = source.files.turned if source.files else {}
    files = source.files and Files(
        [source.files.names[i] for i in positions],
        lambda i: source.files.load(positions[i]),
        lambda i: source.files.stamp(positions[i]),
        {i: turned[p] for i, p in enumerate(positions) if p in turned},
    )
    annotations = source.annotations
    if len(annotations) == len(source.records):
        annotations = [annotations[i] for i in positions]
    return source._replace(
        records=[source.records[i] for i in positions],
        unfiltered=source.unfiltered and [source.unfiltered[i] for i in positions],
        read=lambda i: source.read(positions[i]),
        files=files,
        problems=(),
        annotations=annotations,
    )


def record_of(image_id, size, boxes, kind, remarks=()):
    """Returns a Record of lists of boxes and kinds."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Record(image_id, tuple(size), boxes, np.asarray(kind, np.int32), tuple(remarks))


def without_boxes(image_id, size=(0, 0)):
    """Returns the Record of an image without annotations."""
    return record_of(image_id, size, [], [])


def clip_box(corners, size, on_bad='error'):
    """Returns the corners (x0, y0, x1, y1) of a box, clipped to an image of (height, width).

    Raises BadRecord, whose message names no box, where it is inverted or wholly outside, and,
    unless on_bad is 'clip', where it reaches out by more than SLACK pixels.
    """
    (x0, y0, x1, y1), (height, width) = corners, size
    if x1 <= x0 or y1 <= y0:
        raise BadRecord('box inverted', 'is inverted')
    clipped = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    where = f'lies outside the {width:g} x {height:g} image'
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise BadRecord('box outside its image', where)
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    if beyond > SLACK and on_bad != 'clip':
        what = f"{where} by {beyond:g} pixels (on_bad='clip' clips it)"
        raise BadRecord('box outside its image', what)
    return clipped


def clipped_remark(box, given):
    """Returns a list of the remark that a box was clipped, empty where it is as it was given."""
    if tuple(box) == tuple(given):
        return []
    beyond = max(abs(a - b) for a, b in zip(box, given, strict=True))
    return [FAR if beyond > SLACK else CLIPPED]


def inside_folder(name, *, nested=False):
    """Returns whether a name from a file stays in the folder that it is looked up in."""
    steps = Path(name).parts
    is_plain = steps and '..' not in steps and not {'\\', '\0'} & set(name)
    return bool(is_plain) and not name.startswith('/') and (nested or len(steps) == 1)
