"""COCO folders: annotations/instances_SPLIT.json and the images of SPLIT/."""

import json
import math
from pathlib import Path

from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import (
    CLIPPED,
    Kind,
    Problem,
    clip_box,
    from_paths,
    inside_folder,
    record_of,
)
from rpn_jax.errors import InputError

LONGEST = 10**6  # pixels of a side
EMPTY = 'box without width or height, left out'


def coco(split, *, path, images='', annotations=''):
    """Opens a split: the images of annotations/instances_{split}.json, in the file's order.

    `images` is the folder of the pictures where they lie elsewhere, `annotations` that of the json
    files, or the file itself. Boxes (x, y, width, height) become corners; boxes without width or
    height are left out and counted. Annotations that would train wrongly are the source's problems.
    Raises InputError, with the file, where there is no split.
    """
    folder = Path(path)
    pictures = Path(images) if images else folder / split
    labels = Path(annotations) if annotations else folder / 'annotations'
    if labels.suffix != '.json':
        labels = labels / f'instances_{split}.json'
    if not labels.is_file():
        raise InputError(
            f'{labels}: no such file; path is a folder that holds annotations/'
            'instances_SPLIT.json, or annotations is that file'
        )
    if not pictures.is_dir():
        raise InputError(f'{pictures}: no such folder; images is the folder of the pictures')
    records, problems = parse(labels)
    paths = [pictures / record.image_id for record in records]
    return from_paths(f'coco {folder.name} {split}', records, paths, problems)


def parse(path):
    """Reads an instances json into (records, problems).

    A record's image_id is its file name. Raises InputError where the file as a whole, or an image's
    name or size, cannot be used.
    """
    try:
        content = json.loads(Path(path).read_text('utf-8'))
        entries = {int(entry['id']): entry for entry in content['images']}
        annotations = [*content['annotations']]
        doubled = len(entries) != len(content['images'])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: not a COCO file of images and annotations ({reason})') from error
    if not entries or doubled:
        what = 'two images of one id' if doubled else 'no images'
        raise InputError(f'{path}: {what}; the split cannot be used')
    sizes = {key: _size(path, entry) for key, entry in entries.items()}
    names = {key: _file_name(path, entry) for key, entry in entries.items()}
    positions = {key: position for position, key in enumerate(entries)}
    boxes, kind, remarks = ([[] for _ in entries] for _ in range(3))
    problems = []
    for number, annotation in enumerate(annotations):
        position = -1
        try:
            key = _image_id(path, number, annotation, sizes)
            position = positions[key]
            box, given, is_crowd = _annotation(path, number, annotation, sizes[key])
        except BadRecord as error:
            problems.append(Problem(error.kind, str(error), position))
            continue
        if box is None:
            remarks[position].append(EMPTY)
            continue
        remarks[position] += [CLIPPED] if box != given else []
        boxes[position].append(box)
        kind[position].append(Kind.CROWD if is_crowd else Kind.OBJECT)
    rows = zip(names.values(), sizes.values(), boxes, kind, remarks, strict=True)
    return [record_of(*row) for row in rows], problems


def _image_id(path, number, annotation, sizes):
    try:
        key = _whole(annotation['image_id'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f'{path}: annotation number {number} has no image_id that is a whole number'
        raise BadRecord('annotation of an unlisted image', what) from error
    if key not in sizes:
        where = f'annotation {annotation.get("id", f"number {number}")}'
        what = f'{path}: {where} is of image {key}, which the file does not list'
        raise BadRecord('annotation of an unlisted image', what)
    return key


def _whole(value):
    """Returns a whole number, also from a string of digits; raises ValueError for other numbers."""
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def _annotation(path, number, annotation, size):
    """Returns (box or None where it is empty, box as given, whether it is a crowd)."""
    where = f'annotation {annotation.get("id", f"number {number}")}'
    corners = annotation.get('bbox')
    try:
        x, y, width, height = map(float, corners if isinstance(corners, list) else ())
    except (TypeError, ValueError, OverflowError) as error:
        what = f'{path}: {where} has no bbox of four numbers'
        raise BadRecord('object without a box', what) from error
    crowd = annotation.get('iscrowd', 0)
    if crowd not in (0, 1):
        what = f'{path}: {where} has iscrowd = {crowd!r}, which is neither 0 nor 1'
        raise BadRecord('annotation with what is not a number', what)
    shown = f'[{x:g}, {y:g}, {width:g}, {height:g}]'
    if not all(map(math.isfinite, (x, y, width, height))):
        what = f'{path}: {where} has a bbox that is not finite: {shown}'
        raise BadRecord('annotation with what is not a number', what)
    if width == 0 or height == 0:
        return None, None, crowd == 1
    given = x, y, x + width, y + height
    try:
        return clip_box(given, size), given, crowd == 1
    except BadRecord as error:
        raise BadRecord(error.kind, f'{path}: {where} {error}: bbox {shown}') from error


def _size(path, entry):
    try:
        height, width = int(entry['height']), int(entry['width'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f'{path}: image {entry["id"]} has no height and width') from error
    if not 1 <= min(height, width) <= max(height, width) <= LONGEST:
        bounds = f'1 x 1 to {LONGEST} x {LONGEST}'
        raise InputError(f'{path}: image {entry["id"]} does not have {bounds} pixels')
    return height, width


def _file_name(path, entry):
    name = entry.get('file_name')
    if not isinstance(name, str) or not inside_folder(name, nested=True):
        raise InputError(f'{path}: image {entry["id"]}: file_name {name!r} leads out of the folder')
    return name
