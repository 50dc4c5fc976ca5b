"""A VOCdevkit/VOCxxxx folder of one's own: JPEGImages, Annotations, and lists in ImageSets/Main."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import (
    CLIPPED,
    DIFFICULT,
    OBJECT,
    Problem,
    Record,
    from_paths,
    inside,
    inside_folder,
    without_boxes,
)
from rpn_jax.errors import InputError

LONGEST = 10**6  # pixels of a side
MISSPELT = ('object', 'objects')
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')


def voc(split, *, path, images='', annotations=''):
    """Opens a split: the images listed in ImageSets/Main/{split}.txt, or all of Annotations for ''.

    `images` and `annotations` override where the pictures and the XML files lie. Difficult objects
    are of kind 2; VOC's 1-based inclusive corners become half open (x0 and y0 lose 1). What would
    train wrongly becomes a problem of the source. Raises InputError where there is no split.
    """
    folder = Path(path)
    pictures = Path(images) if images else folder / 'JPEGImages'
    labels = Path(annotations) if annotations else folder / 'Annotations'
    for key, place in (
        ('path', folder),
        ('images' if images else 'path', pictures),
        ('annotations' if annotations else 'path', labels),
    ):
        if not place.is_dir():
            raise InputError(
                f'config key data.{key}: no folder {place}; it needs a VOCdevkit/VOCxxxx folder'
            )
    ids = _image_ids(folder, labels, split)
    records, problems = [], []
    for position, image_id in enumerate(ids):
        try:
            records.append(parse(labels / f'{image_id}.xml', image_id))
        except BadRecord as error:
            records.append(without_boxes(image_id))
            problems.append(Problem(error.kind, str(error), position))
    paths = [_find(pictures, image_id) for image_id in ids]
    return from_paths(f'voc {folder.name} {split or "all"}', records, paths, problems)


def parse(path, image_id):
    """Reads one VOC annotation into a Record; raises BadRecord naming the file and the object."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError('not a file')  # a pipe would be waited for, for ever
        text = Path(path).read_bytes()
        declares = b'<!DOCTYPE' in text or b'<!ENTITY' in text
        root = None if declares else ElementTree.fromstring(text)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        what = f'{path}: not a readable XML file ({error}); mend it or take {image_id} off the list'
        raise BadRecord('annotation unreadable', what) from error
    if declares:
        what = f'{path}: declares a DOCTYPE or entities, which no VOC annotation needs'
        raise BadRecord('annotation unreadable', what)
    size = root.find('size')
    if size is None:
        what = f'{path}: no <size>; add the width and height of the image'
        if any(child.tag.lower().rpartition('}')[2] == 'size' for child in root):
            what = f'{path}: no <size>; names are in lower case, and without a namespace'
        raise BadRecord('annotation without a size', what)
    height, width = (_number(path, size, side, '<size>') for side in ('height', 'width'))
    if min(height, width) < 1:
        what = f'{path}: <size> is {width:g} x {height:g}; it needs at least 1 x 1 pixels'
        raise BadRecord('annotation without a size', what)
    if max(height, width) > LONGEST:
        what = f'{path}: <size> says {width:g} x {height:g} pixels'
        raise BadRecord('annotation without a size', what)
    if strange := [c.tag for c in root if c.tag != 'object' and c.tag.lower() in MISSPELT]:
        what = f'{path}: objects are in <object> of <annotation>, not in <{strange[0]}>'
        raise BadRecord('annotation unreadable', what)
    boxes, kind, remarks = [], [], []
    for number, item in enumerate(root.findall('object')):
        box, given = _box(path, item, number, width, height)
        boxes.append(box)
        remarks += [CLIPPED] if box != given else []
        said = (item.findtext('difficult') or '0').strip().lower()
        kind.append(DIFFICULT if said in ('1', 'true') else OBJECT)
    return Record(
        image_id=image_id,
        size=(int(height), int(width)),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        kind=np.asarray(kind, np.int32),
        remarks=tuple(remarks),
    )


def _image_ids(folder, labels, split):
    if not split:
        ids = sorted(p.stem for p in labels.glob('*.xml') if not p.name.startswith('.'))
        where = labels
    else:
        where = folder / 'ImageSets' / 'Main' / f'{split}.txt'
        if not where.is_file():
            lists = ', '.join(sorted(path.stem for path in where.parent.glob('*.txt'))[:10])
            raise InputError(
                f'config keys data.train_split and data.eval_split: no list {where}; there are: '
                f"{lists or 'none'}; '' takes every annotation"
            )
        text = where.read_text('utf-8-sig', errors='replace')
        ids = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not ids:
        raise InputError(f'{where}: the split is empty')
    for image_id in ids:
        if not inside_folder(image_id) or image_id.startswith('.'):
            what = f'{where}: image id {image_id!r} would leave the folder, or lies deeper in it'
            raise InputError(f'{what}; an id is the name of a file of Annotations')
    return ids


def _find(pictures, image_id):
    for extension in EXTENSIONS:
        if (path := pictures / f'{image_id}{extension}').is_file():
            return path
    return pictures / f'{image_id}.jpg'


def _number(path, parent, name, where):
    text = parent.findtext(name)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        what = f'{path}: {where} has {name} = {text!r}, which is not a number'
        raise BadRecord('annotation with what is not a number', what)
    return value


def _box(path, item, number, width, height):
    name = (item.findtext('name') or '').strip()
    where = f'object {number} ({name})'
    corners = item.find('bndbox')
    if corners is None:
        raise BadRecord('object without a box', f'{path}: {where} has no <bndbox>')
    x0, y0, x1, y1 = (_number(path, corners, k, where) for k in ('xmin', 'ymin', 'xmax', 'ymax'))
    given = x0 - 1, y0 - 1, x1, y1
    try:
        return inside(given, (height, width)), given
    except BadRecord as error:
        shown = f'({x0:g}, {y0:g}, {x1:g}, {y1:g})'
        raise BadRecord(error.kind, f'{path}: {where} {error}: {shown}') from error
