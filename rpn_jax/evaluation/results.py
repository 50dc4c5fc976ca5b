"""Stores what an evaluation compares: any dialect can be computed without network or images.

Two ways: proposals.npz, of this project, and the two json files of COCO (instances and results),
which detectron2, mmdetection and torchvision's references write and read.
"""

import contextlib
import io
import json
import math
import tokenize
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.files import write_atomically

OBJECT, DIFFICULT, CROWD = 1, 2, 3
FARTHEST = 1e9  # pixels; of what lies further out, or nowhere, an area cannot be trusted
# Members of the file: kinds of dtype, and shape, where -1 is any length. The rows of all images
# stand one after another; counts say how many are whose.
MEMBERS = {
    'dataset': ('U', ()),
    'step': ('i', ()),
    'image_ids': ('U', (-1,)),
    'sizes': ('i', (-1, 2)),
    'proposals': ('f', (-1, 4)),
    'scores': ('f', (-1,)),
    'proposal_counts': ('i', (-1,)),
    'objects': ('f', (-1, 4)),
    'kinds': ('i', (-1,)),
    'object_counts': ('i', (-1,)),
    'areas': ('f', (-1,)),
    'post_nms': ('i', ()),
}
OPTIONAL = {'areas', 'post_nms'}
DAMAGED = (  # what reading a stranger's zip file, and the headers of its members, can raise
    *(zipfile.BadZipFile, tokenize.TokenError, ValueError, EOFError, OSError, KeyError),
    *(SyntaxError, RuntimeError, MemoryError),
)


class Stored(NamedTuple):
    """The proposals and objects of a split; an entry per image in all but the first two and last.

    Boxes are (x0, y0, x1, y1) in pixels of the ORIGINAL image, half open; float32 as the network
    makes them, or float64 as COCO's json files hold them.
    """

    dataset: str
    step: int
    image_ids: Sequence[str]
    sizes: np.ndarray  # [images, 2] int, (height, width)
    proposals: Sequence[np.ndarray]  # [P, 4] ranked best first
    scores: Sequence[np.ndarray]  # [P], never rising
    objects: Sequence[np.ndarray]  # [G, 4] of all kinds
    kinds: Sequence[np.ndarray]  # [G] int: 1 object, 2 difficult, 3 crowd
    areas: Sequence[np.ndarray] | None = None  # [G] square pixels, COCO's of masks; None: of boxes
    post_nms: int | None = None  # the most proposals that an image can have; None: not known


def object_areas(stored):
    """Returns the areas of each image's objects, those of their boxes where none are stored.

    A sequence of [G] float64 in square pixels of the original image.
    """
    if stored.areas is not None:
        return [np.asarray(areas, np.float64) for areas in stored.areas]
    return [box_areas(boxes) for boxes in stored.objects]


def box_areas(boxes):
    """Returns width times height of boxes [N, 4]: [N] float64."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return (x1 - x0) * (y1 - y0)


def save(path, stored):
    """Writes the file at once or not at all; raises InputError where the parts do not fit."""
    _check(stored, path)
    members = {
        'dataset': np.array(stored.dataset, 'U'),
        'step': np.array(stored.step, np.int64),
        'image_ids': np.array(list(stored.image_ids), 'U'),
        'sizes': np.asarray(stored.sizes, np.int64).reshape(-1, 2),
        'proposal_counts': _counts(stored.proposals),
        'proposals': _joined(stored.proposals, (0, 4)),
        'scores': _joined(stored.scores, (0,)),
        'object_counts': _counts(stored.objects),
        'objects': _joined(stored.objects, (0, 4)),
        'kinds': _joined(stored.kinds, (0,), np.int32),
    }
    if stored.areas is not None:
        members['areas'] = _joined(stored.areas, (0,), np.float64)
    if stored.post_nms is not None:
        members['post_nms'] = np.array(stored.post_nms, np.int64)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **members)
    try:
        write_atomically(path, file.getbuffer())
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror})') from error


def load(path):
    """Reads a file that save wrote; raises InputError, in a line, for any other."""
    try:
        parts = _read(path)
        images, sizes = parts['image_ids'].tolist(), parts['sizes']
        by_proposals = _cuts(parts, 'proposal_counts', 'proposals', 'scores')
        by_objects = _cuts(parts, 'object_counts', *{'objects', 'kinds', 'areas'} & parts.keys())
    except DAMAGED as error:
        what = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise InputError(f'{path}: not a whole file of stored proposals ({what})') from error
    stored = Stored(
        dataset=str(parts['dataset']),
        step=int(parts['step']),
        image_ids=images,
        sizes=sizes,
        proposals=np.split(parts['proposals'], by_proposals)[:-1],
        scores=np.split(parts['scores'], by_proposals)[:-1],
        objects=np.split(parts['objects'], by_objects)[:-1],
        kinds=np.split(parts['kinds'], by_objects)[:-1],
        areas=np.split(parts['areas'], by_objects)[:-1] if 'areas' in parts else None,
        post_nms=int(parts['post_nms']) if 'post_nms' in parts else None,
    )
    _check(stored, path)
    return stored


def to_coco(stored):
    """Returns (instances, results) as COCO's json files hold them: a dict and a list.

    An image's id is its image_id where all of them are different whole numbers, else its position
    from 1. COCO has no difficult objects: they are crowds here, which no evaluator counts, with a
    `difficult` that from_coco understands. All is of the one category 1.
    """
    numbers = _numbers(stored.image_ids)
    images = [
        {'id': number, 'file_name': name, 'height': int(height), 'width': int(width)}
        for number, name, (height, width) in zip(
            numbers, stored.image_ids, stored.sizes, strict=True
        )
    ]
    annotations, results = [], []
    rows = zip(numbers, stored.objects, stored.kinds, object_areas(stored), strict=True)
    for number, objects, kinds, areas in rows:
        for box, kind, area in zip(_corners_to_bbox(objects), kinds, areas, strict=True):
            annotation = {
                'id': len(annotations) + 1,  # COCOeval takes an object of id 0 for no object
                'image_id': number,
                'category_id': 1,
                'bbox': box,
                'area': float(area),
                'iscrowd': int(kind != OBJECT),
            }
            annotations.append(annotation | ({'difficult': 1} if kind == DIFFICULT else {}))
    for number, boxes, scores in zip(numbers, stored.proposals, stored.scores, strict=True):
        for box, score in zip(_corners_to_bbox(boxes), scores, strict=True):
            result = {'image_id': number, 'category_id': 1, 'bbox': box, 'score': float(score)}
            results.append(result)
    categories = [{'id': 1, 'name': 'object'}]
    return {'images': images, 'annotations': annotations, 'categories': categories}, results


def from_coco(instances, results, *, dataset='', step=0):
    """Reads COCO's instances and results, of any program, into a Stored of float64.

    Each is a path or the parsed content. No annotation is left out or clipped. Results rank by
    score; objects, and results of equal scores, stand as in COCOeval: by category, then in the
    file's order. Otherwise categories, and COCO's `ignore`, as there, are not looked at. An
    image_id is the file name, or the id where there is none. Raises InputError naming the entry
    that cannot be used.
    """
    content, where = _parsed(instances, 'instances')
    entries = _entries(content, 'images', where)
    positions = {}
    for number, entry in enumerate(entries):
        with _naming(where, 'image', number):
            positions[entry['id']] = number
            size = np.array([int(entry['height']), int(entry['width'])], np.int64)
            entries[number] = str(entry.get('file_name', entry['id'])), size
    if len(positions) != len(entries):
        raise InputError(f'{where}: two images of one id; the file cannot be used')
    objects = [[] for _ in entries]
    for number, entry in enumerate(_entries(content, 'annotations', where)):
        with _naming(where, 'annotation', number):
            box = _bbox_to_corners(entry['bbox'])
            kind = DIFFICULT if entry.get('difficult') else CROWD if entry.get('iscrowd') else 1
            area = float(entry.get('area', (box[2] - box[0]) * (box[3] - box[1])))
            objects[positions[entry['image_id']]].append((*box, kind, area, _category(entry)))
    found, where = _parsed(results, 'results')
    proposals = [[] for _ in entries]
    for number, entry in enumerate(_entries({'results': found}, 'results', where)):
        with _naming(where, 'result', number):
            box = _bbox_to_corners(entry['bbox'])
            score = float(entry['score'])
            proposals[positions[entry['image_id']]].append((*box, score, _category(entry)))
    tables = [np.array(rows, np.float64).reshape(-1, 7) for rows in objects]
    tables = [rows[np.argsort(rows[:, 6], kind='stable')] for rows in tables]
    ranked = [np.array(rows, np.float64).reshape(-1, 6) for rows in proposals]
    ranked = [rows[np.lexsort((rows[:, 5], -rows[:, 4]))] for rows in ranked]
    stored = Stored(
        dataset=dataset or Path(where).stem,
        step=step,
        image_ids=[name for name, _ in entries],
        sizes=np.array([size for _, size in entries], np.int64).reshape(-1, 2),
        proposals=[rows[:, :4] for rows in ranked],
        scores=[rows[:, 4] for rows in ranked],
        objects=[rows[:, :4] for rows in tables],
        kinds=[rows[:, 4].astype(np.int32) for rows in tables],
        areas=[rows[:, 5] for rows in tables],
    )
    _check(stored, where)
    return stored


def _check(stored, where):
    """Raises InputError, with `where`, for what no evaluator could make sense of."""

    def refuse(what, image=None):
        name = '' if image is None else f'image {stored.image_ids[image]}: '
        raise InputError(f'{where}: {name}{what}; the proposals cannot be evaluated')

    images = len(stored.image_ids)
    areas = stored.kinds if stored.areas is None else stored.areas  # kinds fit themselves
    parts = (stored.sizes, stored.proposals, stored.scores, stored.objects, stored.kinds, areas)
    if any(len(part) != images for part in parts):
        refuse(f'parts of {", ".join(str(len(part)) for part in parts)} images, not all {images}')
    if stored.post_nms is not None and stored.post_nms < max(map(len, stored.proposals), default=0):
        refuse(f'an image has more proposals than post_nms={stored.post_nms}')
    for i, (_, boxes, scores, objects, kinds, area) in enumerate(zip(*parts, strict=True)):
        for name, array, one in (('proposals', boxes, scores), ('objects', objects, kinds)):
            if np.shape(array) != (len(one), 4):
                refuse(f'{name} of shape {list(np.shape(array))} for {len(one)} values', i)
            array = np.asarray(array, np.float64)  # the bound is beyond float16
            if not np.all(np.abs(array) <= FARTHEST):  # false for NaN too
                refuse(f'{name} are not finite, or lie beyond {FARTHEST:g} pixels', i)
            if np.any(array[:, 2:] < array[:, :2]):
                refuse(f'{name} are inverted: x1 < x0 or y1 < y0', i)
        if not np.all(np.isfinite(scores)) or np.any(np.asarray(scores)[1:] > scores[:-1]):
            refuse('scores are not finite or rise, so the proposals are not ranked', i)
        if not np.all(np.isin(kinds, (OBJECT, DIFFICULT, CROWD))):
            refuse('kinds are 1 object, 2 difficult or 3 crowd', i)
        if len(area) != len(kinds) or not np.all(np.isfinite(area)):
            refuse('areas are not one finite number for each object', i)


def _read(path):
    """Reads the members of a zip file that only stores them, so that none can swell."""
    size = Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename.removesuffix('.npy'): info.file_size for info in archive.infolist()}
        if sum(sizes.values()) > size:
            raise ValueError(f'members of {sum(sizes.values())} bytes in a file of {size}')
        if wrong := (MEMBERS.keys() ^ sizes.keys()) - (OPTIONAL - sizes.keys()):
            raise ValueError(f'missing or unexpected: {", ".join(sorted(wrong))}')
        return {name: _member(archive.read(f'{name}.npy'), name) for name in sizes}


def _member(content, name):
    """Views the bytes of a .npy file as its array, of the dtype and shape that MEMBERS asks for."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f'{name} is of another version of .npy')
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    kind, expected = MEMBERS[name]
    fits = [want in (-1, length) for want, length in zip(expected, shape, strict=False)]
    if dtype.kind != kind or len(shape) != len(expected) or not all(fits) or by_columns:
        raise ValueError(f'{name} is {dtype} {list(shape)}')
    # In Python's integers: hostile lengths must not wrap around to the right one.
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell() or not dtype.itemsize:
        raise ValueError(f'{name} is not as long as it says')
    return np.ndarray(shape, dtype, content, file.tell())


def _cuts(parts, name, *arrays):
    """Returns where np.split cuts rows into images; raises ValueError where counts do not fit."""
    counts = parts[name]
    # In Python's integers again.
    lengths = {len(parts[array]) for array in arrays}
    if min(counts.tolist(), default=0) < 0 or lengths != {sum(counts.tolist())}:
        raise ValueError(f'{name} do not add up to the rows of {", ".join(sorted(arrays))}')
    return np.cumsum(counts)


def _joined(arrays, empty, dtype=None):
    """Concatenates the rows of all images; without a dtype, floats as wide as the widest."""
    if dtype is None:
        widths = [np.asarray(array).dtype for array in arrays if len(array)]
        dtype = np.result_type(np.float32, *widths)
    return np.concatenate([np.zeros(empty, dtype), *arrays]).astype(dtype)


def _counts(arrays):
    return np.array([len(array) for array in arrays], np.int64)


def _numbers(image_ids):
    try:
        numbers = [int(image_id) for image_id in image_ids]
    except ValueError:
        numbers = []
    different = len(set(numbers)) == len(image_ids) and min(numbers, default=0) >= 0
    return numbers if different else list(range(1, len(image_ids) + 1))


def _corners_to_bbox(boxes):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _bbox_to_corners(bbox):
    x, y, width, height = (float(value) for value in bbox)
    return x, y, x + width, y + height


def _category(entry):
    return float(entry.get('category_id', 0))


def _parsed(source, name):
    """Returns (content, what to call it) of a json file, or of its content."""
    if not isinstance(source, str | Path):
        return source, name
    try:
        return json.loads(Path(source).read_text('utf-8')), source
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f'{source}: not a json file ({error})') from error


def _entries(content, name, where):
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f'{where}: no list of {name}, as COCO writes it')
    return list(entries)


@contextlib.contextmanager
def _naming(where, what, number):
    """Turns what a hostile entry does into one line that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{where}: {what} number {number} cannot be used ({reason})') from error
