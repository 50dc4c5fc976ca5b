"""Annotation files are read a second time: each kind of fault of a reader is found by it."""

import json

import numpy as np
import pytest
from data_files import coco_content, voc_annotation, write_coco, write_voc, write_yolo

from rpn_jax.data.records import Kind, record_of
from rpn_jax.data.sources.coco import coco
from rpn_jax.data.sources.voc import voc
from rpn_jax.data.sources.yolo import yolo
from rpn_jax.diagnosis.second_reading import differences

BOX = '<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>'


@pytest.fixture(params=['voc', 'coco', 'yolo'])
def source(request, tmp_path):
    if request.param == 'voc':
        return voc('train', path=write_voc(tmp_path))
    if request.param == 'yolo':
        return yolo('train', path=write_yolo(tmp_path))
    return coco('train2017', path=write_coco(tmp_path))


def changed(source, **changes):
    """Returns the source with another record in the place of that with most boxes."""
    position = int(np.argmax([len(record.boxes) for record in source.records]))
    records = list(source.records)
    record = records[position]
    values = {'boxes': record.boxes, 'kind': record.kind}
    values |= {name: change(values[name]) for name, change in changes.items()}
    other = record_of(record.image_id, record.size, **values)
    records[position] = other._replace(coco_id=record.coco_id)
    return source._replace(records=records)


def test_a_right_reading_passes(source):
    assert differences(source) == (len(source.records), [])


@pytest.mark.parametrize(
    'changes',
    [
        {'boxes': lambda b: b[:-1], 'kind': lambda k: k[:-1]},  # one is lost
        {'boxes': lambda b: b[:0], 'kind': lambda k: k[:0]},  # none is seen
        {'boxes': lambda b: b + 1},  # corners count from 1
        {'boxes': lambda b: b[:, [1, 0, 3, 2]]},  # x and y are swapped
        # Difficult ones and crowds are objects; YOLO has none of them: there objects are crowds.
        {'kind': lambda k: np.full_like(k, Kind.OBJECT if k.max() > 1 else Kind.CROWD)},
    ],
)
def test_a_fault_of_a_reader_is_found(source, changes):
    compared, sentences = differences(changed(source, **changes))
    assert compared == len(source.records) and len(sentences) == 1
    assert 'its annotation file' in sentences[0]


def test_boxes_that_are_read_nowhere_are_found(tmp_path):
    folder = write_voc(tmp_path)
    source = voc('train', path=folder)
    text, file = voc_annotation((60, 80), ((5, 6, 40, 50), 0)), folder / 'Annotations/000000.xml'
    for lost in (BOX, f'<item>{BOX}</item>', f'<outputs><object>{BOX}</object></outputs>'):
        file.write_text(text.replace('</object>', f'{lost}</object>'))
        assert len(differences(source)[1]) == 1
    part = f'<part>{BOX}</part></object><robndbox><cx>3</cx></robndbox>'
    file.write_text(text.replace('</object>', part))
    assert differences(source)[1] == []


def test_annotations_of_other_images_are_found(tmp_path):
    folder = write_coco(tmp_path)
    source = coco('train2017', path=folder)
    images = [
        entry | {'file_name': f'other/{entry["id"]}.jpg'} for entry in coco_content()['images']
    ]
    other = folder / 'other.json'
    annotations = [entry | {'id': [1]} for entry in coco_content()['annotations']]  # not used
    content = coco_content() | {'images': images, 'annotations': annotations}
    other.write_text(json.dumps(content))
    assert len(differences(source._replace(annotations=(other,)))[1]) == 1
