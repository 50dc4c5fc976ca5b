"""Directories of TensorFlow Datasets, read without TensorFlow; VOC and COCO are prepared."""

import contextlib
import hashlib
import io
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rpn_jax import console
from rpn_jax.data.images import BadRecord
from rpn_jax.data.prepare import builder
from rpn_jax.data.prepare.builder import library
from rpn_jax.data.prepare.official import DATASETS
from rpn_jax.data.records import (
    Files,
    Kind,
    Problem,
    Source,
    clip_box,
    clipped_remark,
    reader,
    record_of,
    without_boxes,
)
from rpn_jax.data.sources import naming
from rpn_jax.data.sources.coco import EMPTY
from rpn_jax.errors import InputError
from rpn_jax.files import cache_folder, parse_json, read_json, write_json

FILES = 'dataset_info.json', 'features.json'  # what makes a folder a prepared directory
CLASSES = 'tensorflow_datasets.core.features.'  # where the classes of features come from
ROUNDING = 1e-2  # pixels that float32 may move a corner of a box outside
CACHE_VERSION = 2  # a new one where the entries are others
IDS = 'image/id', 'image/filename', 'image_id', 'filename', 'id'
FLAGS = {'is_crowd': Kind.CROWD, 'iscrowd': Kind.CROWD, 'is_difficult': Kind.DIFFICULT}


class Layout(NamedTuple):
    """The names of a data set's features by what a Record needs of them."""

    images: tuple[str, ...]  # the first is the one that counts
    objects: str
    bbox: str
    flags: tuple[str, ...]  # of FLAGS; the first that is set counts
    label: str  # the category of an object; '' where there is none
    names: tuple[str, ...]  # of the categories where a label is their number
    image_id: str  # '' where there is none
    is_voc: bool  # boxes are 1-based inclusive pixels over size


def tfds(split, *, path, name, on_bad='error'):
    """Opens a split of a prepared directory at path; VOC and COCO are prepared if they are not yet.

    name is one of DATASETS, or the folder of a prepared directory below path; '' is path itself.
    VOC and COCO are prepared from folders and official archives at path, or else from their hosts,
    with bad images refused or, with on_bad='skip', left out; on_bad='clip' clips what reaches out
    of its image. Annotations that would train wrongly are the source's problems. Raises InputError
    where there is no such split or it cannot be prepared.
    """
    root = Path(path).absolute()  # TFDS joins relative ones twice
    given, dataset = _find(root), DATASETS.get(name)
    if given and dataset and given.parent.name not in ('', dataset.config):
        raise InputError(f"{given}: not {name}; set name='' to take it as it is")
    directory = given or _find(root / name.replace(':', '/'))
    own = dataset and builder.directory(dataset, root)
    is_prepared = bool(dataset and builder.prepared_splits(own))
    if directory and (given or not is_prepared):
        return _open(directory, split, on_bad=on_bad)
    if not dataset or (not is_prepared and (root / 'JPEGImages').is_dir()):
        raise InputError(
            f'{root}: no prepared directory ({", ".join(FILES)}) there or at {root / name}; set '
            f'path and name; names that can be prepared are {", ".join(DATASETS)}; a folder of VOC '
            "needs source='voc', or path to the folder that VOCdevkit lies in"
        )
    if split not in dataset.splits:
        known = ', '.join(dataset.splits)
        raise InputError(f'{name} has no split {split!r}; there are: {known}')
    parts = dataset.splits[split]
    builder.prepare(dataset, parts, root, on_bad=on_bad)
    return _open(own, split, parts, on_bad)._replace(name=f'tfds {name} {split}')


def _find(folder):
    """Returns the prepared directory that a folder is, or holds as its highest version, or None."""
    versions = [v for v in folder.glob('*.*.*') if re.fullmatch(r'\d+\.\d+\.\d+', v.name)]
    versions.sort(key=lambda version: [*map(int, version.name.split('.'))], reverse=True)
    for directory in (folder, *versions):
        if all((directory / name).is_file() for name in FILES):
            return directory
    return None


def _open(directory, split, parts=(), on_bad='error'):
    """Returns the Source of a split of a prepared directory.

    Where it is made of several parts, which are splits in the directory, the images come in VOC's
    order: by release, then by number.
    """
    expression = '+'.join(parts) or split
    _check_classes(directory)
    info, layout, data = _data_source(directory, expression)
    stamp = _stamp(directory, info, expression)
    rows = list(enumerate(_scanned(directory, expression, stamp, data, layout, on_bad)))
    if not rows:
        raise InputError(f'{directory}: the split {split} is empty')
    if len(parts) > 1:
        rows.sort(key=lambda row: (row[1]['folder'], row[1]['id']))
    numbers, entries = zip(*rows, strict=True)
    names, seen = [], set()
    for number, entry in rows:
        name = f'{directory} {split}: {entry["id"]}'
        names.append(f'{name} (number {number})' if name in seen else name)
        seen.add(name)

    def load(position):
        try:
            return bytes(data[numbers[position]][layout.images[0]])
        except Exception as error:  # whatever a damaged file makes the libraries raise
            what = f'{names[position]}: cannot be read ({error}); prepare the directory again'
            raise BadRecord('image unreadable', what) from error

    records = list(map(_record, entries))
    problems = tuple(
        Problem(entry['problem'][0], f'{names[position]}: {entry["problem"][1]}', position)
        for position, entry in enumerate(entries)
        if entry['problem']
    )
    files = Files(names, load, lambda _: stamp)
    left_out = (info.metadata or {}).get('left_out', {}) if info.name == builder.NAME else {}
    notes = tuple(note for part in expression.split('+') for note in left_out.get(part, ()))
    name, read = f'tfds {directory} {split}', reader(records, files)
    return Source(name, records, read, files, problems, notes)


def _check_classes(directory):
    """Raises InputError where a directory names classes of others, which TFDS would import."""
    for path in (directory / name for name in FILES):
        try:
            todo = [read_json(path)]
        except (OSError, ValueError) as error:
            raise InputError(f'{path}: cannot be read ({error})') from error
        while todo:
            node = todo.pop()
            if isinstance(node, str):  # older ones hold json inside json
                with contextlib.suppress(ValueError):
                    todo.append(parse_json(node))
            elif isinstance(node, list):
                todo += node
            elif isinstance(node, dict):
                todo += node.values()
                keys = {'pythonClassName', 'python_class_name'}
                keys |= {'type'} if 'content' in node else set()
                for name in (node[key] for key in keys & node.keys()):
                    if isinstance(name, str) and not name.startswith(CLASSES):
                        what = f'the feature {name!r} is none of TFDS; not imported'
                        raise InputError(f'{path}: {what}')


def _data_source(directory, split):
    """Returns the DatasetInfo of a directory, its Layout, and the data source of a split."""
    try:
        builder = library().builder_from_directory(directory)
        info, splits = builder.info, ', '.join(builder.info.splits)
    except Exception as error:  # whatever damaged files make the library raise
        raise InputError(f'{directory}: not a directory of TFDS ({_line(error)})') from error
    file_format = getattr(info.file_format, 'value', info.file_format)
    if file_format != 'array_record':
        raise InputError(
            f'{directory}: its files are {file_format}, which need TensorFlow; prepare it with '
            "file_format='array_record'"
        )
    layout = _layout(directory, info)
    decoders = dict.fromkeys(layout.images, library().decode.SkipDecoding())
    try:
        return info, layout, builder.as_data_source(split=split, decoders=decoders)
    except Exception as error:  # as above; mostly a split that is none
        raise InputError(
            f'{directory}: has no split {split!r} ({_line(error)}); there are: {splits}'
        ) from error


def _line(error):
    return (str(error).strip().splitlines() or [''])[0] or type(error).__name__


def _layout(directory, info):
    """Returns the Layout of a data set's features; raises InputError where it has no boxes."""
    kinds = library().features
    top = dict(info.features) if isinstance(info.features, kinds.FeaturesDict) else {}
    images = [key for key, feature in top.items() if isinstance(feature, kinds.Image)]
    boxes = {
        (key, name): inner.bbox_format
        for key, feature in top.items()
        if isinstance(feature, kinds.Sequence) and isinstance(feature.feature, kinds.FeaturesDict)
        for name, inner in feature.feature.items()
        if isinstance(inner, kinds.BBoxFeature)
    }
    if not images or not boxes:
        raise InputError(
            f'{directory}: no feature image, or no objects/bbox; it has {", ".join(top) or "none"}'
        )
    usual = 'objects', 'bbox'
    objects, bbox = usual if usual in boxes else next(iter(boxes))
    box_format = boxes[objects, bbox]
    box_format = getattr(box_format, 'value', box_format)
    if box_format not in (None, 'REL_YXYX'):
        what = f'{objects}/{bbox} are {box_format}, not (ymin, xmin, ymax, xmax)'
        raise InputError(f'{directory}: {what}')
    ids = [key for key in IDS if key in top]
    inner = dict(top[objects].feature.items())
    labels = [k for k, each in inner.items() if isinstance(each, kinds.ClassLabel | kinds.Text)]
    label = 'label' if 'label' in labels else next(iter(labels), '')
    return Layout(
        images=tuple(sorted(images, key=lambda key: key != 'image')),
        objects=objects,
        bbox=bbox,
        flags=tuple(key for key in FLAGS if key in top[objects].feature),
        label=label,
        names=tuple(getattr(inner.get(label), 'names', ())),
        image_id=min(ids, key=lambda key: not isinstance(top[key], kinds.Text), default=''),
        is_voc=info.name == 'voc',
    )


def _stamp(directory, info, split):
    """Returns what changes when the files behind a split do."""
    names = {instruction.filename for instruction in info.splits[split].file_instructions}
    try:
        status = [(directory / name).stat() for name in sorted({*names, 'features.json'})]
    except OSError as error:
        what = f'{error.filename}: cannot be read ({error.strerror}); prepare it again'
        raise InputError(what) from error
    text = ' '.join(f'{s.st_size}-{s.st_mtime_ns}' for s in status)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _scanned(directory, split, stamp, data, layout, on_bad):
    """Returns an entry for each image, from the cache where the files have not changed.

    Without it every start would read all images for the sake of their boxes.
    """
    key = hashlib.sha256(os.fsencode(f'{directory.resolve()} {split}')).hexdigest()[:16]
    cache = cache_folder() / 'tfds' / f'{key}.json'
    mark = [CACHE_VERSION, stamp, len(data), on_bad == 'clip']
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = read_json(cache)
        if content['mark'] == mark:
            return content['entries']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, on damaged tags: lint makes remarks of them
        positions = console.progress(range(len(data)), len(data), f'{directory} {split}: read')
        entries = [_entry(data, layout, position, on_bad) for position in positions]
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, {'mark': mark, 'entries': entries})
    return entries


def _entry(data, layout, position, on_bad):
    """Returns what a Record and its Problem are made of, in types of json."""
    entry = dict(id=str(position), folder='', size=[0, 0], boxes=[], kind=[], remarks=[])
    entry |= dict(classes=[] if layout.label else None, problem=[])
    try:
        example = data[position]
        if layout.image_id:
            image_id = example[layout.image_id]
            text = image_id.decode() if isinstance(image_id, bytes) else str(image_id)
            entry['id'] = text.rpartition('.')[0] or text if layout.is_voc else text
        entry['folder'] = example.get('image/folder', b'').decode()
        entry['remarks'] = [text.decode() for text in example.get('remarks', ())]
        with Image.open(io.BytesIO(example[layout.images[0]])) as image:
            entry['size'] = [image.height, image.width]
        _add_objects(entry, example[layout.objects], layout, on_bad)
    except BadRecord as error:
        entry['problem'] = [error.kind, str(error)]
    except Exception as error:  # whatever a damaged file makes the libraries raise
        entry['problem'] = ['image unreadable', f'cannot be read ({_line(error)})']
    return entry


def _add_objects(entry, objects, layout, on_bad):
    """Adds objects to an entry: boxes, kinds, remarks; raises BadRecord where one is wrong."""
    height, width = entry['size']
    boxes = np.asarray(objects[layout.bbox], np.float64).reshape(-1, 4)
    # float32 over size moves corners by up to 1e-4 pixels: what was a round number is one again.
    corners = np.round(boxes * (height, width, height, width), 3)[:, [1, 0, 3, 2]]
    if layout.is_voc:  # corners of VOC count from 1 and are inside
        corners -= (1, 1, 0, 0)
    for number, given in enumerate(corners.tolist()):
        x0, y0, x1, y1 = given
        with naming(f'object {number} ', f': ({x0:g}, {y0:g}, {x1:g}, {y1:g})'):
            if not np.isfinite(given).all():
                raise BadRecord('annotation with what is not a number', 'is not finite')
            if x0 == x1 or y0 == y1:
                entry['remarks'].append(EMPTY)
                continue
            box = clip_box(given, (height, width), on_bad)
        if np.abs(np.subtract(box, given)).max() > ROUNDING:
            entry['remarks'] += clipped_remark(box, given)
        entry['boxes'].append(box)
        kind = (FLAGS[key] for key in layout.flags if objects[key][number])
        entry['kind'].append(next(kind, Kind.OBJECT))
        if layout.label:
            entry['classes'].append(_name(objects[layout.label][number], layout.names))


def _name(label, names):
    """Returns the name of a category, of which the label is the number or the name; '' unknown."""
    if isinstance(label, bytes | str):
        return label.decode() if isinstance(label, bytes) else label
    return names[label] if 0 <= label < len(names) else ''


def _record(entry):
    if entry['problem']:
        return without_boxes(entry['id'], entry['size'])
    record = record_of(*(entry[key] for key in ('id', 'size', 'boxes', 'kind', 'remarks')))
    classes = entry['classes']
    return record._replace(classes=None if classes is None else tuple(classes))
