"""A VOCdevkit/VOCxxxx folder of one's own: JPEGImages, Annotations, and lists in ImageSets/Main."""

import math
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from rpn_jax.data.records import DIFFICULT, OBJECT, Record, Source
from rpn_jax.errors import InputError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')
SLACK = 1.0  # pixels a box may reach outside and is clipped; further out is an error


def voc(split, *, path, images='', annotations=''):
    """Opens a split: the images listed in ImageSets/Main/{split}.txt, or all of Annotations for ''.

    `images` and `annotations` override where the pictures and the XML files lie. Difficult objects
    are of kind 2; VOC's 1-based inclusive corners become half open (x0 and y0 lose 1). Raises
    InputError, with the file, for whatever could not be trained on.
    """
    folder = Path(path)
    pictures = Path(images) if images else folder / 'JPEGImages'
    labels = Path(annotations) if annotations else folder / 'Annotations'
    for key, place in (('path', folder), ('images', pictures), ('annotations', labels)):
        if not place.is_dir():
            raise InputError(
                f'config key data.{key}: no folder {place}; it needs a VOCdevkit/VOCxxxx folder'
            )
    ids = _image_ids(folder, labels, split)
    records = [parse(labels / f'{image_id}.xml', image_id) for image_id in ids]
    files = [_find(pictures, image_id) for image_id in ids]

    def read(position):
        return decode(files[position], records[position].size)

    return Source(f'voc {folder.name} {split or "all"}', records, read)


def parse(path, image_id):
    """Reads one VOC annotation into a Record; raises InputError naming the file and the object."""
    try:
        text = Path(path).read_bytes()
        declares = b'<!DOCTYPE' in text or b'<!ENTITY' in text
        root = None if declares else ElementTree.fromstring(text)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(
            f'{path}: not a readable XML file ({error}); mend it or take {image_id} off the list'
        ) from error
    if declares:
        raise InputError(f'{path}: declares a DOCTYPE or entities, which no VOC annotation needs')
    size = root.find('size')
    if size is None:
        raise InputError(f'{path}: no <size>; add the width and height of the image')
    height, width = (_number(path, size, side, '<size>') for side in ('height', 'width'))
    if min(height, width) < 1:
        raise InputError(
            f'{path}: <size> is {width:g} x {height:g}; it needs at least 1 x 1 pixels'
        )
    boxes, kind = [], []
    for number, item in enumerate(root.findall('object')):
        boxes.append(_box(path, item, number, width, height))
        kind.append(DIFFICULT if (item.findtext('difficult') or '0').strip() == '1' else OBJECT)
    return Record(
        image_id=image_id,
        size=(int(height), int(width)),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        kind=np.asarray(kind, np.int32),
    )


def decode(path, size=None):
    """Decodes an image file into uint8 [height, width, 3] RGB; its orientation tag is ignored.

    Raises InputError where the file is truncated, no image, or of another (height, width) than
    annotated.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    if _truncated(data):
        raise InputError(f'{path}: the image is truncated; fetch it again or take it off the list')
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise InputError(f'{path}: cannot be decoded ({error.err})') from error
    if image is None:
        raise InputError(f'{path}: not an image; mend it or take it off the list')
    if size is not None and image.shape[:2] != tuple(size):
        (h, w), (height, width) = image.shape[:2], size
        raise InputError(f'{path}: the image is {w} x {h}, its annotation says {width} x {height}')
    return image


def _truncated(data):
    """Tells a cut-off JPEG or PNG, which decoders fill up with grey without a word."""
    if data[:2] == b'\xff\xd8':  # the end marker must follow the last scan, not only a thumbnail's
        return data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda')
    return data[:8] == b'\x89PNG\r\n\x1a\n' and b'IEND' not in data[-64:]


def _image_ids(folder, labels, split):
    if not split:
        ids = sorted(path.stem for path in labels.glob('*.xml'))
        where = labels
    else:
        where = folder / 'ImageSets' / 'Main' / f'{split}.txt'
        if not where.is_file():
            raise InputError(
                f'config keys data.train_split and data.eval_split: no list {where}; '
                "'' takes every annotation"
            )
        text = where.read_text('utf-8-sig', errors='replace')
        ids = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not ids:
        raise InputError(f'{where}: the split is empty')
    for image_id in ids:
        if '/' in image_id or '\\' in image_id or image_id.startswith('.'):
            raise InputError(f'{where}: image id {image_id!r} would leave the folder')
    return ids


def _find(pictures, image_id):
    for extension in EXTENSIONS:
        if (path := pictures / f'{image_id}{extension}').is_file():
            return path
    raise InputError(
        f'{pictures / image_id}.jpg: no such image; fetch it or take {image_id} off the list'
    )


def _number(path, parent, name, where):
    text = parent.findtext(name)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f'{path}: {where} has {name} = {text!r}, which is not a number')
    return value


def _box(path, item, number, width, height):
    name = (item.findtext('name') or '').strip()
    where = f'object {number} ({name})'
    corners = item.find('bndbox')
    if corners is None:
        raise InputError(f'{path}: {where} has no <bndbox>')
    x0, y0, x1, y1 = (_number(path, corners, k, where) for k in ('xmin', 'ymin', 'xmax', 'ymax'))
    x0, y0 = x0 - 1, y0 - 1
    shown = f'({x0 + 1:g}, {y0 + 1:g}, {x1:g}, {y1:g})'
    if x1 <= x0 or y1 <= y0:
        raise InputError(f'{path}: {where} is inverted: {shown}')
    inside = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    is_empty = inside[0] >= inside[2] or inside[1] >= inside[3]
    if is_empty or min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        raise InputError(f'{path}: {where} lies outside the {width:g} x {height:g} image: {shown}')
    return inside
