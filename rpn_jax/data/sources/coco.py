"""COCO folders: annotations/instances_SPLIT.json and the images of SPLIT/."""

import collections
import contextlib
import json
import math
from collections.abc import Hashable
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
from rpn_jax.data.sources import LONGEST, naming
from rpn_jax.errors import InputError

EMPTY = 'box without width or height, left out'


def coco(split, *, path, images='', annotations=''):
    """Opens a split: the images of annotations/instances_{split}.json, in the file's order.

    `images` is the folder of the pictures where they lie elsewhere, `annotations` that of the json
    files, or the file itself. Boxes (x, y, width, height) become corners; boxes without width or
    height are left out and counted. Annotations that would train wrongly are the source's problems.
    Raises InputError, with the file, where there is no split.
    """
    folder = Path(path)
    pictures = Path(images or folder / split)
    labels = Path(annotations or folder / 'annotations')
    if labels.suffix != '.json':
        labels = labels / f'instances_{split}.json'
    if not labels.is_file():
        raise InputError(
            f'{labels}: no such file; path is a folder that holds annotations/'
            'instances_SPLIT.json, or annotations is that file'
        )
    if not pictures.is_dir():
        raise InputError(f'{pictures}: no such folder; images is the folder of the pictures')
    records, problems, _ = parse(labels)
    paths = [pictures / record.image_id for record in records]
    return from_paths(f'coco {folder.name} {split}', records, paths, problems)


def parse(path):
    """Reads an instances json into (records, problems, {image_id: the classes of its boxes}).

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
    rows = [(*_image(path, entry), [], [], []) for entry in entries.values()]
    positions = {key: position for position, key in enumerate(entries)}
    class_of, classes, problems = _classes(content), collections.defaultdict(list), []
    for number, annotation in enumerate(annotations):
        position, name = -1, f'number {number}'
        if isinstance(annotation, dict):
            name = annotation.get('id', name)
        try:
            with naming(f'{path}: annotation {name} '):
                position = _position(annotation, positions)
                image_id, size, boxes, kinds, remarks = rows[position]
                box, given, kind = _object(annotation, size)
        except BadRecord as error:
            problems.append(Problem(error.kind, str(error), position))
            continue
        if box:
            boxes.append(box)
            kinds.append(kind)
            category = annotation.get('category_id')
            is_known = isinstance(category, Hashable) and category in class_of
            classes[image_id].append(class_of[category] if is_known else '')
        if box != given:
            remarks.append(CLIPPED if box else EMPTY)
    return [record_of(*row) for row in rows], problems, classes


def _image(path, entry):
    """Returns the name of an image's file and its (height, width)."""
    where = f'{path}: image {entry["id"]}'
    try:
        height, width = int(entry['height']), int(entry['width'])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f'{where} has no height and width') from error
    if not 1 <= min(height, width) <= max(height, width) <= LONGEST:
        raise InputError(f'{where} does not have 1 x 1 to {LONGEST} x {LONGEST} pixels')
    name = entry.get('file_name')
    if not isinstance(name, str) or not inside_folder(name, nested=True):
        raise InputError(f'{where}: file_name {name!r} leads out of the folder')
    return name, (height, width)


def _classes(content):
    """Returns {category id: name}, none where they are damaged: nothing is trained on them."""
    with contextlib.suppress(KeyError, TypeError):
        return {entry['id']: str(entry['name']) for entry in content['categories']}
    return {}


def _position(annotation, positions):
    """Returns the position of an annotation's image; its id may be a string of digits."""
    try:
        key = int(annotation['image_id'])
        if isinstance(annotation['image_id'], bool) or key != float(annotation['image_id']):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = 'has no image_id that is a whole number'
        raise BadRecord('annotation of an unlisted image', what) from error
    if key not in positions:
        what = f'is of image {key}, which the file does not list'
        raise BadRecord('annotation of an unlisted image', what)
    return positions[key]


def _object(annotation, size):
    """Returns a box, or None where it is empty, the same as it was given, and its Kind."""
    corners = annotation.get('bbox')
    try:
        x, y, width, height = map(float, corners if isinstance(corners, list) else ())
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRecord('object without a box', 'has no bbox of four numbers') from error
    crowd = annotation.get('iscrowd', 0)
    if crowd not in (0, 1):
        what = f'has iscrowd = {crowd!r}, which is neither 0 nor 1'
        raise BadRecord('annotation with what is not a number', what)
    shown = f'[{x:g}, {y:g}, {width:g}, {height:g}]'
    if not all(map(math.isfinite, (x, y, width, height))):
        what = f'has a bbox that is not finite: {shown}'
        raise BadRecord('annotation with what is not a number', what)
    given = x, y, x + width, y + height
    with naming('', f': bbox {shown}'):
        box = clip_box(given, size) if width and height else None
    return box, given, Kind.CROWD if crowd else Kind.OBJECT
