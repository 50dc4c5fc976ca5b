"""VOCdevkit/VOCxxxx folders: JPEGImages, Annotations, and lists of splits in ImageSets/Main."""

import math
from pathlib import Path
from xml.etree import ElementTree

from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import (
    CLIPPED,
    Kind,
    Problem,
    clip_box,
    from_paths,
    inside_folder,
    record_of,
    without_boxes,
)
from rpn_jax.data.sources import LONGEST, naming
from rpn_jax.errors import InputError

MISSPELT = ('object', 'objects')
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')


def voc(split, *, path, images='', annotations=''):
    """Opens a split: the images listed in ImageSets/Main/{split}.txt, or all of Annotations for ''.

    `images` and `annotations` are the folders of the pictures and of the XML files where they lie
    elsewhere. VOC's 1-based inclusive corners become half open (x0 and y0 lose 1). Annotations that
    would train wrongly are the source's problems. Raises InputError where there is no split.
    """
    folder = Path(path)
    pictures = Path(images or folder / 'JPEGImages')
    labels = Path(annotations or folder / 'Annotations')
    for keyword, needed in (
        ('path', folder),
        ('images' if images else 'path', pictures),
        ('annotations' if annotations else 'path', labels),
    ):
        if not needed.is_dir():
            raise InputError(f'{keyword}: no folder {needed}; VOC needs a VOCdevkit/VOCxxxx folder')
    ids = _image_ids(folder, labels, split)
    records, problems = [], []
    for position, image_id in enumerate(ids):
        try:
            records.append(parse(labels / f'{image_id}.xml')[0])
        except BadRecord as error:
            records.append(without_boxes(image_id))
            problems.append(Problem(error.kind, str(error), position))
    paths = [_image_file(pictures, image_id) for image_id in ids]
    return from_paths(f'voc {folder.name} {split or "all"}', records, paths, problems)


def parse(path):
    """Reads one annotation into (Record, classes); raises BadRecord naming file and object."""
    boxes, kind, remarks, classes = [], [], [], []
    with naming(f'{path}: '):
        root = _root(path)
        size = _size(root)
        if wrong := [c.tag for c in root if c.tag != 'object' and c.tag.lower() in MISSPELT]:
            what = f'objects are in <object> of <annotation>, not in <{wrong[0]}>'
            raise BadRecord('annotation unreadable', what)
        for number, item in enumerate(root.findall('object')):
            classes.append((item.findtext('name') or '').strip())
            with naming(f'object {number} ({classes[-1]}) '):
                box, given = _box(item, size)
            boxes.append(box)
            remarks += [CLIPPED] if box != given else []
            difficult = (item.findtext('difficult') or '0').strip().lower() in ('1', 'true')
            kind.append(Kind.DIFFICULT if difficult else Kind.OBJECT)
    return record_of(path.stem, map(int, size), boxes, kind, remarks), classes


def listed(path):
    """Returns the image ids in a list of ImageSets."""
    lines = path.read_text('utf-8-sig', errors='replace').splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _root(path):
    """Returns the root element of an XML file; nothing that it declares is expanded."""
    try:
        if path.exists() and not path.is_file():
            raise OSError('not a file')  # reading a pipe would wait for ever
        text = path.read_bytes()
        if b'<!DOCTYPE' not in text and b'<!ENTITY' not in text:
            return ElementTree.fromstring(text)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        what = f'not a readable XML file ({error}); mend it or take {path.stem} off the list'
        raise BadRecord('annotation unreadable', what) from error
    what = 'declares a DOCTYPE or entities, which no VOC annotation needs'
    raise BadRecord('annotation unreadable', what)


def _size(root):
    """Returns the (height, width) that an annotation gives its image, as floats."""
    size = root.find('size')
    if size is None:
        remedy = 'add it with width and height, in lower case and without a namespace'
        raise BadRecord('annotation without a size', f'no <size>; {remedy}')
    with naming('<size> '):
        height, width = _numbers(size, 'height', 'width')
    if not 1 <= min(height, width) <= max(height, width) <= LONGEST:
        bounds = f'at least 1 x 1 and at most {LONGEST} x {LONGEST} pixels'
        what = f'<size> is {width:g} x {height:g}; an image has {bounds}'
        raise BadRecord('annotation without a size', what)
    return height, width


def _box(item, size):
    """Returns an object's box, half open and clipped, and the same as it was given."""
    corners = item.find('bndbox')
    if corners is None:
        raise BadRecord('object without a box', 'has no <bndbox>')
    x0, y0, x1, y1 = _numbers(corners, 'xmin', 'ymin', 'xmax', 'ymax')
    given = x0 - 1, y0 - 1, x1, y1
    with naming('', f': ({x0:g}, {y0:g}, {x1:g}, {y1:g})'):
        return clip_box(given, size), given


def _numbers(parent, *names):
    """Yields the numbers in the elements of these names inside another."""
    for name in names:
        text = parent.findtext(name)
        try:
            value = float(text)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            what = f'has {name} = {text!r}, which is not a number'
            raise BadRecord('annotation with what is not a number', what)
        yield value


def _image_ids(folder, labels, split):
    if not split:
        ids = sorted(p.stem for p in labels.glob('*.xml') if not p.name.startswith('.'))
        where = labels
    else:
        where = folder / 'ImageSets' / 'Main' / f'{split}.txt'
        if not where.is_file():
            lists = ', '.join(sorted(path.stem for path in where.parent.glob('*.txt'))[:10])
            raise InputError(
                f"{where}: no such list of a split; there are: {lists or 'none'}; the split '' "
                'takes every annotation'
            )
        ids = listed(where)
    if not ids:
        raise InputError(f'{where}: the split is empty')
    for image_id in ids:
        if not inside_folder(image_id) or image_id.startswith('.'):
            what = f'{where}: image id {image_id!r} would leave the folder, or lies deeper in it'
            raise InputError(f'{what}; an id is the name of a file of Annotations')
    return ids


def _image_file(pictures, image_id):
    """Returns the path of an image, where it is missing that of its .jpg."""
    paths = [pictures / f'{image_id}{extension}' for extension in EXTENSIONS]
    return next(filter(Path.is_file, paths), paths[0])
