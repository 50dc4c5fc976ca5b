"""A COCO folder of one's own: annotations/instances_SPLIT.json and the images of SPLIT/."""

import json
import math
from pathlib import Path, PurePosixPath

import numpy as np

from rpn_jax.data.images import decode
from rpn_jax.data.records import CROWD, OBJECT, Record, Source, inside
from rpn_jax.errors import InputError


def coco(split, *, path, images='', annotations=''):
    """Opens a split: the images of annotations/instances_{split}.json, in the file's order.

    `images` overrides where the pictures lie, `annotations` the folder of the json files, or the
    file itself. Boxes (x, y, width, height) become corners; iscrowd is of kind 3; boxes without
    width or height are left out and counted. Raises InputError, with the file, for whatever could
    not be trained on.
    """
    folder = Path(path)
    pictures = Path(images) if images else folder / split
    labels = Path(annotations) if annotations else folder / 'annotations'
    if labels.suffix != '.json':
        labels = labels / f'instances_{split}.json'
    if not labels.is_file():
        raise InputError(
            f'{labels}: no such file; config key data.path is a folder that holds '
            'annotations/instances_SPLIT.json, data.annotations that file'
        )
    if not pictures.is_dir():
        raise InputError(f'{pictures}: no such folder; config key data.images names the pictures')
    records, empty = parse(labels)
    files = [pictures / record.image_id for record in records]
    for file in files:
        if not file.is_file():
            raise InputError(f'{file}: no such image; fetch it or take it out of {labels}')
    notes = (f'{labels}: {empty} boxes without width or height left out',) if empty else ()

    def read(position):
        return decode(files[position], records[position].size)

    return Source(f'coco {folder.name} {split}', records, read, notes)


def parse(path):
    """Reads an instances json into (records, number of empty boxes left out).

    A record's image_id is its file name. Raises InputError naming the file and the entry.
    """
    try:
        content = json.loads(Path(path).read_text('utf-8'))
        entries = {int(entry['id']): entry for entry in content['images']}
        annotations = content['annotations']
        doubled = len(entries) != len(content['images'])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: not a COCO file of images and annotations ({reason})') from error
    if not entries or doubled:
        what = 'two images of one id' if doubled else 'no images'
        raise InputError(f'{path}: {what}; the split cannot be used')
    sizes = {key: _size(path, entry) for key, entry in entries.items()}
    boxes, kind, empty = {key: [] for key in entries}, {key: [] for key in entries}, 0
    for number, annotation in enumerate(annotations):
        key, box, is_crowd = _annotation(path, number, annotation, sizes)
        if box is None:
            empty += 1
            continue
        boxes[key].append(box)
        kind[key].append(CROWD if is_crowd else OBJECT)
    records = [
        Record(
            image_id=_file_name(path, entry),
            size=sizes[key],
            boxes=np.asarray(boxes[key], np.float32).reshape(-1, 4),
            kind=np.asarray(kind[key], np.int32),
        )
        for key, entry in entries.items()
    ]
    return records, empty


def _annotation(path, number, annotation, sizes):
    """Returns (image, box or None where it is empty, whether it is a crowd)."""
    try:
        where = f'annotation {annotation.get("id", f"number {number}")}'
        key, corners = int(annotation['image_id']), annotation['bbox']
        x, y, width, height = (float(value) for value in corners)
        is_crowd = bool(int(annotation.get('iscrowd', 0)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'{path}: annotation number {number} has no image_id or no bbox of four numbers'
        ) from error
    if key not in sizes:
        raise InputError(f'{path}: {where} is of image {key}, which the file does not list')
    shown = f'[{x:g}, {y:g}, {width:g}, {height:g}]'
    if not all(map(math.isfinite, (x, y, width, height))):
        raise InputError(f'{path}: {where} has a bbox that is not finite: {shown}')
    if width == 0 or height == 0:
        return key, None, is_crowd
    try:
        return key, inside((x, y, x + width, y + height), sizes[key]), is_crowd
    except ValueError as error:
        raise InputError(f'{path}: {where} {error}: bbox {shown}') from error


def _size(path, entry):
    try:
        height, width = int(entry['height']), int(entry['width'])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'{path}: image {entry["id"]} has no height and width') from error
    if min(height, width) < 1:
        raise InputError(f'{path}: image {entry["id"]} is {width} x {height} pixels')
    return height, width


def _file_name(path, entry):
    name = entry.get('file_name')
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or parts[0].startswith('/') or '..' in parts or '\\' in name or '\0' in name:
        raise InputError(f'{path}: image {entry["id"]}: file_name {name!r} leads out of the folder')
    return name
