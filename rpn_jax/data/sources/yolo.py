"""YOLO folders: a text file beside each image, its boxes in shares of the image."""

import math
from pathlib import Path, PurePath
from typing import NamedTuple

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
from rpn_jax.data.sources.coco import EMPTY, NOT_A_NUMBER
from rpn_jax.data.sources.folder import listing, walk
from rpn_jax.data.sources.voc import listed
from rpn_jax.errors import InputError

DESCRIPTIONS = 'data.yaml', 'data.yml', 'dataset.yaml', 'dataset.yml'
LISTS = 'classes.txt', 'obj.names'  # of names, a line each
LARGEST, DESCRIPTION = 2**26, 2**20  # bytes of a text file, and of a YAML file
ROUNDING = 0.01  # pixels, of corners that were written with six digits
OUTLINE = 3  # points of a polygon at least
STRAY = 'label file without its image'
UNLABELLED = 'image without a label file, taken as without objects'
NAMES = 'names are a list of texts, or a text for each class'
NEEDED = 'images/SPLIT and labels/SPLIT, SPLIT/images and SPLIT/labels, or a list SPLIT.txt'


def yolo(split, *, path, images='', annotations='', on_bad='error', orientation='annotation'):
    """Opens a split: the images of images/{split} or {split}/images, or of the list {split}.txt.

    Labels lie in the folder `labels`, where the path has `images`, or else beside the images;
    `images` and `annotations` are folders elsewhere, of the pictures and of the labels, or of their
    splits. A line is a class and a box (center x, center y, width, height), or a class and a
    polygon, of which the extent is taken. Both are in shares of the upright image, as in
    Ultralytics; with orientation='ignore' in those of the stored one. on_bad='clip' clips what
    reaches out of its image. Labels that would train wrongly are the source's problems. Raises
    InputError where there is no split.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f'path: no folder {folder}; YOLO needs one that holds {NEEDED}')
    found = _files(folder, split, images, annotations)
    names = names_of(folder, found.labels[0].parent)
    records = []
    problems = [
        Problem(STRAY, f'{path}: the label of no image in {found.below}; fetch the image')
        for path in found.stray
    ]
    for position, (picture, label) in enumerate(zip(found.pictures, found.labels, strict=True)):
        image_id = picture.relative_to(found.below).as_posix()
        try:
            size = image_files.shown_size(picture, upright=orientation != 'ignore')
            record = parse(label, size, names, on_bad)
            records.append(record._replace(image_id=image_id))
        except BadRecord as error:
            records.append(without_boxes(image_id))
            problems.append(Problem(error.kind, str(error), position))
    name = f'yolo {folder.name} {split or "all"}'
    source = from_paths(name, records, found.pictures, problems)
    return source._replace(annotations=found.labels, categories=names)


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


def names_of(*folders):
    """Returns {class: its name} of a data set, from one of its folders; {} where none is given.

    Raises InputError where the file that names them cannot be used.
    """
    described = [path for name in DESCRIPTIONS if (path := folders[0] / name).is_file()]
    if described and (names := _described(described[0])):
        return names
    listed = [path for folder in folders for name in LISTS if (path := folder / name).is_file()]
    lines = _text(listed[0]).strip().splitlines() if listed else ()
    return {number: line.strip() for number, line in enumerate(lines)}


def _described(path):
    """Returns the names in a YAML file, of which all values are read as text."""
    text = _text(path, DESCRIPTION)
    try:
        content = yaml.load(text, yaml.BaseLoader)
        names = content.get('names') or []
        if not isinstance(names, dict | list):
            raise TypeError(NAMES)
        names = names if isinstance(names, dict) else dict(enumerate(names))
        names = {int(number): name for number, name in names.items()}
        if not all(isinstance(name, str) for name in names.values()):
            raise TypeError(NAMES)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
        reason = str(error).partition('\n')[0]
        if mark := getattr(error, 'problem_mark', None):
            reason = f'line {mark.line + 1}: {error.problem}'
        raise InputError(f'{path}: not a description of a YOLO data set ({reason})') from error
    if 'kpt_shape' in content:
        what = 'has kpt_shape, and keypoints are not read; cut its label lines behind five numbers'
        raise InputError(f'{path}: {what}')
    return names


def _text(path, most=LARGEST):
    try:
        return files.read(path, most).decode('utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: cannot be read ({error})') from error


class _Files(NamedTuple):
    """The files of a split: a label for each picture, there or not, and labels of no picture."""

    below: Path  # the folder that image ids begin at
    pictures: list[Path]
    labels: list[Path]
    stray: list[Path]


def _files(folder, split, images, annotations):
    """Returns the _Files of a split; raises InputError where there is no image, or no label."""
    if split and not inside_folder(split, nested=True):
        raise InputError(f'{folder}: no split {split!r}: a split is a folder or a list inside it')
    choices = [folder / 'images' / split, folder / split / 'images']
    if split and any(map(_is_label, (folder / split).glob('*.*'))):
        choices.append(folder / split)  # with its labels beside the images
    choices = [Path(images) / split, Path(images)] if images else choices
    pictures = next(filter(Path.is_dir, choices), None)
    if pictures is None and images:
        raise InputError(f'images: no folder {images} of the pictures')
    found = _in_folders(folder, split, pictures, annotations) if pictures else None
    found = found or _in_list(folder, split, annotations)
    if not any(map(Path.is_file, found.labels)) and not found.stray:
        what = f'no image has a label file, such as {found.labels[0]}'
        raise InputError(f'{found.pictures[0].parent}: {what}; {folder} needs {NEEDED}')
    return found


def _in_folders(folder, split, pictures, annotations):
    """Returns the _Files of all pictures in a folder."""
    inside = pictures.is_relative_to(folder)
    labels = _labels(pictures, folder if inside else Path(pictures.anchor))
    if annotations:
        labels = next(filter(Path.is_dir, [Path(annotations) / split]), Path(annotations))
    if not labels.is_dir():
        raise InputError(f'annotations: no folder {labels} of the label files')
    paths, _ = listing(pictures)
    keys = [path.relative_to(pictures).with_suffix('') for path in paths]
    files_of = {
        path.relative_to(labels).with_suffix(''): path for path in filter(_is_label, walk(labels))
    }
    own = [files_of.get(key, labels / f'{key}.txt') for key in keys]
    return _Files(pictures, paths, own, sorted({*files_of.values()}.difference(own)))


def _in_list(folder, split, annotations):
    """Returns the _Files of the images in a list, whose paths begin at the folder."""
    where = folder / f'{split}.txt'
    if not where.is_file():
        raise InputError(f'{folder}: no split {split!r}; {_splits(folder)}')
    paths, labels = [], []
    for name in listed(where, lambda line: (folder / line).is_file()):
        inside = PurePath(name.replace('\\', '/'))
        if inside.is_relative_to(folder.absolute()):
            inside = inside.relative_to(folder.absolute())
        if not inside_folder(inside.as_posix(), nested=True):
            raise InputError(f'{where}: {name!r} leads out of {folder}, at which its paths begin')
        ways = [folder / inside, folder / inside.as_posix().removeprefix('data/')]  # CVAT's
        paths.append(_first(ways))
        label = paths[-1].with_suffix('.txt')
        if annotations:
            after = label.relative_to(folder).as_posix().rpartition('images/')[2]
            ways = [Path(annotations) / each for each in (after, label.name)]
        else:
            ways = [_labels(label, folder)]
        labels.append(_first([each.with_suffix(end) for each in ways for end in ('.txt', '.TXT')]))
    if not paths:
        raise InputError(f'{where}: the split is empty')
    if annotations and len({*labels}) < len({*paths}):
        what = 'images of one name in two folders have the same label file'
        raise InputError(f'annotations: {what}; give {annotations} the folders of {where}')
    return _Files(folder, paths, labels, [])


def _first(paths):
    """Returns the first path that is a file, or else the first."""
    return next(filter(Path.is_file, paths), paths[0])


def _is_label(path):
    is_hidden = path.name.startswith('.')
    return path.suffix.lower() == '.txt' and path.name not in LISTS and not is_hidden


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


def _splits(folder):
    """Says which splits a folder has."""
    found = {each.parent.name for each in folder.glob('*/images') if each.is_dir()}
    found |= {each.name for each in folder.glob('images/*') if each.is_dir()}
    found |= {each.stem for each in folder.glob('*.txt') if _is_label(each)}
    there = f'there are {", ".join(sorted(found)[:10])}' if found else f'it needs {NEEDED}'
    return f"{there}; the split '' takes all of images" if 'images' in found else there
