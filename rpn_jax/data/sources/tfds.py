"""Directories of TensorFlow Datasets, read without TensorFlow; VOC and COCO are prepared."""

import contextlib
import hashlib
import io
import json
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
    CLIPPED,
    Files,
    Kind,
    Problem,
    Source,
    clip_box,
    reader,
    record_of,
    without_boxes,
)
from rpn_jax.data.sources.coco import EMPTY
from rpn_jax.errors import InputError
from rpn_jax.files import cache_folder, write_atomically

FILES = 'dataset_info.json', 'features.json'  # what makes a folder a prepared directory
CLASSES = 'tensorflow_datasets.core.features.'  # where the classes of features come from
ROUNDING = 1e-2  # pixels that float32 may move a corner of a box outside
CACHE_VERSION = 1  # a new one where the entries are others


class Layout(NamedTuple):
    """The names of a data set's features by what a Record needs of them; '' where there is none."""

    image: str
    images: tuple[str, ...]  # of all features that are images
    objects: str
    bbox: str
    difficult: str
    crowd: str
    ids: tuple[str, ...]  # in order of preference
    is_voc: bool  # boxes are 1-based inclusive pixels over size


def tfds(split, *, path, name, on_bad='error'):
    """Opens a split of a prepared directory at path; VOC and COCO are prepared if they are not yet.

    name is one of DATASETS, or the folder of a prepared directory below path; '' is path itself.
    VOC and COCO are prepared from folders and official archives at path, or else from their hosts,
    with bad images refused or, with on_bad='skip', left out. Annotations that would train wrongly
    are the source's problems. Raises InputError where there is no such split or it cannot be
    prepared.
    """
    root = Path(path).absolute()  # TFDS joins relative ones twice
    directory = _find(root)
    if directory and name in DATASETS and directory.parent.name not in ('', DATASETS[name].config):
        raise InputError(f"{directory}: not {name}; set name='' to take it as it is")
    dataset = None if directory else DATASETS.get(name)
    if dataset is None:
        directory = directory or _find(root / name.replace(':', '/'))
        if directory is None:
            raise InputError(_nothing_at(root, name))
        return _open(directory, split)
    stock, own = _find(root / name), builder.directory(dataset, root)
    if stock and not builder.prepared_splits(own):
        return _open(stock, split)
    if split not in dataset.splits:
        known = ', '.join(dataset.splits)
        raise InputError(f'{name} has no split {split!r}; there are: {known}')
    needed = dataset.splits[split]
    if not set(needed) <= set(builder.prepared_splits(own)) and _is_voc_folder(root):
        raise InputError(_nothing_at(root, name))
    directory = builder.prepare(dataset, needed, root, on_bad=on_bad)
    return _open(directory, split, '+'.join(needed))._replace(name=f'tfds {name} {split}')


def _find(folder):
    """Returns the prepared directory that a folder is, or holds as its highest version, or None."""
    if all((folder / name).is_file() for name in FILES):
        return folder
    versions = folder.glob('*.*.*') if folder.is_dir() else ()
    versions = [v for v in versions if re.fullmatch(r'\d+\.\d+\.\d+', v.name)]
    for version in sorted(versions, key=lambda v: [*map(int, v.name.split('.'))], reverse=True):
        if all((version / name).is_file() for name in FILES):
            return version
    return None


def _is_voc_folder(root):
    return (root / 'JPEGImages').is_dir() and (root / 'Annotations').is_dir()


def _nothing_at(root, name):
    if _is_voc_folder(root):
        return (
            f"{root}: a folder of VOC, not one of TFDS; set source='voc', or path to the folder "
            'that VOCdevkit lies in'
        )
    return (
        f'{root}: no prepared directory ({", ".join(FILES)}) there or at {root / name}; set path '
        f'and name; names that can be prepared are {", ".join(DATASETS)}'
    )


def _open(directory, split, expression=''):
    """Returns the Source of a split of a prepared directory.

    expression is the split's name in TFDS; where it is given, the images come in VOC's order: by
    release, then by number.
    """
    _check_classes(directory)
    info, data = _data_source(directory, expression or split)
    layout = _layout(directory, info)
    stamp = _stamp(directory, info, expression or split)
    entries = _scanned(directory, expression or split, stamp, data, layout)
    order = list(range(len(entries)))
    if '+' in expression:
        order.sort(key=lambda i: (entries[i]['folder'], entries[i]['id']))
    entries = [entries[i] for i in order]
    names, seen = [], set()
    for position, entry in enumerate(entries):
        name = f'{directory} {split}: {entry["id"]}'
        names.append(f'{name} (number {order[position]})' if name in seen else name)
        seen.add(name)

    def load(position):
        try:
            return bytes(data[order[position]][layout.image])
        except Exception as error:  # whatever a damaged file makes the libraries raise
            what = f'{names[position]}: cannot be read ({error}); prepare the directory again'
            raise BadRecord('image unreadable', what) from error

    records = list(map(_record, entries))
    problems = [
        Problem(entry['problem'][0], f'{names[i]}: {entry["problem"][1]}', i)
        for i, entry in enumerate(entries)
        if entry['problem']
    ]
    if not records:
        raise InputError(f'{directory}: the split {split} is empty')
    files = Files(names, load, lambda _: stamp)
    read = reader(records, files)
    notes = (info.metadata or {}).get('left_out', {}) if info.name == builder.NAME else {}
    notes = [note for each in (expression or split).split('+') for note in notes.get(each, ())]
    return Source(f'tfds {directory} {split}', records, read, files, tuple(problems), tuple(notes))


def _check_classes(directory):
    """Raises InputError where a directory names classes of others, which TFDS would import."""
    for path in (directory / name for name in FILES):
        try:
            todo = [json.loads(path.read_text())]
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f'{path}: cannot be read ({error})') from error
        while todo:
            node = todo.pop()
            if isinstance(node, str):  # older ones hold json inside json
                with contextlib.suppress(ValueError, RecursionError):
                    node = json.loads(node)
            todo += node if isinstance(node, list) else ()
            if not isinstance(node, dict):
                continue
            todo += node.values()
            keys = 'pythonClassName', 'python_class_name', *(['type'] if 'content' in node else ())
            for name in (node.get(key, CLASSES) for key in keys):
                if isinstance(name, str) and not name.startswith(CLASSES):
                    raise InputError(f'{path}: the feature {name!r} is none of TFDS; not imported')


def _data_source(directory, split):
    """Returns the DatasetInfo of a directory and the data source of a split."""
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
        return info, builder.as_data_source(split=split, decoders=decoders)
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
    images = tuple(key for key, feature in top.items() if isinstance(feature, kinds.Image))
    candidates = []  # (objects, box, features of an object)
    for key, feature in top.items():
        inner = feature.feature if isinstance(feature, kinds.Sequence) else None
        inner = dict(inner) if isinstance(inner, kinds.FeaturesDict) else {}
        boxes = [name for name, f in inner.items() if isinstance(f, kinds.BBoxFeature)]
        candidates += [(key, box, inner) for box in boxes]
    if not images or not candidates:
        raise InputError(
            f'{directory}: no feature image, or no objects/bbox; it has {", ".join(top) or "none"}'
        )
    objects, bbox, inner = next(
        (each for each in candidates if each[:2] == ('objects', 'bbox')), candidates[0]
    )
    shape = inner[bbox].bbox_format
    shape = getattr(shape, 'value', shape)
    if shape not in (None, 'REL_YXYX'):
        raise InputError(f'{directory}: {objects}/{bbox} are {shape}, not (ymin, xmin, ymax, xmax)')
    ids = 'image/id', 'image/filename', 'image_id', 'filename', 'id'
    ids = [key for key in ids if key in top]
    return Layout(
        image='image' if 'image' in images else images[0],
        images=images,
        objects=objects,
        bbox=bbox,
        difficult='is_difficult' if 'is_difficult' in inner else '',
        crowd=next((key for key in ('is_crowd', 'iscrowd') if key in inner), ''),
        ids=tuple(sorted(ids, key=lambda key: not isinstance(top[key], kinds.Text))),
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


def _scanned(directory, split, stamp, data, layout):
    """Returns an entry for each image, from the cache where the files have not changed.

    Without it every start would read all images for the sake of their boxes.
    """
    key = hashlib.sha256(f'{directory.resolve()} {split}'.encode()).hexdigest()[:16]
    cache = cache_folder() / 'tfds' / f'{key}.json'
    mark = [CACHE_VERSION, stamp, len(data)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(cache.read_text())
        if content['mark'] == mark:
            return content['entries']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, on damaged tags: lint makes remarks of them
        positions = console.progress(range(len(data)), len(data), f'{directory} {split}: read')
        entries = [_entry(data, layout, position) for position in positions]
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, json.dumps({'mark': mark, 'entries': entries}))
    return entries


def _entry(data, layout, position):
    """Returns what a Record and its Problem are made of, in types of json."""
    entry = dict(id=str(position), folder='', size=[0, 0], boxes=[], kind=[], remarks=[])
    entry['problem'] = []
    try:
        example = data[position]
        if layout.ids:
            image_id = example[layout.ids[0]]
            text = image_id.decode() if isinstance(image_id, bytes) else str(image_id)
            entry['id'] = text.rpartition('.')[0] or text if layout.is_voc else text
        entry['folder'] = example.get('image/folder', b'').decode()
        entry['remarks'] = [text.decode() for text in example.get('remarks', ())]
        with Image.open(io.BytesIO(example[layout.image])) as image:
            entry['size'] = [image.height, image.width]
        objects = example[layout.objects]
        boxes = np.asarray(objects[layout.bbox], np.float64).reshape(-1, 4)
        flags = [objects[k] if k else [0] * len(boxes) for k in (layout.difficult, layout.crowd)]
        for number, (box, difficult, crowd) in enumerate(zip(boxes, *flags, strict=True)):
            corners = _corners(entry, box, number, layout)
            if corners:
                entry['boxes'].append(corners)
                kind = Kind.CROWD if crowd else Kind.DIFFICULT if difficult else Kind.OBJECT
                entry['kind'].append(kind)
    except BadRecord as error:
        entry['problem'] = [error.kind, str(error)]
    except Exception as error:  # whatever a damaged file makes the libraries raise
        entry['problem'] = ['image unreadable', f'cannot be read ({_line(error)})']
    return entry


def _corners(entry, box, number, layout):
    """Returns the corners of a box in pixels, or None where it is empty."""
    height, width = entry['size']
    # float32 over size moves corners by up to 1e-4 pixels: what was a round number is one again.
    y0, x0, y1, x1 = np.round(box * (height, width, height, width), 3).tolist()
    if layout.is_voc:  # corners of VOC count from 1 and are inside
        x0, y0 = x0 - 1, y0 - 1
    where, shown = f'object {number}', f'({x0:g}, {y0:g}, {x1:g}, {y1:g})'
    if not np.isfinite(box).all():
        raise BadRecord('annotation with what is not a number', f'{where} has {shown}')
    if x0 == x1 or y0 == y1:
        entry['remarks'].append(EMPTY)
        return None
    try:
        clipped = clip_box((x0, y0, x1, y1), (height, width))
    except BadRecord as error:
        raise BadRecord(error.kind, f'{where} {error}: {shown}') from error
    if np.abs(np.subtract(clipped, (x0, y0, x1, y1))).max() > ROUNDING:
        entry['remarks'].append(CLIPPED)
    return clipped


def _record(entry):
    if entry['problem']:
        return without_boxes(entry['id'], entry['size'])
    return record_of(*(entry[key] for key in ('id', 'size', 'boxes', 'kind', 'remarks')))
