"""Proposal results: what an evaluation compares, in files, without network or images.

Two formats: proposals.npz, of this project, and the two json files of COCO (instances and results),
which detectron2, mmdetection and torchvision's references write and read.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from rpn_jax.data.records import CROWD, DIFFICULT, OBJECT
from rpn_jax.errors import InputError
from rpn_jax.evaluation.metrics import area
from rpn_jax.files import DAMAGED, MOST_ROWS, read_json, read_npz, write_atomically

PAIRS = 2**26  # of a proposal and an object of an image, whose overlaps are held at once
FARTHEST = 1e9  # pixels; of boxes further out, or of no finite place, an area cannot be trusted
MEMBERS = {  # of the .npz file: dtype, of which files need only the kind, and shape, -1 any length
    'dataset': ('U', ()),
    'step': ('int64', ()),
    'image_ids': ('U', (-1,)),
    'sizes': ('int64', (-1, 2)),
    'proposals': ('float32', (-1, 4)),
    'scores': ('float32', (-1,)),
    'proposal_counts': ('int64', (-1,)),
    'objects': ('float32', (-1, 4)),
    'kinds': ('int32', (-1,)),
    'object_counts': ('int64', (-1,)),
    'areas': ('float64', (-1,)),
    'post_nms': ('int64', ()),
    'coco_ids': ('U', (-1,)),  # as json: 3 or "3"
}
OPTIONAL = {'areas', 'post_nms', 'coco_ids'}
PLAIN = ('dataset', 'step', 'image_ids', 'sizes', 'post_nms')  # named as their field of Results
ROWS = {  # of all images, one after another: the field, and the member with each image's number
    'proposals': ('proposals', 'proposal_counts'),
    'scores': ('scores', 'proposal_counts'),
    'objects': ('gt_boxes', 'object_counts'),
    'kinds': ('gt_kinds', 'object_counts'),
    'areas': ('gt_areas', 'object_counts'),
}


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
    coco_ids: Sequence[int | str] | None = None  # the images' ids in their own json file of COCO


def areas_of(results):
    """Returns each image's areas [G] float64 of the ground truth, by default of its boxes."""
    if results.gt_areas is not None:
        return [np.asarray(areas, np.float64) for areas in results.gt_areas]
    return [area(boxes) for boxes in results.gt_boxes]


def save(path, results):
    """Writes results to an .npz file, whole or not at all.

    Raises InputError where they do not fit together or the file cannot be written.
    """
    _check(results, path)
    arrays = {}
    for name in PLAIN:
        dtype, shape = MEMBERS[name]
        if (value := getattr(results, name)) is not None:
            arrays[name] = np.array(value, dtype).reshape(shape)
    for name, (field, counts) in ROWS.items():
        if (rows := getattr(results, field)) is not None:
            arrays[name] = _joined(rows, *MEMBERS[name])
            arrays[counts] = np.array([len(own) for own in rows], np.int64)
    if results.coco_ids is not None:
        arrays['coco_ids'] = np.array(list(map(json.dumps, results.coco_ids)), 'U')
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_atomically(path, file.getvalue())


def load(path):
    """Returns the Results of a file that save wrote; raises InputError for any other."""
    try:
        arrays = read_npz(path, MEMBERS, OPTIONAL)
        fields = {name: arrays[name].tolist() for name in PLAIN if name in arrays}
        fields['sizes'] = arrays['sizes']
        if 'coco_ids' in arrays:
            fields['coco_ids'] = list(map(json.loads, arrays['coco_ids'].tolist()))
        for name, (field, counts) in ROWS.items():
            if name in arrays:
                fields[field] = _split(arrays, name, counts)
    except DAMAGED as error:
        what = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise InputError(f'{path}: not a whole file of proposal results ({what})') from error
    results = Results(**fields)
    _check(results, path)
    return results


def to_coco(results, own=None):
    """Returns (instances, results) as COCO's json files hold them: a dict and a list.

    own is the content of the json file that the images came from: its entries are the instances,
    and its first category that of the results, which say nothing of categories. Without it all is
    of one category 1, and an image's id, where there is no coco_id, its image_id without extension
    where all of them are different whole numbers, else its position from 1. COCO has no difficult
    objects: they are crowds here, which no evaluator counts, with a `difficult` that from_coco
    understands.
    """
    ids = results.coco_ids
    ids = _coco_ids(results.image_ids) if ids is None else ids
    instances = _of_images(own, ids) if own else _instances(results, ids)
    category = next(iter(instances.get('categories') or ()), {}).get('id', 1)
    entries = [
        {'image_id': image_id, 'category_id': category, 'bbox': bbox, 'score': float(score)}
        for image_id, boxes, scores in zip(ids, results.proposals, results.scores, strict=True)
        for bbox, score in zip(_corners_to_bbox(boxes), scores, strict=True)
    ]
    return instances, entries


def _of_images(content, ids):
    """Returns an instances json with the entries of these images only, each as it is there."""
    ids = set(ids)
    return content | {
        'images': [entry for entry in content['images'] if entry['id'] in ids],
        'annotations': [entry for entry in content['annotations'] if entry['image_id'] in ids],
    }


def _instances(results, ids):
    """Returns the instances json of results' ground truth."""
    named = zip(ids, results.image_ids, np.asarray(results.sizes, int).tolist(), strict=True)
    images = [{'id': i, 'file_name': name, 'height': h, 'width': w} for i, name, (h, w) in named]
    annotations = []
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
    categories = [{'id': 1, 'name': 'object'}]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def from_coco(instances, results, *, dataset='', step=0):
    """Returns the Results, in float64, of COCO's instances and results: paths or parsed content.

    No annotation is left out or clipped. Proposals rank by score; annotations, and results of equal
    scores, by category, then in the file's order, as in COCOeval. Categories and COCO's `ignore`
    change nothing else. An image_id is the file name, or the id where there is none. Raises
    InputError naming the entry that cannot be used.
    """
    positions = {}

    def image(entry):
        positions[entry['id']] = len(positions)
        size = np.array([int(entry['height']), int(entry['width'])], np.int64)
        return str(entry.get('file_name', entry['id'])), size

    def row(entry):  # the position of its image, category, x0, y0, x1, y1
        x, y, width, height = map(float, entry['bbox'])
        category = float(entry.get('category_id', 0))
        return positions[entry['image_id']], category, x, y, x + width, y + height

    def annotation(entry):
        kind = CROWD if entry.get('iscrowd') else OBJECT
        kind = DIFFICULT if entry.get('difficult') else kind
        _, _, x0, y0, x1, y1 = own = row(entry)
        return *own, kind, float(entry.get('area', (x1 - x0) * (y1 - y0)))

    def result(entry):
        return *row(entry), -float(entry['score'])

    content, where = _parsed(instances, 'instances')
    images = _each(content, 'images', where, image)
    if len(positions) != len(images):
        raise InputError(f'{where}: two images of one id; the file cannot be used')
    objects = np.array(_each(content, 'annotations', where, annotation), np.float64).reshape(-1, 8)
    content, where = _parsed(results, 'results')
    found = _each({'results': content}, 'results', where, result)
    proposals = np.array(found, np.float64).reshape(-1, 7)
    objects = _by_image(objects, len(images), objects[:, 1])
    proposals = _by_image(proposals, len(images), proposals[:, 6], proposals[:, 1])
    read = Results(
        dataset=dataset or Path(where).stem,
        step=step,
        image_ids=[name for name, _ in images],
        sizes=np.array([size for _, size in images], np.int64).reshape(-1, 2),
        proposals=[rows[:, 2:6] for rows in proposals],
        scores=[-rows[:, 6] for rows in proposals],
        gt_boxes=[rows[:, 2:6] for rows in objects],
        gt_kinds=[rows[:, 6].astype(np.int32) for rows in objects],
        gt_areas=[rows[:, 7] for rows in objects],
        coco_ids=list(positions),
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
    ids = range(images) if results.coco_ids is None else results.coco_ids
    if len(ids) != images or not all(type(each) in (int, str) for each in ids):
        refuse('coco_ids are not one whole number or string for each image')
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
        if len(boxes) * len(gt_boxes) > PAIRS:
            refuse(f'more than {PAIRS} pairs of a proposal and an object', i)
        if not np.all(np.isfinite(scores)) or np.any(np.asarray(scores)[1:] > scores[:-1]):
            refuse('scores are not finite or rise, so the proposals are not ranked', i)
        if not np.all(np.isin(kinds, (OBJECT, DIFFICULT, CROWD))):
            refuse('kinds are 1 object, 2 difficult or 3 crowd', i)
        if len(size) != len(kinds) or not np.all(np.isfinite(size)):
            refuse('areas are not one finite number for each object', i)


def _split(arrays, name, counts):
    """Returns the rows of each image; raises ValueError where their numbers do not add up."""
    # In Python's integers: hostile counts must not wrap around to the right sum.
    values = arrays[counts].tolist()
    if min(values, default=0) < 0 or sum(values) != len(arrays[name]):
        raise ValueError(f'{counts} do not add up to the rows of {name}')
    return np.split(arrays[name], np.cumsum(values, dtype=np.int64))[:-1]


def _joined(rows, dtype, shape):
    """Returns the rows of all images, floats as wide as the widest."""
    rows = [np.asarray(own) for own in rows]
    if np.dtype(dtype).kind == 'f':
        dtype = np.result_type(dtype, *(own.dtype for own in rows if len(own)))
    return np.concatenate([np.zeros((0, *shape[1:]), dtype), *rows]).astype(dtype)


def _by_image(table, images, *keys):
    """Returns the rows of each image, whose position is the first column, sorted by keys."""
    position = table[:, 0].astype(int)
    order = np.lexsort((*keys[::-1], position))
    return np.split(table[order], np.cumsum(np.bincount(position, minlength=images)))[:-1]


def _coco_ids(image_ids):
    try:
        numbers = [int(PurePath(image_id).stem) for image_id in image_ids]
    except ValueError:
        numbers = []
    different = len(set(numbers)) == len(image_ids) and min(numbers, default=0) >= 0
    return numbers if different else list(range(1, len(image_ids) + 1))


def _corners_to_bbox(boxes):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _parsed(source, name):
    """Returns (content, its name in messages) of a json file or of its parsed content."""
    if not isinstance(source, str | Path):
        return source, name
    try:
        return read_json(source, MOST_ROWS), source
    except (OSError, ValueError) as error:
        raise InputError(f'{source}: not a json file ({error})') from error


def _each(content, name, where, read):
    """Returns read(entry) of each entry of a list; an error that an entry causes names it."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f'{where}: no list of {name}, as COCO writes it')
    rows = []
    for number, entry in enumerate(entries):
        try:
            rows.append(read(entry))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what, reason = f'{name[:-1]} number {number}', f'{type(error).__name__}: {error}'
            raise InputError(f'{where}: {what} cannot be used ({reason})') from error
    return rows
