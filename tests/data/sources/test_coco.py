"""COCO folders: boxes, crowds and files are read as COCO means them; the rest is refused."""

import json

import numpy as np
import pytest
from data_files import COCO_SIZES, coco_box, coco_content, coco_image, write_coco

from rpn_jax.data.records import CLIPPED
from rpn_jax.data.sources.coco import coco, parse
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
    assert [source.read(i).shape[:2] for i in range(3)] == list(COCO_SIZES.values())


def test_empty_boxes_are_left_out_and_counted(folder):
    remarks = [record.remarks for record in coco('train2017', path=folder).records]
    assert sum(remarks, ()) == ('box without width or height, left out',)


def test_pictures_and_annotations_may_lie_elsewhere(folder, tmp_path):
    pictures, labels = tmp_path / 'pictures', tmp_path / 'mine.json'
    (folder / 'train2017').rename(pictures)
    (folder / 'annotations' / 'instances_train2017.json').rename(labels)
    source = coco('x', path=folder, images=str(pictures), annotations=str(labels))
    assert len(source.records) == 3 and source.read(2).shape == (64, 64, 3)


def test_pictures_may_lie_in_folders_of_their_own(folder):
    place = folder / 'train2017'
    (place / 'a').mkdir()
    (place / '000000000007.jpg').rename(place / 'a' / 'b.jpg')
    edited = coco_content()
    edited['images'][0]['file_name'] = 'a/b.jpg'
    (folder / 'annotations' / 'instances_train2017.json').write_text(json.dumps(edited))
    assert coco('train2017', path=folder).read(0).shape == (60, 80, 3)


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
    yield 'captions', {'annotations': []}, 'not a COCO file .*KeyError'
    yield 'no annotations', {'images': whole['images']}, 'not a COCO file .*annotations'
    yield 'no images', whole | {'images': []}, 'no images'
    yield 'twins', whole | {'images': [coco_image(7), coco_image(7)]}, 'two images of one id'
    yield (
        'no size',
        whole | {'images': [coco_image(7, height=None)]},
        'image 7 has no height and width',
    )
    yield 'size of zero', whole | {'images': [coco_image(7, width=0)]}, 'image 7 does not have'
    for name in ('../x.jpg', '/etc/passwd', 'a/../../x', '', None, 5, 'a\\b.jpg', 'a\0.jpg'):
        yield (
            f'name {name!r}',
            whole | {'images': [coco_image(7, file_name=name)]},
            ('image 7: file_name .* leads out of the folder|of image 7, which|of image 3, which'),
        )
    for title, entry, complaint in [
        (
            'stranger',
            coco_box(99, [1, 1, 2, 2]),
            'annotation 6 is of image 99, which the file does not',
        ),
        ('no bbox', {'image_id': 7}, 'annotation number 0 has no bbox of four numbers'),
        ('no image', {'bbox': [1, 2, 3, 4]}, 'annotation number 0 has no image_id that is a whole'),
        ('three numbers', coco_box(7, [1, 2, 3]), 'no bbox of four numbers'),
        ('five numbers', coco_box(7, [1, 2, 3, 4, 5]), 'no bbox of four numbers'),
        ('words', {'image_id': 7, 'bbox': [1, 2, 3, 'four']}, 'no bbox of four numbers'),
        ('no entry', 17, 'annotation number 0'),
        ('not finite', {'image_id': 7, 'bbox': [1, 2, float('nan'), 4]}, 'bbox that is not finite'),
        ('infinite', {'image_id': 7, 'bbox': [1, 2, 1e999, 4]}, 'bbox that is not finite'),
        (
            'inverted',
            coco_box(7, [10, 10, -3, 5]),
            r'annotation 22 is inverted: bbox \[10, 10, -3, 5\]',
        ),
        (
            'outside',
            coco_box(7, [70, 10, 12, 5]),
            'annotation 97 lies outside the 80 x 60 image: bbox',
        ),
        ('far outside', coco_box(7, [90, 10, 5, 5]), 'lies outside'),
        ('left of it', coco_box(7, [-2, 10, 12, 5]), 'lies outside'),
    ]:
        yield title, whole | {'annotations': [entry]}, complaint


@pytest.mark.parametrize(
    ('file', 'complaint'), [pytest.param(*rest, id=title) for title, *rest in wrong()]
)
def test_a_wrong_file_is_refused_by_its_entry(tmp_path, file, complaint):
    path = tmp_path / 'instances.json'
    path.write_bytes(file if isinstance(file, bytes) else json.dumps(file).encode())
    with pytest.raises(InputError, match=complaint) as error:
        _, problems = parse(path)
        raise InputError(problems[0].message)  # of one annotation: the others may be whole
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)


def test_a_wrong_annotation_is_a_problem_of_its_image(folder):
    whole = coco_content()
    file = folder / 'annotations' / 'instances_train2017.json'
    entries = [
        coco_box(7, [10, 10, -3, 5]),
        *whole['annotations'],
        coco_box('12', [1, 1, 99, 9]),
        17,
    ]
    file.write_text(json.dumps(whole | {'annotations': entries}))
    problems = coco('train2017', path=folder).problems
    kinds = ['box inverted', 'box outside its image', 'annotation of an unlisted image']
    assert [problem.kind for problem in problems] == kinds
    keys = list(COCO_SIZES)
    assert [problem.position for problem in problems] == [keys.index(7), keys.index(12), -1]


def test_what_is_not_there_is_refused_by_its_path(folder):
    with pytest.raises(InputError, match='instances_val2017.json: no such file; path'):
        coco('val2017', path=folder)
    (folder / 'train2017' / '000000000012.jpg').unlink()
    with pytest.raises(InputError, match='000000000012.jpg: no such image; fetch it or leave it'):
        coco('train2017', path=folder).read(list(COCO_SIZES).index(12))
    (folder / 'train2017').rename(folder / 'elsewhere')
    with pytest.raises(InputError, match='train2017: no such folder; images'):
        coco('train2017', path=folder)
