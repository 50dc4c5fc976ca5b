"""COCO folders: boxes, crowds and files are read as COCO means them; the rest is refused."""

import json
import re

import numpy as np
import pytest
from data_files import COCO_SIZES, coco_box, coco_content, coco_image, write_coco

from rpn_jax.data.records import CLIPPED
from rpn_jax.data.sources.coco import EMPTY, coco, parse
from rpn_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return write_coco(tmp_path / 'coco')


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


def test_pictures_and_annotations_may_lie_elsewhere(folder, tmp_path):
    pictures, labels = tmp_path / 'pictures', tmp_path / 'mine.json'
    (folder / 'train2017').rename(pictures)
    (folder / 'annotations' / 'instances_train2017.json').rename(labels)
    (pictures / 'a').mkdir()
    (pictures / '000000000007.jpg').rename(pictures / 'a/b.jpg')
    edited = coco_content()
    edited['images'][0]['file_name'] = 'a/b.jpg'
    labels.write_text(json.dumps(edited))
    source = coco('x', path=folder, images=str(pictures), annotations=str(labels))
    assert [source.read(i).shape[:2] for i in range(3)] == list(COCO_SIZES.values())


def test_a_box_a_little_outside_is_clipped(tmp_path):
    file = tmp_path / 'x.json'
    file.write_text(
        json.dumps(coco_content() | {'annotations': [coco_box(7, [-0.5, 59, 81, 1.9])]})
    )
    records, problems = parse(file)
    np.testing.assert_array_equal(records[0].boxes, [[0, 59, 80, 60]])
    assert problems == [] and records[0].remarks == (CLIPPED,)


def wrong():
    """Yields what is wrong with an instances file, the file and the complaint."""
    whole = coco_content()
    yield 'no json', b'{"images": [', 'not a COCO file of images and annotations'
    yield 'not text', b'\xff\xfe\x00\x12', 'not a COCO file'
    yield 'deep', b'[' * 100_000, 'not a COCO file'
    yield 'a list', [1, 2], 'not a COCO file'
    yield 'captions', {'annotations': []}, 'KeyError'
    yield 'no annotations', {'images': whole['images']}, 'annotations'
    yield 'no images', whole | {'images': []}, 'no images'
    yield 'twins', whole | {'images': [coco_image(7), coco_image(7)]}, 'two images of one id'
    yield 'no size', whole | {'images': [coco_image(7, height=None)]}, 'image 7 has no height'
    for title, side in (('empty', 0), ('endless', 10**400)):
        yield title, whole | {'images': [coco_image(7, width=side)]}, 'image 7 does'
    for name in ('../x.jpg', '/etc/passwd', 'a/../../x', '', None, 5, 'a\\b.jpg', 'a\0.jpg'):
        images = [coco_image(7, file_name=name), *(coco_image(key) for key in (3, 12))]
        yield f'name {name!r}', whole | {'images': images}, 'image 7: file_name'


@pytest.mark.parametrize(
    ('file', 'complaint'), [pytest.param(*rest, id=title) for title, *rest in wrong()]
)
def test_a_wrong_file_is_refused_by_its_entry(tmp_path, file, complaint):
    path = tmp_path / 'instances.json'
    path.write_bytes(file if isinstance(file, bytes) else json.dumps(file).encode())
    with pytest.raises(InputError, match=re.escape(complaint)) as error:
        parse(path)
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)


BOXLESS, OUTSIDE = 'object without a box', 'box outside its image'
NOT_A_NUMBER, UNLISTED = 'annotation with what is not a number', 'annotation of an unlisted image'


@pytest.mark.parametrize(
    ('entry', 'kind', 'complaint'),
    [
        ({'image_id': 7}, BOXLESS, 'annotation number 0 has no bbox of four numbers'),
        (coco_box(7, [1, 2, 3]), BOXLESS, 'annotation 6 has no bbox'),
        (coco_box(7, [1, 2, 3, 4, 5]), BOXLESS, ''),
        (coco_box(7, '1234'), BOXLESS, ''),
        ({'image_id': 7, 'bbox': [1, 2, 3, 'four']}, BOXLESS, ''),
        ({'image_id': 7, 'bbox': [1, 2, 10**400, 4]}, BOXLESS, ''),
        ({'image_id': 7, 'bbox': [1, 2, float('nan'), 4]}, NOT_A_NUMBER, 'not finite'),
        ({'image_id': 7, 'bbox': [1, 2, 1e999, 4]}, NOT_A_NUMBER, 'not finite'),
        (coco_box(7, [1, 2, 3, 4], 'true'), NOT_A_NUMBER, "iscrowd = 'true'"),
        (coco_box(7, [10, 10, -3, 5]), 'box inverted', 'annotation 22 is inverted: bbox [10, 10,'),
        (coco_box(7, [70, 10, 12, 5]), OUTSIDE, 'annotation 97 lies outside the 80 x 60 image'),
        (coco_box(7, [90, 10, 5, 5]), OUTSIDE, ''),
        (coco_box(7, [-2, 10, 12, 5]), OUTSIDE, ''),
        (coco_box(7, [5, 50, 30, 30]), OUTSIDE, ''),  # x and y swapped
        (coco_box(7, [40, 30, 70, 55]), OUTSIDE, ''),  # corners for sides
        (coco_box('12', [1, 1, 99, 9]), OUTSIDE, '64 x 64'),
        (coco_box(99, [1, 1, 2, 2]), UNLISTED, 'annotation 6 is of image 99'),
        ({'bbox': [1, 2, 3, 4]}, UNLISTED, 'annotation number 0 has no image_id'),
        (coco_box(7.5, [1, 2, 3, 4]), UNLISTED, ''),
        (coco_box(float('inf'), [1, 2, 3, 4]), UNLISTED, ''),
        (17, UNLISTED, 'annotation number 0'),
    ],
)
def test_a_wrong_annotation_is_a_problem_of_its_image(tmp_path, entry, kind, complaint):
    path = tmp_path / 'instances.json'
    whole = coco_content()
    path.write_text(json.dumps(whole | {'annotations': [entry, *whole['annotations']]}))
    records, (problem,) = parse(path)
    position = -1 if kind == UNLISTED else list(COCO_SIZES).index(int(entry['image_id']))
    assert (problem.kind, problem.position) == (kind, position)
    assert problem.message.startswith(f'{path}: ') and complaint in problem.message
    assert '\n' not in problem.message
    assert [len(record.boxes) for record in records] == [3, 0, 0]  # the others are whole


def test_what_is_not_there_is_refused_by_its_path(folder):
    with pytest.raises(InputError, match='instances_val2017.json: no such file; path'):
        coco('val2017', path=folder)
    (folder / 'train2017' / '000000000012.jpg').unlink()
    with pytest.raises(InputError, match='000000000012.jpg: no such image; fetch it or leave it'):
        coco('train2017', path=folder).read(list(COCO_SIZES).index(12))
    (folder / 'train2017').rename(folder / 'elsewhere')
    with pytest.raises(InputError, match='train2017: no such folder; images'):
        coco('train2017', path=folder)
