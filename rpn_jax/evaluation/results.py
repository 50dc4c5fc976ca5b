"""Proposal results: what an evaluation compares, in files, without network or images.

Two formats: proposals.npz, of this project, and the two json files of COCO (instances and results),
which detectron2, mmdetection and torchvision's references write and read.
"""

import contextlib
import io
import json
import tokenize
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rpn_jax.data.records import CROWD, DIFFICULT, OBJECT
from rpn_jax.errors import InputError
from rpn_jax.evaluation.metrics import area
from rpn_jax.files import write_atomically

FARTHEST = 1e9  # pixels; of boxes further out, or of no finite place, an area cannot be trusted
# Members of the .npz file: kind of dtype, and shape, where -1 is any length. Rows of all images
# stand one after another; the counts are the number of rows of each image.
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


class Results(NamedTuple):
    """The proposals and the ground truth of a split; most fields have an entry for each image.

    Boxes are (x0, y0, x1, y1) in pixels of the ORIGINAL image, half open; float32 as the network
    makes them, or float64 as COCO's json files hold them.
    """

    dataset: str
    step: int
    image_ids: Sequence[str]
    sizes: np.ndarray  # [images, 2] int, (height, width)
    proposals: Sequence[np.ndarray]  # [P, 4] ranked best first
    scores: Sequence[np.ndarray]  # [P], never rising
    gt_boxes: Sequence[np.ndarray]  # [G, 4] of all kinds
    gt_kinds: Sequence[np.ndarray]  # [G] int: 1 object, 2 difficult, 3 crowd
    gt_areas: Sequence[np.ndarray] | None = None  # [G] square pixels, COCO's of masks; None: boxes'
    post_nms: int | None = None  # the most proposals that an image can have; None: not known


def areas_of(results):
    """Returns the ground truth's areas, of the boxes where none are given.

    A sequence of [G] float64 in square pixels of the original image, one for each image.
    """
    if results.gt_areas is not None:
        return [np.asarray(areas, np.float64) for areas in results.gt_areas]
    return [area(boxes) for boxes in results.gt_boxes]


def save(path, results):
    """Writes results to an .npz file, whole or not at all.

    Raises InputError where they do not fit together or the file cannot be written.
    """
    _check(results, path)
    members = {
        'dataset': np.array(results.dataset, 'U'),
        'step': np.array(results.step, np.int64),
        'image_ids': np.array(list(results.image_ids), 'U'),
        'sizes': np.asarray(results.sizes, np.int64).reshape(-1, 2),
        'proposal_counts': _counts(results.proposals),
        'proposals': _joined(results.proposals, (0, 4)),
        'scores': _joined(results.scores, (0,)),
        'object_counts': _counts(results.gt_boxes),
        'objects': _joined(results.gt_boxes, (0, 4)),
        'kinds': _joined(results.gt_kinds, (0,), np.int32),
    }
    if results.gt_areas is not None:
        members['areas'] = _joined(results.gt_areas, (0,), np.float64)
    if results.post_nms is not None:
        members['post_nms'] = np.array(results.post_nms, np.int64)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **members)
    try:
        write_atomically(path, file.getbuffer())
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror})') from error


def load(path):
    """Returns the Results of a file that save wrote; raises InputError for any other."""
    try:
        arrays = _read(path)
        by_proposals = _cuts(arrays, 'proposal_counts', 'proposals', 'scores')
        by_objects = _cuts(arrays, 'object_counts', *{'objects', 'kinds', 'areas'} & arrays.keys())
    except DAMAGED as error:
        what = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise InputError(f'{path}: not a whole file of proposal results ({what})') from error
    results = Results(
        dataset=str(arrays['dataset']),
        step=int(arrays['step']),
        image_ids=arrays['image_ids'].tolist(),
        sizes=arrays['sizes'],
        proposals=np.split(arrays['proposals'], by_proposals)[:-1],
        scores=np.split(arrays['scores'], by_proposals)[:-1],
        gt_boxes=np.split(arrays['objects'], by_objects)[:-1],
        gt_kinds=np.split(arrays['kinds'], by_objects)[:-1],
        gt_areas=np.split(arrays['areas'], by_objects)[:-1] if 'areas' in arrays else None,
        post_nms=int(arrays['post_nms']) if 'post_nms' in arrays else None,
    )
    _check(results, path)
    return results


def to_coco(results):
    """Returns (instances, results) as COCO's json files hold them: a dict and a list.

    An image's id is its image_id where all of them are different whole numbers, else its position
    from 1. COCO has no difficult objects: they are crowds here, which no evaluator counts, with a
    `difficult` that from_coco understands. All is of the one category 1.
    """
    ids = _coco_ids(results.image_ids)
    images = [
        {'id': image_id, 'file_name': name, 'height': int(height), 'width': int(width)}
        for image_id, name, (height, width) in zip(
            ids, results.image_ids, results.sizes, strict=True
        )
    ]
    annotations, entries = [], []
    rows = zip(ids, results.gt_boxes, results.gt_kinds, areas_of(results), strict=True)
    for image_id, boxes, kinds, areas in rows:
        for bbox, kind, size in zip(_corners_to_bbox(boxes), kinds, areas, strict=True):
            annotation = {
                'id': len(annotations) + 1,  # COCOeval takes an object of id 0 for no object
                'image_id': image_id,
                'category_id': 1,
                'bbox': bbox,
                'area': float(size),
                'iscrowd': int(kind != OBJECT),
            }
            annotations.append(annotation | ({'difficult': 1} if kind == DIFFICULT else {}))
    for image_id, boxes, scores in zip(ids, results.proposals, results.scores, strict=True):
        for bbox, score in zip(_corners_to_bbox(boxes), scores, strict=True):
            entry = {'image_id': image_id, 'category_id': 1, 'bbox': bbox, 'score': float(score)}
            entries.append(entry)
    categories = [{'id': 1, 'name': 'object'}]
    return {'images': images, 'annotations': annotations, 'categories': categories}, entries


def from_coco(instances, results, *, dataset='', step=0):
    """Returns the Results, in float64, of COCO's instances and results, of any program.

    Each is a path or the parsed content. No annotation is left out or clipped. Proposals rank by
    score; annotations, and results of equal scores, stand as in COCOeval: by category, then in the
    file's order. Categories and COCO's `ignore` change nothing else, as there. An image_id is the
    file name, or the id where there is none. Raises InputError naming the entry that cannot be
    used.
    """
    content, where = _parsed(instances, 'instances')
    entries = _entries(content, 'images', where)
    positions, names, sizes = {}, [], []
    for number, entry in enumerate(entries):
        with _naming(where, 'image', number):
            positions[entry['id']] = number
            sizes.append(np.array([int(entry['height']), int(entry['width'])], np.int64))
            names.append(str(entry.get('file_name', entry['id'])))
    if len(positions) != len(entries):
        raise InputError(f'{where}: two images of one id; the file cannot be used')
    annotations = [[] for _ in entries]
    for number, entry in enumerate(_entries(content, 'annotations', where)):
        with _naming(where, 'annotation', number):
            box = _bbox_to_corners(entry['bbox'])
            kind = CROWD if entry.get('iscrowd') else OBJECT
            kind = DIFFICULT if entry.get('difficult') else kind
            size = float(entry.get('area', (box[2] - box[0]) * (box[3] - box[1])))
            annotations[positions[entry['image_id']]].append((*box, kind, size, _category(entry)))
    content, where = _parsed(results, 'results')
    proposals = [[] for _ in entries]
    for number, entry in enumerate(_entries({'results': content}, 'results', where)):
        with _naming(where, 'result', number):
            box, score = _bbox_to_corners(entry['bbox']), float(entry['score'])
            proposals[positions[entry['image_id']]].append((*box, score, _category(entry)))
    tables = [np.array(rows, np.float64).reshape(-1, 7) for rows in annotations]
    tables = [rows[np.argsort(rows[:, 6], kind='stable')] for rows in tables]
    ranked = [np.array(rows, np.float64).reshape(-1, 6) for rows in proposals]
    ranked = [rows[np.lexsort((rows[:, 5], -rows[:, 4]))] for rows in ranked]
    read = Results(
        dataset=dataset or Path(where).stem,
        step=step,
        image_ids=names,
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        proposals=[rows[:, :4] for rows in ranked],
        scores=[rows[:, 4] for rows in ranked],
        gt_boxes=[rows[:, :4] for rows in tables],
        gt_kinds=[rows[:, 4].astype(np.int32) for rows in tables],
        gt_areas=[rows[:, 5] for rows in tables],
    )
    _check(read, where)
    return read


def _check(results, where):
    """Raises InputError, which begins with `where`, for results that no evaluator could use."""

    def refuse(what, image=None):
        name = '' if image is None else f'image {results.image_ids[image]}: '
        raise InputError(f'{where}: {name}{what}; the proposals cannot be evaluated')

    images, most = len(results.image_ids), max(map(len, results.proposals), default=0)
    areas = results.gt_kinds if results.gt_areas is None else results.gt_areas  # kinds fit
    columns = (results.sizes, results.proposals, results.scores)
    columns += (results.gt_boxes, results.gt_kinds, areas)
    if any(len(column) != images for column in columns):
        lengths = ', '.join(str(len(column)) for column in columns)
        refuse(f'arrays of {lengths} images, not all {images}')
    if results.post_nms is not None and results.post_nms < most:
        refuse(f'an image has more proposals than post_nms={results.post_nms}')
    for i, (_, boxes, scores, gt_boxes, kinds, size) in enumerate(zip(*columns, strict=True)):
        for name, array, one in (('proposals', boxes, scores), ('objects', gt_boxes, kinds)):
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
        if len(size) != len(kinds) or not np.all(np.isfinite(size)):
            refuse('areas are not one finite number for each object', i)


def _read(path):
    """Returns the arrays of an .npz file whose members are not compressed, so that none can swell.

    Raises ValueError where they are not those of MEMBERS, of its dtypes and shapes.
    """
    with zipfile.ZipFile(path) as archive:
        members, size = archive.infolist(), Path(path).stat().st_size
    if any(m.compress_type for m in members) or sum(m.file_size for m in members) > size:
        raise ValueError(f'members are compressed, or larger than the file of {size} bytes')
    with np.load(path, allow_pickle=False) as file:
        if wrong := (MEMBERS.keys() ^ set(file.files)) - (OPTIONAL - set(file.files)):
            raise ValueError(f'missing or unexpected: {", ".join(sorted(wrong))}')
        arrays = dict(file)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # bytes, where the member is no .npy file
            raise ValueError(f'{name} is no array')
        (kind, shape), actual = MEMBERS[name], array.shape
        fits = len(shape) == len(actual) and all(
            want in (-1, length) for want, length in zip(shape, actual, strict=True)
        )
        if array.dtype.kind != kind or not fits:
            raise ValueError(f'{name} is {array.dtype} {list(actual)}')
    return arrays


def _cuts(arrays, counts, *names):
    """Returns where np.split cuts rows into images; raises ValueError where counts do not fit."""
    # In Python's integers: hostile counts must not wrap around to the right sum.
    values = arrays[counts].tolist()
    if min(values, default=0) < 0 or {len(arrays[name]) for name in names} != {sum(values)}:
        raise ValueError(f'{counts} do not add up to the rows of {", ".join(sorted(names))}')
    return np.cumsum(values, dtype=np.int64)


def _joined(arrays, empty, dtype=None):
    """Returns the rows of all images; without a dtype, floats as wide as the widest."""
    if dtype is None:
        widths = [np.asarray(array).dtype for array in arrays if len(array)]
        dtype = np.result_type(np.float32, *widths)
    return np.concatenate([np.zeros(empty, dtype), *arrays]).astype(dtype)


def _counts(arrays):
    return np.array([len(array) for array in arrays], np.int64)


def _coco_ids(image_ids):
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
    """Returns (content, its name in messages) of a json file or of its parsed content."""
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
    """Turns an error that a hostile entry causes into one line that names the entry."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise InputError(f'{where}: {what} number {number} cannot be used ({reason})') from error
