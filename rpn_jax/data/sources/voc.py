"""VOCdevkit/VOCxxxx folders: JPEGImages, Annotations, and lists of splits in ImageSets/Main."""

import logging
import math
import os
from pathlib import Path
from xml.etree import ElementTree

from rpn_jax import files
from rpn_jax.data import images as image_files
from rpn_jax.data.images import EXTENSIONS, BadRecord
from rpn_jax.data.records import (
    UNSIZED,
    Kind,
    Problem,
    clip_box,
    clipped_remark,
    from_paths,
    inside_folder,
    record_of,
    without_boxes,
)
from rpn_jax.data.sources import LONGEST, naming
from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
LARGEST = 2**28  # bytes of an XML file
UNSAID = 'object without <difficult>, taken as not difficult'
NEEDED = 'VOC needs a VOCdevkit/VOCxxxx folder, or one folder a split with XMLs beside images'
DECLARES = 'declares a DOCTYPE or entities, which no VOC annotation needs'
DIFFICULT = {'0': False, 'false': False, '1': True, 'true': True}


def voc(split, *, path, images='', annotations='', on_bad='error'):
    """Opens a split: the images listed in ImageSets/Main/{split}.txt, or all of Annotations for ''.

    `images` and `annotations` are the folders of the pictures and of the XML files where they lie
    elsewhere. Without a folder Annotations, path may hold a folder of each split, in which the XML
    files lie beside their images. VOC's 1-based inclusive corners become half open (x0 and y0 lose
    1); on_bad='clip' clips what reaches out of its image. Annotations that would train wrongly are
    the source's problems. Raises InputError where there is no split.
    """
    folder = Path(path)
    pictures = Path(images or folder / 'JPEGImages')
    labels = Path(annotations or folder / 'Annotations')
    own = split and not annotations and not labels.is_dir() and any((folder / split).glob('*.xml'))
    if own:
        labels, pictures = folder / split, Path(images or folder / split)
    for keyword, needed in (
        ('path', folder),
        ('images' if images else 'path', pictures),
        ('annotations' if annotations else 'path', labels),
    ):
        if not needed.is_dir():
            raise InputError(f'{keyword}: no folder {needed}; {NEEDED}')
    ids = _image_ids(folder, labels, '' if own else split)
    paths = [_image_file(pictures, image_id) for image_id in ids]
    files = [labels / f'{image_id}.xml' for image_id in ids]
    records, problems = [], []
    for position, (file, image_id) in enumerate(zip(files, ids, strict=True)):
        try:
            records.append(parse(file, paths[position], on_bad))
        except BadRecord as error:
            records.append(without_boxes(image_id))
            problems.append(Problem(error.kind, str(error), position))
    source = from_paths(f'voc {folder.name} {split or "all"}', records, paths, problems)
    return source._replace(annotations=files)


def parse(path, picture='', on_bad='error'):
    """Reads one annotation into a Record; raises BadRecord naming file and object.

    A size that is missing or 0 is that of the picture, the image's file.
    """
    boxes, kind, remarks, classes = [], [], [], []
    with naming(f'{path}: '):
        root = _root(path)
        objects = _objects(root)
        size = _size(root)
        if size is None:
            size = image_files.declared_size(picture)
            remarks.append(UNSIZED)
        for number, item in enumerate(objects):
            classes.append((item.findtext('name') or '').strip())
            with naming(f'object {number} ({classes[-1]}) '):
                box, given = _box(item, size, on_bad)
                difficult = _text(item, 'difficult')
                if difficult.lower() not in {'', *DIFFICULT}:
                    what = f'has difficult = {difficult!r}, which is neither 0 nor 1'
                    raise BadRecord('annotation with what is not a number', what)
            boxes.append(box)
            remarks += clipped_remark(box, given)
            remarks += [] if difficult else [UNSAID]
            kind.append(Kind.DIFFICULT if DIFFICULT.get(difficult.lower()) else Kind.OBJECT)
    record = record_of(path.stem, map(int, size), boxes, kind, remarks)
    return record._replace(classes=tuple(classes))


def listed(path, exists=None):
    """Returns the image ids in a list of ImageSets: a line, or its first word.

    Columns may follow an id, as the -1, 0 and 1 of a class. exists(id) tells which of them a line
    with several words means; by default it is the first word.
    """
    try:
        data = files.read(path)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    is_wide = data[:2] in (b'\xff\xfe', b'\xfe\xff')
    # surrogateescape: the names of files may be no text.
    encoding = ('utf-16', 'replace') if is_wide else ('utf-8-sig', 'surrogateescape')
    lines = [line.strip() for line in data.decode(*encoding).splitlines()]
    lines = [line for line in lines if line]
    ids = [line if exists and exists(line) else line.split()[0] for line in lines]
    if cut := [line for line, name in zip(lines, ids, strict=True) if line != name]:
        what = f'{len(cut)} lines have columns after the id, which are not used ({cut[0]!r:.60})'
        logger.info(f'note: {path}: {what}')
    return ids


def _root(path):
    """Returns the root element of an XML file; nothing that it declares is expanded."""
    try:
        text = files.read(path, LARGEST)
        if b'<!DOCTYPE' in text or b'<!ENTITY' in text:
            raise ValueError(DECLARES)
        return ElementTree.fromstring(text, ElementTree.XMLParser(target=_Builder()))
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        what = f'not a readable XML file ({error}); mend it or take {path.stem} off the list'
        raise BadRecord('annotation unreadable', what) from error


class _Builder(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE in any encoding; most are refused before, by their bytes."""

    def doctype(self, *_):
        raise ValueError(DECLARES)


def _objects(root):
    """Returns the <object> elements of an annotation, of which each has at most one <bndbox>.

    Raises BadRecord where an object or a box stands elsewhere, as it would be lost. The boxes of a
    <part>, such as a person's head, are no objects.
    """
    objects = root.findall('object')
    boxes = [_one(item, 'bndbox', f'object {number} ') for number, item in enumerate(objects)]
    known = {*objects, *boxes, *root.findall('object/part/bndbox')}
    for element in root.iter():
        name = element.tag.rpartition('}')[2].lower()
        if name in ('object', 'objects', 'bndbox') and element not in known:
            what = 'objects are in <object> of <annotation>, boxes in <bndbox> of <object>'
            raise BadRecord('annotation unreadable', f'<{element.tag}> is elsewhere: {what}')
    return objects


def _one(parent, name, where=''):
    """Returns the element of a name inside another, or None; raises BadRecord for several."""
    found = parent.findall(name)
    if len(found) > 1:
        what = f'{where}has {len(found)} elements <{name}>, of which only one can be meant'
        raise BadRecord('annotation unreadable', what)
    return found[0] if found else None


def _text(parent, name):
    element = _one(parent, name)
    if element is not None and len(element):
        what = f'has <{element[0].tag}> inside <{name}>, where a value stands'
        raise BadRecord('annotation with what is not a number', what)
    return '' if element is None else (element.text or '').strip()


def _size(root):
    """Returns the (height, width) that an annotation gives its image, None where it gives none."""
    size = _one(root, 'size')
    with naming('<size> '):
        if size is None or not all(_text(size, side) for side in ('height', 'width')):
            return None
        height, width = _numbers(size, 'height', 'width')
    if 0 in (height, width):
        return None
    is_whole = height.is_integer() and width.is_integer()
    if not is_whole or not 1 <= min(height, width) <= max(height, width) <= LONGEST:
        bounds = f'whole pixels, at least 1 x 1 and at most {LONGEST} x {LONGEST}'
        what = f'<size> is {width:g} x {height:g}; an image has {bounds}'
        raise BadRecord('annotation without a size', what)
    return height, width


def _box(item, size, on_bad):
    """Returns an object's box, half open and clipped, and the same as it was given."""
    corners = item.find('bndbox')
    if corners is None:
        raise BadRecord('object without a box', 'has no <bndbox>')
    x0, y0, x1, y1 = _numbers(corners, 'xmin', 'ymin', 'xmax', 'ymax')
    given = x0 - 1, y0 - 1, x1, y1
    with naming('', f': ({x0:g}, {y0:g}, {x1:g}, {y1:g})'):
        return clip_box(given, size, on_bad), given


def _numbers(parent, *names):
    """Yields the numbers in the elements of these names inside another."""
    for name in names:
        text = _text(parent, name)
        try:
            value = float(text)
        except ValueError:
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
        ids = listed(where, lambda name: _is_id(name) and os.path.isfile(labels / f'{name}.xml'))
    if not ids:
        raise InputError(f'{where}: the split is empty')
    for image_id in ids:
        if not _is_id(image_id):
            what = f'{where}: image id {image_id!r} would leave the folder, or lies deeper in it'
            raise InputError(f'{what}; an id is the name of a file of Annotations')
    return ids


def _is_id(name):
    return inside_folder(name) and not name.startswith('.')


def _image_file(pictures, image_id):
    """Returns the path of an image, where it is missing that of its .jpg."""
    ends = [case(end) for end in EXTENSIONS for case in (str.lower, str.upper)]
    paths = [pictures / f'{image_id}{end}' for end in ends]
    return next(filter(os.path.isfile, paths), paths[0])
