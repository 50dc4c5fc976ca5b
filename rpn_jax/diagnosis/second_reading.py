"""Read annotation files a second time, by other code, and compare them with the records.

COCO's json is read by pycocotools, VOC's XML by a walk over every element named bndbox, YOLO's text
by NumPy.
"""

import contextlib
import io
import json
from pathlib import PurePath
from xml.etree import ElementTree

import numpy as np

from rpn_jax.data.records import OBJECT, with_all_categories
from rpn_jax.errors import InputError

NEAR = {'xmin': 1, 'ymin': 1, 'xmax': 0, 'ymax': 0}  # VOC counts near corners from 1
OFF = 0.01  # pixels that float32 may move a corner


def differences(source):
    """Returns (number of images compared, a sentence on each whose boxes differ from its file's).

    Compared are the number of an image's boxes, how many of them are neither difficult nor crowds,
    and their extent, clipped to the image. Images without annotation files are not compared.
    """
    kind = source.annotations[0].suffix.lower() if source.annotations else ''
    if kind not in ('.json', '.xml', '.txt'):
        return 0, []
    if kind == '.json':
        read_again = _of_coco(source)
    elif kind == '.xml':
        read_again = map(_of_voc, source.annotations)
    else:
        sizes = (record.size for record in source.records)
        read_again = map(_of_yolo, source.annotations, sizes)
    sentences = []
    for record, (boxes, are_objects) in zip(with_all_categories(source), read_again, strict=True):
        boxes = np.clip(np.reshape(boxes, (-1, 4)), 0, [*record.size[::-1]] * 2)
        here = len(record.boxes), int(np.sum(record.kind == OBJECT)), _extent(record.boxes)
        there = len(boxes), sum(are_objects), _extent(boxes)
        if here[:2] != there[:2] or np.abs(here[2] - there[2]).max() > OFF:
            mine, others = _described(*here), _described(*there)
            sentences.append(f'{record.image_id}: has {mine}, its annotation file {others}')
    return len(source.records), sentences


def _described(boxes, objects, extent):
    corners = ', '.join(f'{value:g}' for value in extent)
    return f'{boxes} boxes, {objects} of them objects, in ({corners})'


def _extent(boxes):
    """Returns the (x0, y0, x1, y1) that holds all boxes, zeros without any."""
    if not len(boxes):
        return np.zeros(4)
    return np.float64([*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]).round(2)


def _of_coco(source):
    """Yields the boxes of each record's id, as pycocotools finds them, and which are no crowds."""
    try:
        from pycocotools.coco import COCO
    except ModuleNotFoundError as error:
        raise InputError(f"{error}; it comes with pip install 'rpn_jax[train]'") from error
    content, coco = json.loads(source.annotations[0].read_text('utf-8-sig')), COCO()
    annotations = [entry | {'id': i} for i, entry in enumerate(content['annotations'])]
    coco.dataset = {'images': content['images'], 'annotations': annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        coco.createIndex()
    for record in with_all_categories(source):
        name = coco.loadImgs([record.coco_id])[0]['file_name'].replace('\\', '/')
        own = PurePath(name).name == PurePath(record.image_id).name
        entries = coco.imgToAnns.get(record.coco_id, ()) if own else ()
        entries = [entry for entry in entries if all(entry['bbox'][2:])]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (entry['bbox'] for entry in entries)]
        yield boxes, [not entry.get('iscrowd') for entry in entries]


def _of_voc(path):
    """Returns the boxes of every <bndbox> of a file that is in no <part>, and which are objects."""
    root = ElementTree.parse(path).getroot()
    in_parts = {*root.iterfind('object/part/bndbox')}
    boxes, are_objects = [], []
    for parent in root.iter():
        for box in parent:
            if box.tag.rpartition('}')[2].lower() == 'bndbox' and box not in in_parts:
                boxes.append([float(box.find(name).text) - near for name, near in NEAR.items()])
                difficult = (parent.findtext('difficult') or '').strip().lower()
                are_objects.append(difficult in ('', '0', 'false'))
    return boxes, are_objects


def _of_yolo(path, size):
    """Returns the boxes of a label file in an image of (height, width), and that all are objects.

    Those without width or height are left out.
    """
    text = path.read_text('utf-8-sig') if path.exists() else ''
    rows = [np.float64(line.split()[1:]) for line in text.splitlines() if line.strip()]
    # A box is the polygon of two opposite corners.
    points = [
        row.reshape(-1, 2) if len(row) > 4 else row[:2] + np.outer((-0.5, 0.5), row[2:])
        for row in rows
    ]
    boxes = [[*each.min(axis=0), *each.max(axis=0)] * np.tile(size[::-1], 2) for each in points]
    boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
    return boxes, [True] * len(boxes)
