"""YOLO folders: a text file beside each image, its boxes in shares of the image."""

import logging
import math
from pathlib import Path, PurePath

import yaml

from rpn_jax import files
from rpn_jax.data import images as image_files
from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import (
    Kind,
    Problem,
    clip_box,
    clipped_remark,
    from_paths,
    inside_folder,
    record_of,
    without_boxes,
)
from rpn_jax.data.sources import naming
from rpn_jax.data.sources.folder import listing
from rpn_jax.data.sources.voc import listed
from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
DESCRIPTIONS = 'data.yaml', 'data.yml', 'dataset.yaml', 'dataset.yml'
LISTS = 'classes.txt', 'obj.names'  # of names, a line each
LARGEST, DESCRIPTION = 2**26, 2**20  # bytes of a text file, and of a YAML file
ROUNDING = 0.01  # pixels, of corners that were written with six digits
OUTLINE = 3  # points of a polygon at least
UNLABELLED = 'image without a label file, taken as without objects'
EMPTY = 'box without width or height, left out'
NOT_A_NUMBER = 'annotation with what is not a number'
NEEDED = 'images/SPLIT and labels/SPLIT, SPLIT/images and SPLIT/labels, or a list SPLIT.txt'


def yolo(split, *, path, images='', annotations='', on_bad='error', orientation='annotation'):
    """Opens a split: the images of images/{split} or {split}/images, or of the list {split}.txt.

    Labels lie in the folder `labels`, where the path has `images`, or else beside the images;
    `images` and `annotations` are folders of pictures and of labels elsewhere. A line is a class
    and a box (center x, center y, width, height) or a polygon, of which the extent is taken, in
    shares of the upright image, as Ultralytics reads it, with orientation='ignore' of the stored
    one. on_bad='clip' clips what reaches out of its image. Labels that would train wrongly are the
    source's problems. Raises InputError where there is no split.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f'path: no folder {folder}; YOLO needs one that holds {NEEDED}')
    names = names_of(folder)
    pictures, paths, labels = _files(folder, split, images, annotations)
    records, problems = [], []
    for position, (picture, label) in enumerate(zip(paths, labels, strict=True)):
        image_id = picture.relative_to(pictures).as_posix()
        try:
            size = image_files.shown_size(picture, upright=orientation != 'ignore')
            record = parse(label, size, names, on_bad)
            records.append(record._replace(image_id=image_id))
        except BadRecord as error:
            records.append(without_boxes(image_id))
            problems.append(Problem(error.kind, str(error), position))
    source = from_paths(f'yolo {folder.name} {split or "all"}', records, paths, problems)
    return source._replace(annotations=labels, categories=names)


def parse(path, size, names=None, on_bad='error'):
    """Reads a label file into the Record of an image of (height, width), none where it is missing.

    names is {class: its name}. Raises BadRecord, with the file and the line.
    """
    boxes, classes, remarks = [], [], []
    try:
        text = files.read(path, LARGEST).decode('utf-8-sig')
    except FileNotFoundError:
        text, remarks = '', [UNLABELLED]
    except (OSError, UnicodeDecodeError) as error:
        what = f'{path}: not a readable text file ({error}); mend it or leave its image out'
        raise BadRecord('annotation unreadable', what) from error
    for row, line in enumerate(text.splitlines(), start=1):
        if not (words := line.split()):
            continue
        with naming(f'{path}: line {row} '):
            number, *numbers = map(_number, words)
            name, given = _class(number, names), _corners(numbers, size)
            if given[0] == given[2] or given[1] == given[3]:
                remarks.append(EMPTY)
                continue
            with naming('', f': {line.strip()!r:.60}'):
                box = clip_box(given, size, on_bad)
        if max(abs(a - b) for a, b in zip(box, given, strict=True)) > ROUNDING:
            remarks += clipped_remark(box, given)
        boxes.append(box)
        classes.append(name)
    record = record_of(path.stem, size, boxes, [Kind.OBJECT] * len(boxes), remarks)
    return record._replace(classes=tuple(classes))


def _number(word):
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRecord(NOT_A_NUMBER, f'has {word!r:.40}, which is not a number')
    return value


def _class(number, names):
    """Returns the name of a class, its number where none is known."""
    if number < 0 or not number.is_integer():
        raise BadRecord(NOT_A_NUMBER, f'has the class {number:g}, not a whole number from 0')
    if names and int(number) not in names:
        what = f'has the class {number:g}, of which the data set names none ({len(names)} names)'
        raise BadRecord('annotation of an unknown class', what)
    return names[int(number)] if names else str(int(number))


def _corners(numbers, size):
    """Returns (x0, y0, x1, y1) in pixels of the numbers behind a class."""
    is_box = len(numbers) == 4
    if not is_box and (len(numbers) % 2 or len(numbers) < 2 * OUTLINE):
        what = f'has {len(numbers)} numbers behind the class; a box has 4, a polygon {OUTLINE}'
        raise BadRecord('object without a box', f'{what} pairs or more')
    if max(numbers) > 2 or min(numbers) < -1:
        what = f'has {max(numbers, key=abs):g}; coordinates are shares of the image, from 0 to 1'
        raise BadRecord('box outside its image', what)
    if is_box:
        x, y, width, height = numbers
        shares = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        xs, ys = numbers[::2], numbers[1::2]
        shares = min(xs), min(ys), max(xs), max(ys)
    height, width = size
    return tuple(share * side for share, side in zip(shares, (width, height) * 2, strict=True))


def names_of(folder):
    """Returns {class: its name} of a folder, {} where none is given.

    Raises InputError where the file that names them cannot be used.
    """
    if path := next(filter(Path.is_file, (folder / name for name in DESCRIPTIONS)), None):
        return _described(path)
    path = next(filter(Path.is_file, (folder / name for name in LISTS)), None)
    return dict(enumerate(_text(path).splitlines())) if path else {}


def _described(path):
    """Returns the names in a YAML file, of which all values are read as text."""
    try:
        content = yaml.load(_text(path, DESCRIPTION), yaml.BaseLoader)
        has_keypoints = 'kpt_shape' in content
        names = content.get('names', [])
        names = names if isinstance(names, dict) else dict(enumerate(names))
        names = {int(number): name for number, name in names.items()}
        if not all(isinstance(name, str) for name in (*names.values(), '')):
            raise TypeError('names are a list of texts, or a text for each class')
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
        reason = f'{type(error).__name__}: {error}'.partition('\n')[0]
        raise InputError(f'{path}: not a description of a YOLO data set ({reason})') from error
    if has_keypoints:
        what = 'has kpt_shape, and keypoints are not read; cut its label lines behind five numbers'
        raise InputError(f'{path}: {what}')
    return names


def _text(path, most=LARGEST):
    try:
        return files.read(path, most).decode('utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: cannot be read ({error})') from error


def _files(folder, split, images, annotations):
    """Returns the folder of the pictures, their paths, and a label file for each of them.

    Raises InputError where there is no image, where none has a label file, and where a label file
    has no image.
    """
    choices = [folder / 'images' / split, folder / split / 'images']
    pictures = Path(images) if images else next(filter(Path.is_dir, choices), None)
    if pictures is None:
        return _listed(folder, split, annotations)
    if not pictures.is_dir():
        raise InputError(f'images: no folder {pictures} of the pictures')
    below = pictures.anchor if images else folder
    labels = Path(annotations) if annotations else _labels(pictures, below)
    if not labels.is_dir():
        raise InputError(f'annotations: no folder {labels} of the label files')
    paths, _ = listing(pictures)
    own = [labels / path.relative_to(pictures).with_suffix('.txt') for path in paths]
    found = {path for path in labels.rglob('*.txt') if _is_label(path)}
    if stray := sorted(found.difference(own)):
        what = f'label files without their image in {pictures}, {len(stray)} in all'
        raise InputError(f'{stray[0]}: {what}; fetch the images or remove the labels')
    if not found:
        raise InputError(f'{labels}: no label file; {folder} needs {NEEDED}')
    return pictures, paths, own


def _is_label(path):
    return path.name not in LISTS and not path.name.startswith('.')


def _labels(path, below):
    """Returns where labels lie: in `labels` in place of the last `images`, or beside the images.

    Only what stands in the path below that folder is replaced.
    """
    steps = list(path.relative_to(below).parts)
    if 'images' in steps:
        last = len(steps) - 1 - steps[::-1].index('images')
        other = Path(below, *steps[:last], 'labels', *steps[last + 1 :])
        if other.is_dir() or other.parent.is_dir():
            return other
    return path


def _listed(folder, split, annotations):
    """Returns the same as _files for the images in a list, whose paths begin at the folder."""
    where = folder / f'{split}.txt'
    if not where.is_file():
        raise InputError(f'{folder}: no split {split!r}; {_splits(folder)}')
    paths, labels = [], []
    for name in listed(where, lambda line: (folder / line).is_file()):
        inside = PurePath(name).as_posix()
        if not inside_folder(inside, nested=True):
            raise InputError(f'{where}: {name!r} leads out of the folder')
        paths.append(folder / inside)
        label = PurePath(inside).with_suffix('.txt')
        labels.append(Path(annotations) / label if annotations else _labels(folder / label, folder))
    if not paths:
        raise InputError(f'{where}: the split is empty')
    return folder, paths, labels


def _splits(folder):
    """Says which splits a folder has."""
    found = {each.parent.name for each in folder.glob('*/images') if each.is_dir()}
    found |= {each.name for each in folder.glob('images/*') if each.is_dir()}
    found |= {each.stem for each in folder.glob('*.txt') if _is_label(each)}
    there = f'there are {", ".join(sorted(found)[:10])}' if found else f'it needs {NEEDED}'
    return f"{there}; the split '' takes all of images" if 'images' in found else there
