"""COCO folders: boxes, crowds and files are read as COCO means them; the rest is refused."""

import json
import re

import numpy as np
import pytest
from data_files import COCO_SIZES, coco_box, coco_content, coco_image, write_coco

from rpn_jax.data.records import CLIPPED, UNSIZED
from rpn_jax.data.sources.coco import AREALESS, EMPTY, TO_IGNORE, UNSAID, coco, parse
from rpn_jax.errors import InputError

BOXLESS, OUTSIDE = 'object without a box', 'box outside its image'
NOT_A_NUMBER, UNLISTED = 'annotation with what is not a number', 'annotation of an unlisted image'
WHOLE = coco_content()


@pytest.fixture
def folder(tmp_path):
    return write_coco(tmp_path / 'coco')


@pytest.fixture
def file(tmp_path):
    return tmp_path / 'instances.json'


def test_records_are_the_files_images_in_order(folder):
    source = coco('train2017', path=folder)
    assert source.name == 'coco coco train2017'
    assert [r.image_id for r in source.records] == [f'{key:012}.jpg' for key in COCO_SIZES]
    assert [r.size for r in source.records] == list(COCO_SIZES.values())
    first, second, third = source.records
    np.testing.assert_array_equal(
        first.boxes, [[5.5, 6, 35.5, 46], [0, 0, 80, 60], [10, 20, 13, 24]]
    )
    assert first.boxes.dtype == np.float32 and first.kind.tolist() == [1, 3, 1]
    assert second.boxes.shape == third.boxes.shape == (0, 4)  # images without objects are legal
    assert [r.remarks for r in source.records] == [(), (EMPTY,), ()]
    assert [source.read(i).shape[:2] for i in range(3)] == list(COCO_SIZES.values())


def test_pictures_and_annotations_may_lie_elsewhere(folder, tmp_path, file):
    pictures = tmp_path / 'pictures'
    (folder / 'train2017').rename(pictures)
    (pictures / 'a').mkdir()
    (pictures / '000000000007.jpg').rename(pictures / 'a/b.jpg')
    images = [coco_image(7, file_name='a/b.jpg'), *WHOLE['images'][1:]]
    file.write_text(json.dumps(WHOLE | {'images': images}))
    source = coco('x', path=folder, images=str(pictures), annotations=str(file))
    assert [source.read(i).shape[:2] for i in range(3)] == list(COCO_SIZES.values())


def test_boxes_a_little_outside_are_clipped_and_classes_go_with_their_boxes(file):
    boxes = [
        coco_box(7, [-0.5, 59, 81, 1.9], category_id=5),
        coco_box(7, [1, 2, 3, 0], category_id=5),  # empty
        coco_box(7, [1, 2, 3, 4], category_id=[5]),
    ]
    classes = [{'id': 5, 'name': 'owl'}]
    file.write_text(json.dumps(WHOLE | {'annotations': boxes, 'categories': classes}))
    (record, *_), problems, categories = parse(file)
    np.testing.assert_array_equal(record.boxes, [[0, 59, 80, 60], [1, 2, 4, 6]])
    assert problems == [] and record.remarks == (CLIPPED, EMPTY)
    assert categories == {5: 'owl'} and record.classes == ('owl', '')


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        (b'{"images": [', 'not a COCO file of images and annotations'),
        (b'\xff\xfe\x00\x12', 'not a COCO file'),
        (b'[' * 100_000, 'not a COCO file'),
        ([1, 2], 'not a COCO file'),
        ({'annotations': []}, 'KeyError'),
        (WHOLE | {'images': []}, 'no images'),
        (b'{"images": [{"id": 7, "id": 3}], "annotations": []}', "has the key 'id' twice"),
        (WHOLE | {'images': {}}, 'images and annotations are lists'),
        (WHOLE | {'images': [coco_image(7), coco_image(7)]}, 'image 7 is there twice'),
        (WHOLE | {'images': [coco_image(7, id=True)]}, 'image True has id = True, neither'),
        *(
            (WHOLE | {'images': [coco_image(7, file_name=name)]}, f'image 7 has file_name {name!r}')
            for name in ('../x.jpg', '/etc/passwd', 'a/../../x', 'a\\..\\..\\b.jpg', 'a\0.jpg')
        ),
        *(
            (WHOLE | {'images': [coco_image(7, file_name=name)]}, 'image 7 has no file_name')
            for name in ('', None, 5)
        ),
        *(
            (WHOLE | {'annotations': [entry]}, f'annotation {name} has image_id = ')
            for name, entry in (
                ('number 0', {'bbox': [1, 2, 3, 4]}),
                ('10', coco_box(7.5, [1, 2, 3, 4])),
                ('10', coco_box(float('inf'), [1, 2, 3, 4])),
            )
        ),
        (WHOLE | {'annotations': [17]}, 'annotation number 0 is no json object'),
    ],
    ids=lambda value: repr(value)[-30:],
)
def test_a_wrong_file_is_refused_by_its_entry(file, content, complaint):
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError, match=re.escape(complaint)) as error:
        parse(file)
    assert str(error.value).startswith(f'{file}: ') and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('entry', 'kind', 'complaint'),
    [
        ({'image_id': 7}, BOXLESS, 'annotation number 0 has no bbox of four numbers'),
        (coco_box(7, [1, 2, 3]), BOXLESS, 'annotation 6 has no bbox'),
        (coco_box(7, '1234'), BOXLESS, ''),
        (coco_box(7, [1, 2, '3', 4]), BOXLESS, ''),
        (coco_box(7, [1, 2, True, 4]), BOXLESS, ''),
        ({'image_id': 7, 'bbox': [1, 2, 10**400, 4]}, BOXLESS, ''),
        ({'image_id': 7, 'bbox': [1, 2, float('nan'), 4]}, NOT_A_NUMBER, 'not finite'),
        (coco_box(7, [1, 2, 3, 4], 'true'), NOT_A_NUMBER, "iscrowd = 'true'"),
        (coco_box(7, [1, 2, 3, 4], []), NOT_A_NUMBER, 'iscrowd = []'),
        (coco_box(7, [10, 10, -3, 5]), 'box inverted', 'annotation 22 is inverted: bbox [10, 10,'),
        (coco_box(7, [70, 10, 12, 5]), OUTSIDE, 'annotation 97 lies outside the 80 x 60 image'),
        (coco_box(12, [1, 1, 99, 9]), OUTSIDE, "64 x 64 image by 36 pixels (on_bad='clip'"),
        (coco_box(99, [1, 1, 2, 2]), UNLISTED, 'annotation 6 is of image 99'),
        (coco_box('7', [1, 1, 2, 2]), UNLISTED, "annotation 6 is of image '7'"),
    ],
)
def test_a_wrong_annotation_is_a_problem_of_its_image(file, entry, kind, complaint):
    file.write_text(json.dumps(WHOLE | {'annotations': [entry, *WHOLE['annotations']]}))
    records, (problem,), _ = parse(file)
    position = -1 if kind == UNLISTED else list(COCO_SIZES).index(int(entry['image_id']))
    assert (problem.kind, problem.position) == (kind, position)
    assert problem.message.startswith(f'{file}: ') and complaint in problem.message
    assert '\n' not in problem.message
    assert [len(record.boxes) for record in records] == [3, 0, 0]  # the others are whole


@pytest.mark.parametrize('area', [None, True, 10**400])
def test_ids_and_areas_are_kept_as_they_are(file, area):
    ids = [10**19 + 7, 'a/7', 0]
    images = [coco_image(key, id=own) for key, own in zip(COCO_SIZES, ids, strict=True)]
    boxes = [coco_box(own, [1, 2, 3, 4]) for own in ids]
    boxes[1] = boxes[1] | {'area': area}
    file.write_text(json.dumps(WHOLE | {'images': images, 'annotations': boxes}))
    records, problems, _ = parse(file)
    assert problems == [] and [record.coco_id for record in records] == ids
    assert [record.areas.tolist() for record in records] == [[5], [12], [5]]
    assert [record.remarks for record in records] == [(), (AREALESS,), ()]


def test_what_is_not_said_is_a_remark(file):
    boxes = [coco_box(7, [1, 2, 3, 4], crowd=None), coco_box(3, [1, 2, 3, 4], ignore=1)]
    file.write_text(json.dumps(WHOLE | {'annotations': boxes}))
    records, problems, _ = parse(file)
    assert problems == [] and [record.kind.tolist() for record in records] == [[1], [1], []]
    assert [record.remarks for record in records] == [(UNSAID,), (TO_IGNORE,), ()]


@pytest.mark.parametrize('sides', [{'height': 0}, {'width': None}, {'width': '', 'height': ''}])
def test_a_size_that_is_missing_is_that_of_the_file(folder, file, sides):
    images = [coco_image(7, **sides), coco_image(3, file_name='gone.jpg', **sides)]
    file.write_text(json.dumps(WHOLE | {'images': images, 'annotations': WHOLE['annotations']}))
    records, (problem,), _ = parse(file, folder / 'train2017')
    assert records[0].size == COCO_SIZES[7] and records[0].remarks == (UNSIZED,)
    assert problem.position == 1 and 'gone.jpg: no such image' in problem.message


@pytest.mark.parametrize('width', [-80, 10**400, 80.5, True, 'wide', [80]])
def test_a_wrong_size_is_a_problem_of_its_image(file, width):
    file.write_text(json.dumps(WHOLE | {'images': [coco_image(7, width=width)], 'annotations': []}))
    _, (problem,), _ = parse(file)
    assert problem.position == 0 and 'image 7 has height 60 and width' in problem.message


def test_file_names_may_be_absolute_or_of_windows(folder, file):
    pictures = folder / 'train2017'
    (pictures / 'a').mkdir()
    (pictures / '000000000007.jpg').rename(pictures / 'a/b.jpg')
    (pictures / '000000000003.jpg').rename(pictures / 'a\\c.jpg')
    names = 'a\\b.jpg', 'a\\c.jpg', f'{pictures}/000000000012.jpg'
    images = [coco_image(key, file_name=n) for key, n in zip(COCO_SIZES, names, strict=True)]
    file.write_text(json.dumps(WHOLE | {'images': images}))
    source = coco('x', path=folder, images=str(pictures), annotations=str(file))
    assert [source.read(i).shape[:2] for i in range(3)] == list(COCO_SIZES.values())
    assert [r.image_id for r in source.records] == ['a/b.jpg', 'a\\c.jpg', '000000000012.jpg']


def test_what_is_not_there_is_refused_by_its_path(folder):
    with pytest.raises(InputError, match='instances_val2017.json: no such file; path'):
        coco('val2017', path=folder)
    (folder / 'train2017').rename(folder / 'elsewhere')
    with pytest.raises(InputError, match='train2017: no such folder; images'):
        coco('train2017', path=folder)
