"""Categories to learn from: the objects of others are left out, and nothing else changes."""

import json

import numpy as np
import pytest
from data_files import coco_box, coco_content, write_coco, write_voc
from helpers import tiny_config

from rpn_jax import data
from rpn_jax.data import categories
from rpn_jax.data.records import Kind, Source, record_of, select
from rpn_jax.data.sources import coco
from rpn_jax.diagnosis import second_reading
from rpn_jax.errors import InputError
from rpn_jax.training import data_identity

NAMES = {1: 'cat', 3: 'traffic light', 'x': '7', 7: 'owl'}


def source_of(*classes):
    """Returns a Source of images with a box for each of these classes; None has no categories."""
    records = []
    for number, names in enumerate(classes):
        count = len(names or ())
        boxes = np.arange(4.0 * count).reshape(count, 4)
        record = record_of(f'{number}', (99, 99), boxes, [Kind.OBJECT, Kind.CROWD][:count])
        records.append(record._replace(classes=names, areas=np.arange(count) + 0.5))
    return Source('drawn', records, lambda _: None, categories=NAMES, notes=('a note',))


@pytest.mark.parametrize(
    ('chosen', 'boxes'),
    [
        (('cat',), [1, 0, 1]),
        (('cat', 'owl'), [2, 0, 1]),
        ((1,), [1, 0, 1]),
        (('1', 3), [1, 0, 2]),
        (('7',), [0, 0, 0]),  # a name before an id
        ((7,), [0, 0, 0]),
        (('x',), [0, 0, 0]),
    ],
)
def test_objects_of_other_categories_are_left_out(chosen, boxes):
    source = source_of(('cat', 'owl'), (), ('traffic light', 'cat'))
    if not any(boxes):
        with pytest.raises(
            InputError, match=r"^categories: no object of drawn is a '7'; there are"
        ):
            categories.only(source, chosen)
        return
    found = categories.only(source, chosen)
    assert [len(record.boxes) for record in found.records] == boxes
    for own, whole in zip(found.records, source.records, strict=True):
        keep = [whole.classes.index(name) for name in own.classes]
        for key in ('boxes', 'kind', 'areas'):
            np.testing.assert_array_equal(getattr(own, key), getattr(whole, key)[keep])
    assert found.unfiltered == source.records and found.chosen[0] == 'cat'
    assert found.notes[0] == 'a note' and f': {sum(boxes)} objects are cat' in found.notes[1]
    assert found.notes[1].endswith(f'; {4 - sum(boxes)} others are left out')
    two = select(found, [2, 0])
    assert [len(record.boxes) for record in two.records] == [boxes[2], boxes[0]]
    assert [len(record.boxes) for record in two.unfiltered] == [2, 2]


@pytest.mark.parametrize(
    ('classes', 'chosen', 'complete', 'complaint'),
    [
        ([('cat',)], ('cot',), False, r"no object of drawn is a 'cot'; did you mean cat\?$"),
        ([('cat',)], ('cat', 'owl'), True, "no object of drawn is a 'owl'; there are cat$"),
        ([('cat',)], ('cat', ''), False, "'' names no category"),
        ([('',), ()], ('cat',), False, "is a 'cat'; there are none$"),
        ([tuple('abcdefghijklmnopqrstuvwxyz')[:2]] * 13, ('cat',), False, 'there are a, b$'),
        ([None, None], ('cat',), False, 'drawn has none; leave categories empty$'),
    ],
)
def test_a_category_that_no_object_has_is_refused(classes, chosen, complete, complaint):
    with pytest.raises(InputError, match=complaint):
        categories.only(source_of(*classes), chosen, complete=complete)


def test_a_category_may_be_missing_where_there_are_others_of_the_chosen(caplog):
    found = categories.only(source_of(('cat', 'owl')), ('cat', 'dog'))
    assert caplog.messages == ['categories: drawn has no object of dog']
    assert found.name == 'drawn (cat only)'
    assert found.notes[1] == 'drawn: 1 objects are cat; 1 others are left out'


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of COCO with objects of two categories, a crowd and an empty box."""
    folder = write_coco(tmp_path / 'coco')
    content = coco_content() | {'categories': [{'id': 5, 'name': 'owl'}, {'id': 9, 'name': 'cat'}]}
    for annotation, category in zip(content['annotations'], (5, 5, 9, 9), strict=True):
        annotation['category_id'] = category
    content['annotations'].append(coco_box(12, [1, 2, 30, 40], category_id=[5]))
    (folder / 'annotations/instances_train2017.json').write_text(json.dumps(content))
    return folder


def opened(folder, source, split, chosen):
    changes = {'source': source, 'path': str(folder), 'categories': chosen}
    config = tiny_config(**{f'data__{key}': value for key, value in changes.items()})
    return data.open_split(data.options(**config.data), split)


def test_coco_has_names_and_ids_and_its_file_says_the_same(folder):
    by_name, by_id = (opened(folder, 'coco', 'train2017', (each,)) for each in ('cat', 9))
    assert by_name.notes == by_id.notes
    assert [record.kind.tolist() for record in by_name.records] == [[Kind.CROWD, 1], [], []]
    assert second_reading.differences(by_name) == (3, [])
    assert by_name.name == 'coco coco train2017 (cat only)'
    every = opened(folder, 'coco', 'train2017', ())
    assert (
        data_identity.summary({'eval': every})['evaluation data'].split('hash')[1]
        == (data_identity.summary({'eval': by_name})['evaluation data'].split('hash')[1])
    )
    entries = coco.entries(by_name)
    assert [entry['id'] for entry in entries['categories']] == [9, 5]  # results have the first
    assert [entry['category_id'] for entry in entries['annotations']] == [9, 9]
    every = coco.entries(opened(folder, 'coco', 'train2017', ()))
    assert len(every['annotations']) == 5 and every['images'] == entries['images']


def test_voc_has_names(tmp_path):
    folder = write_voc(tmp_path / 'voc')
    file = folder / 'Annotations/000002.xml'
    file.write_text(file.read_text().replace('cat', ' traffic light ', 1))
    source = opened(folder, 'voc', 'train', ('traffic light',))
    assert [len(record.boxes) for record in source.records] == [0, 0, 1, 0]
    assert second_reading.differences(source) == (4, [])
    with pytest.raises(InputError, match=r'did you mean cat\?'):
        opened(folder, 'voc', 'train', ('cats',))


def test_a_category_without_a_name_is_called_by_its_id(folder):
    file = folder / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    file.write_text(
        json.dumps(
            content | {'categories': [7, {'id': 5.0}, {'id': [5]}, {'id': 9, 'name': 'cat'}]}
        )
    )
    source = opened(folder, 'coco', 'train2017', (5,))
    assert coco.entries(source)['categories'][0] == {'id': 5.0}
    assert source.chosen == ('5',) and [len(r.boxes) for r in source.records] == [1, 0, 0]


def test_statistics_count_the_chosen_alone(folder):
    changes = {'source': 'coco', 'path': str(folder), 'categories': ('owl',)}
    options = tiny_config(**{f'data__{key}': value for key, value in changes.items()}).data
    source = data.open_split(data.options(**options), 'train2017', boxes=False)
    assert sum(len(record.boxes) for record in source.records) == 1


def test_drawn_scenes_have_none():
    with pytest.raises(InputError, match='categories: shapes/train has none'):
        opened('', 'shapes', 'train', ('cat',))
