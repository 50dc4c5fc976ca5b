"""COCO folders: annotations/instances_SPLIT.json and the images of SPLIT/."""

import collections
import contextlib
import math
import os
from collections.abc import Hashable
from pathlib import Path

import numpy as np

from rpn_jax import files
from rpn_jax.data import images as image_files
from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import (
    UNSIZED,
    Kind,
    Problem,
    clip_box,
    clipped_remark,
    from_paths,
    inside_folder,
    record_of,
)
from rpn_jax.data.sources import LONGEST, naming
from rpn_jax.errors import InputError

EMPTY = 'box without width or height, left out'
UNSAID = 'annotation without iscrowd, taken as 0'
TO_IGNORE = 'annotation with "ignore": 1, which is an object here as in COCOeval'
AREALESS = 'annotation without an area, that of its box is taken'
UNLISTED = 'annotation of an unlisted image'
MOST_AREA = 2.0**64  # square pixels of an annotation
NOT_A_NUMBER = 'annotation with what is not a number'


def coco(split, *, path, images='', annotations='', on_bad='error'):
    """Opens a split: the images of annotations/instances_{split}.json, in the file's order.

    `images` is the folder of the pictures where they lie elsewhere, `annotations` that of the json
    files, or the file itself; {split}/_annotations.coco.json is another place for it. Boxes (x, y,
    width, height) become corners; boxes without width or height are left out and counted;
    on_bad='clip' clips what reaches out of its image. Annotations that would train wrongly are the
    source's problems. Raises InputError, with the file, where there is no split.
    """
    folder = Path(path)
    pictures = Path(images or folder / split)
    labels = Path(annotations or folder / 'annotations')
    if labels.suffix != '.json':
        labels = labels / f'instances_{split}.json'
    if not labels.is_file() and (beside := folder / split / '_annotations.coco.json').is_file():
        labels = beside if not annotations else labels
    if not labels.is_file():
        raise InputError(
            f'{labels}: no such file; path is a folder that holds annotations/instances_SPLIT.json '
            'or SPLIT/_annotations.coco.json, or annotations is that file'
        )
    if not pictures.is_dir():
        raise InputError(f'{pictures}: no such folder; images is the folder of the pictures')
    records, problems, categories = parse(labels, pictures, on_bad)
    paths = [pictures / record.image_id for record in records]
    source = from_paths(f'coco {folder.name} {split}', records, paths, problems)
    return source._replace(annotations=(labels,), categories=categories)


def parse(path, pictures='', on_bad='error'):
    """Reads an instances json into (records, problems, {category id: its name}).

    A record's image_id is the name of its file below the folder `pictures`, its coco_id the id in
    the json. Sizes that are missing or 0 are those of the files. Raises InputError where the json
    as a whole, or an image's id or name, cannot be used, or it is not known of which image an
    annotation is: its image would become background.
    """
    content = read(path)
    rows, class_of, problems = {}, _classes(content), []
    for position, entry in enumerate(content['images']):
        with _entry(path, 'image', position, entry):
            if (coco_id := _id(entry, 'id')) in rows:
                raise InputError('is there twice: two images of one id')
            rows[coco_id] = row = _Row(position, _file_name(entry, Path(pictures)))
        try:
            with naming(f'{path}: image {coco_id} '):
                row.size = _size(entry) or _size_of(Path(pictures) / row.name, row)
        except BadRecord as error:
            problems.append(Problem(error.kind, str(error), position))
    for number, annotation in enumerate(content['annotations']):
        with _entry(path, 'annotation', number, annotation):
            coco_id = _id(annotation, 'image_id')
        row = rows.get(coco_id)
        try:
            with naming(f'{path}: annotation {annotation.get("id", f"number {number}")} '):
                if row is None:
                    what = f'is of image {coco_id!r:.40}, which the file does not list'
                    raise BadRecord(UNLISTED, what)
                if row.size is not None:
                    row.add(annotation, class_of, on_bad)
        except BadRecord as error:
            problems.append(Problem(error.kind, str(error), row.position if row else -1))
    return [row.record(coco_id) for coco_id, row in rows.items()], problems, class_of


def class_name(category, class_of):
    """Returns the name of a category's id, of {category id: name}; '' where that is unknown."""
    return class_of.get(category, '') if isinstance(category, Hashable) else ''


def entries(source):
    """Returns the content of a Source's json, with the annotations of chosen categories only."""
    content, names = read(source.annotations[0]), source.categories
    if source.chosen:
        content['annotations'] = [
            each
            for each in content['annotations']
            if class_name(each.get('category_id'), names) in source.chosen
        ]
        # Results have the first category: it is one of the chosen.
        known = [e for e in content['categories'] if isinstance(e, dict)]
        known.sort(key=lambda e: class_name(e.get('id'), names) not in source.chosen)
        content['categories'] = known
    return content


def read(path):
    """Returns the content of an instances json, which has images; raises InputError without any."""
    try:
        content = files.read_json(path, files.MOST_ROWS, object_pairs_hook=_dict)
        lists = content['images'], content['annotations']
        if not all(isinstance(each, list) for each in lists):
            raise TypeError('images and annotations are lists')
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{path}: not a COCO file of images and annotations ({reason})') from error
    if not content['images']:
        raise InputError(f'{path}: no images; the split cannot be used')
    return content


def _dict(pairs):
    """Makes a dict of a json object; raises ValueError where one of its keys stands twice."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        where = f'the object of id {entry["id"]!r}' if 'id' in entry else 'an object'
        raise ValueError(f'{where} has the key {counts.most_common(1)[0][0]!r} twice')
    return entry


@contextlib.contextmanager
def _entry(path, kind, number, entry):
    """Names the entry in the errors that make the whole file unusable."""
    try:
        if not isinstance(entry, dict):
            raise InputError('is no json object')
        yield
    except InputError as error:
        name = (
            entry.get('id', f'number {number}') if isinstance(entry, dict) else f'number {number}'
        )
        raise InputError(f'{path}: {kind} {name} {error}; the split cannot be used') from error


def _id(entry, key):
    """Returns an id as it is in the file, a whole number or a string."""
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f'has {key} = {value!r:.40}, neither a whole number nor a string')
    return value


class _Row:
    """What is read of one image."""

    def __init__(self, position, name):
        self.position, self.name, self.size = position, name, None
        self.boxes, self.kinds, self.areas, self.classes, self.remarks = [], [], [], [], []

    def add(self, annotation, class_of, on_bad):
        """Adds the box of an annotation, if it has one; class_of is {category id: name}."""
        box, given, kind = _object(annotation, self.size, on_bad)
        if box is None:
            self.remarks.append(EMPTY)
            return
        area = annotation.get('area')
        has_area = type(area) in (int, float) and 0 <= area <= MOST_AREA
        self.remarks += [] if has_area else [AREALESS]
        self.remarks += [UNSAID] if annotation.get('iscrowd') is None else []
        self.remarks += [TO_IGNORE] if annotation.get('ignore') else []
        self.remarks += clipped_remark(box, given)
        self.boxes.append(box)
        self.kinds.append(kind)
        self.areas.append(area if has_area else (given[2] - given[0]) * (given[3] - given[1]))
        self.classes.append(class_name(annotation.get('category_id'), class_of))

    def record(self, coco_id):
        own = self.name, self.size or (0, 0), self.boxes, self.kinds, self.remarks
        areas, classes = np.array(self.areas, np.float64), tuple(self.classes)
        return record_of(*own)._replace(coco_id=coco_id, areas=areas, classes=classes)


def _file_name(entry, pictures):
    """Returns the name of an image's file below the folder of the pictures."""
    name = entry.get('file_name')
    if not isinstance(name, str) or not name:
        raise InputError('has no file_name')
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise InputError(f'has file_name {name!r:.40}, which can be that of no file') from error
    inside = name if '\\' in name and os.path.isfile(pictures / name) else name.replace('\\', '/')
    with contextlib.suppress(ValueError):
        inside = Path(inside).relative_to(pictures.absolute()).as_posix()
    if not inside_folder(inside.replace('\\', '_'), nested=True):
        raise InputError(f'has file_name {name!r}, which leads out of the folder')
    return inside


def _size(entry):
    """Returns the (height, width) of an image, None where it has none."""
    sides = [entry.get(side) for side in ('height', 'width')]
    if any(side in (None, 0, '') for side in sides):
        return None
    try:
        size = tuple(map(int, sides))
        is_whole = size == tuple(map(float, sides)) and not any(type(s) is bool for s in sides)
    except (TypeError, ValueError, OverflowError):
        is_whole = False
    if not is_whole or not 1 <= min(size) <= max(size) <= LONGEST:
        what = f'has height {sides[0]!r:.40} and width {sides[1]!r:.40}, not 1 to {LONGEST} pixels'
        raise BadRecord('annotation without a size', what)
    return size


def _size_of(file, row):
    row.remarks.append(UNSIZED)
    return image_files.declared_size(file)


def _classes(content):
    """Returns {category id: name}, the id for a name that is missing; damaged ones are left out."""
    classes, listed = {}, content.get('categories')
    for entry in listed if isinstance(listed, list) else ():
        with contextlib.suppress(InputError, AttributeError):  # it has no id, or is no json object
            number = _id(entry, 'id')
            classes[number] = str(entry.get('name') or number).strip()
    return classes


def _object(annotation, size, on_bad):
    """Returns a box, or None where it is empty, the same as it was given, and its Kind."""
    corners = annotation.get('bbox')
    try:
        if not isinstance(corners, list) or {*map(type, corners)} - {int, float}:
            raise TypeError  # strings, say, which pycocotools would put one behind the other
        x, y, width, height = map(float, corners)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRecord('object without a box', 'has no bbox of four numbers') from error
    crowd = annotation.get('iscrowd')
    crowd = 0 if crowd is None else crowd
    if crowd not in (0, 1):
        what = f'has iscrowd = {crowd!r}, which is neither 0 nor 1'
        raise BadRecord(NOT_A_NUMBER, what)
    shown = f'[{x:g}, {y:g}, {width:g}, {height:g}]'
    if not all(map(math.isfinite, (x, y, width, height))):
        what = f'has a bbox that is not finite: {shown}'
        raise BadRecord(NOT_A_NUMBER, what)
    given = x, y, x + width, y + height
    with naming('', f': bbox {shown}'):
        box = clip_box(given, size, on_bad) if width and height else None
    return box, given, Kind.CROWD if crowd else Kind.OBJECT
