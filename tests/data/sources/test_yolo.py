"""YOLO folders: shares of the image become pixels, in every layout that people have."""

import os
import re
import time

import numpy as np
import pytest
from data_files import YOLO_SIZE, encoded, turned_jpeg, write_yolo
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax import data
from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import CLIPPED, FAR
from rpn_jax.data.sources.yolo import EMPTY, UNLABELLED, parse, yolo
from rpn_jax.errors import InputError

NOT_A_NUMBER, OUTSIDE = 'annotation with what is not a number', 'box outside its image'
UNKNOWN = 'annotation of an unknown class'


@pytest.fixture
def folder(tmp_path):
    return write_yolo(tmp_path / 'birds')


def parsed(tmp_path, text, **keywords):
    (tmp_path / 'x.txt').write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(tmp_path / 'x.txt', YOLO_SIZE, **keywords)


def described(source):
    return [(r.image_id, r.size, r.boxes.tolist(), r.classes, r.remarks) for r in source.records]


def test_shares_become_pixels_and_polygons_their_extent(folder):
    source = yolo('train', path=folder)
    assert source.name == 'yolo birds train' and not source.problems
    assert described(source) == [
        ('0.jpg', (60, 80), [[30, 15, 50, 45]], ('cat',), ()),
        ('1.jpg', (60, 80), [], (), ()),
        ('2.jpg', (60, 80), [], (), (UNLABELLED,)),
        ('3.jpg', (60, 80), [[8, 12, 72, 45], [0, 0, 40, 30]], ('no', 'cat'), ()),
    ]
    assert source.records[3].boxes.dtype == np.float32
    np.testing.assert_array_equal(source.records[3].kind, [1, 1])
    assert source.read(3).shape == (60, 80, 3)
    assert dict(source.categories) == {0: 'cat', 1: 'no'}


@pytest.mark.parametrize(
    ('pictures', 'labels', 'keywords'),
    [
        ('{}/images', '{}/labels', {}),  # Roboflow's
        ('images/{}', 'images/{}', {}),  # beside the images
        ('a/{}', 'b/{}', {'images': 'a/train', 'annotations': 'b/train'}),
        ('a/images/{}', 'a/labels/{}', {'images': 'a/images/train'}),
        ('images/{}', 'b/{}', {'annotations': 'b/train'}),
    ],
)
def test_every_layout_gives_the_same(folder, tmp_path, pictures, labels, keywords):
    other = write_yolo(tmp_path / 'images' / 'birds', pictures, labels)
    keywords = {name: str(other / place) for name, place in keywords.items()}
    source = yolo('train', path=other, **keywords)
    assert described(source) == described(yolo('train', path=folder))


def test_a_list_of_images_gives_the_same_in_its_order(folder):
    names = [f'./images/train/{number}.jpg' for number in (3, 0, 2, 1)]
    (folder / 'some.txt').write_text('\n'.join(names))
    listed = yolo('some', path=folder)
    of_folder = yolo('train', path=folder)
    for name, record in zip(names, listed.records, strict=True):
        same = of_folder.records[int(name[-5])]
        assert record.image_id == name[2:]
        np.testing.assert_array_equal(record.boxes, same.boxes)
    assert [len(record.boxes) for record in listed.records] == [2, 1, 0, 0]


@pytest.mark.parametrize(
    'line',
    [
        '{folder}/images/train/0.jpg',
        'images\\train\\0.jpg',
        'data/images/train/0.jpg',  # CVAT's
        './images/train/0.jpg ',
    ],
)
def test_a_list_names_images_as_people_write_them(folder, line):
    (folder / 'some.txt').write_text(line.format(folder=folder))
    (record,) = yolo('some', path=folder).records
    assert (record.image_id, len(record.boxes)) == ('images/train/0.jpg', 1)


@pytest.mark.parametrize('place', ['labels', 'labels/train', 'other', 'other/train'])
def test_labels_of_a_list_may_lie_elsewhere(folder, place):
    (folder / 'labels').rename(folder / place.partition('/')[0])
    (folder / 'some.txt').write_text('images/train/0.jpg')
    source = yolo('some', path=folder, annotations=str(folder / place))
    assert len(source.records[0].boxes) == 1


def test_folders_elsewhere_may_hold_the_splits(folder, tmp_path):
    keywords = {'images': str(folder / 'images'), 'annotations': str(folder / 'labels')}
    for split in ('train', 'val'):
        source = yolo(split, path=tmp_path, **keywords)
        assert described(source)[0][:3] == described(yolo(split, path=folder))[0][:3]
        assert len(source.records) == {'train': 4, 'val': 1}[split]


def test_labels_lie_beside_the_images_of_a_split(folder, tmp_path):
    other = write_yolo(tmp_path / 'darknet', '{}', '{}')
    assert described(yolo('train', path=other)) == described(yolo('train', path=folder))


@pytest.mark.parametrize('kind', ['.png', '.webp', '.JPG'])
@pytest.mark.parametrize('end', ['.txt', '.TXT'])
def test_labels_beside_images_of_any_extension_are_found(tmp_path, kind, end):
    other = write_yolo(tmp_path / 'darknet', '{}', '{}')
    (other / 'val/0.txt').rename(other / f'val/0{end}')
    picture = np.zeros((*YOLO_SIZE, 3), np.uint8)
    (other / 'val/0.jpg').unlink()
    (other / f'val/0{kind}').write_bytes(encoded(picture, kind))
    assert len(yolo('val', path=other).records[0].boxes) == 1


def test_one_label_for_images_of_two_folders_is_refused(folder):
    (folder / 'some.txt').write_text('images/train/0.jpg\nimages/val/0.jpg')
    with pytest.raises(InputError, match='annotations: images of one name in two folders'):
        yolo('some', path=folder, annotations=str(folder / 'labels/train'))


def test_capital_extensions_and_linked_folders_are_read(folder):
    (folder / 'labels/train/0.txt').rename(folder / 'labels/train/0.TXT')
    (folder / 'some.txt').write_text('images/train/0.jpg')
    for split in ('train', 'some'):
        assert len(yolo(split, path=folder).records[0].boxes) == 1
    for kind in ('images', 'labels'):
        (folder / kind / 'train').rename(folder / f'real_{kind}')
        (folder / kind / 'deep').mkdir()
        (folder / kind / 'deep/train').symlink_to(folder / f'real_{kind}')
    source = yolo('deep', path=folder)
    assert [len(record.boxes) for record in source.records] == [1, 0, 0, 2]
    assert source.records[0].image_id == 'train/0.jpg'


def test_a_label_without_its_image_is_a_problem_and_what_is_no_label_is_not(folder):
    for name in ('classes.txt', 'obj.names', '._0.txt', 'notes.md'):
        (folder / 'labels/train' / name).write_text('no label')
    assert yolo('train', path=folder).problems == ()
    (folder / 'labels/train/8.txt').write_text('')
    (problem,) = yolo('train', path=folder).problems
    assert (problem.kind, problem.position) == ('label file without its image', -1)
    assert f'{folder}/labels/train/8.txt: ' in problem.message
    config = tiny_config(data__source='yolo', data__path=str(folder), data__on_bad='skip')
    source = data.open_split(data.options(**config.data), 'train')
    assert '0 of 4 images and 1 annotations of unlisted images left out' in source.notes[-1]


def test_an_image_that_cannot_be_read_is_one_problem(folder):
    (folder / 'images/train/1.jpg').write_text('no image')
    config = tiny_config(data__source='yolo', data__path=str(folder))
    with pytest.raises(InputError) as error:
        data.open_split(data.options(**config.data), 'train')
    assert 'such problems' not in str(error.value) and '1.jpg' in str(error.value)


def test_a_split_without_a_name_is_the_whole_folder(tmp_path):
    folder = write_yolo(tmp_path, 'images/{}', 'labels/{}')
    ids = [record.image_id for record in yolo('', path=folder).records]
    assert ids == ['train/0.jpg', 'train/1.jpg', 'train/2.jpg', 'train/3.jpg', 'val/0.jpg']


@given(st.tuples(*[st.floats(0, 0.99)] * 2), st.tuples(*[st.floats(0.001, 1)] * 2))
def test_six_digits_give_back_corners_in_pixels(tmp_path_factory, corner, sides):
    """Against the writer that people use: centers and sides over those of the image."""
    height, width = YOLO_SIZE
    x0, y0 = corner[0] * width, corner[1] * height
    x1, y1 = min(width, x0 + sides[0] * width), min(height, y0 + sides[1] * height)
    shares = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
    text = '0 ' + ' '.join(f'{share:.6f}' for share in shares)
    record = parsed(tmp_path_factory.getbasetemp(), text)
    np.testing.assert_allclose(record.boxes, [[x0, y0, x1, y1]], atol=2e-4)
    assert record.remarks == ()


def test_boxes_that_reach_out_are_clipped_and_empty_ones_left_out(tmp_path):
    text = '0 .5 .5 1.000001 1\n0 .5 .5 1.01 1\n1 .5 .5 0 1\n'  # at most 0.4 pixels outside
    record = parsed(tmp_path, text)
    np.testing.assert_array_equal(record.boxes, [[0, 0, 80, 60]] * 2)
    assert record.remarks == (CLIPPED, EMPTY) and record.classes == ('0', '0')
    with pytest.raises(BadRecord, match=r'x\.txt: line 1 lies outside the 80 x 60 image by 4'):
        parsed(tmp_path, '0 .5 .5 1.1 1')
    assert parsed(tmp_path, '0 .5 .5 1.1 1', on_bad='clip').remarks == (FAR,)


@pytest.mark.parametrize(
    ('line', 'kind', 'complaint'),
    [
        ('0 .5 .5 .5', 'object without a box', 'has 3 numbers behind the class'),
        ('0', 'object without a box', 'has 0 numbers'),
        ('0 .5 .5 .5 .5 .9', 'object without a box', 'has 5 numbers'),
        ('0 .5 .5 .5 .5 .5 .5 .5', 'object without a box', 'has 7 numbers'),
        ('cat .5 .5 .5 .5', NOT_A_NUMBER, "has 'cat', which is not a number"),
        ('0 .5 nan .5 .5', NOT_A_NUMBER, "has 'nan'"),
        ('0 .5 .5 1e999 .5', NOT_A_NUMBER, "has '1e999'"),
        ('1.5 .5 .5 .5 .5', NOT_A_NUMBER, 'has the class 1.5'),
        ('-1 .5 .5 .5 .5', NOT_A_NUMBER, 'has the class -1'),
        ('2 .5 .5 .5 .5', UNKNOWN, 'names none (2 names)'),
        ('0 40 30 20 30', OUTSIDE, 'has 40; coordinates are shares of the image'),
        ('0 .5 .5 -.5 .5', 'box inverted', "is inverted: '0 .5 .5 -.5 .5'"),
        ('0 1.5 .5 .2 .5', OUTSIDE, 'lies outside the 80 x 60 image'),
        ('0 .5,.5,.5,.5', NOT_A_NUMBER, "has '.5,.5,.5,.5'"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(tmp_path, line, kind, complaint):
    text = f'0 .5 .5 .5 .5\n\n{line}\n'
    with pytest.raises(BadRecord, match=rf'x\.txt: line 3 .*{re.escape(complaint)}') as error:
        parsed(tmp_path, text, names={0: 'cat', 1: 'dog'})
    assert error.value.kind == kind


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(BadRecord, match='not a readable text file'):
        parsed(tmp_path, b'\xff\xfe0\0 \0')
    (tmp_path / 'y.txt').mkdir()
    with pytest.raises(BadRecord, match='not a readable text file'):
        parse(tmp_path / 'y.txt', YOLO_SIZE)
    assert len(parsed(tmp_path, '\ufeff0 .5 .5 .5 .5\r\n').boxes) == 1


def test_wrong_labels_and_missing_images_are_problems_of_their_image(folder):
    (folder / 'labels/train/0.txt').write_text('0 .5 .5')
    (folder / 'images/train/1.jpg').write_text('no image')
    found = yolo('train', path=folder).problems
    assert [(each.position, each.kind) for each in found] == [
        (0, 'object without a box'),
        (1, 'image unreadable'),
    ]


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('names:\n  0: cat\n  7: no\n', {0: 'cat', 7: 'no'}),
        ("names: ['cat', 2]\nnc: 2\n", {0: 'cat', 1: '2'}),
        ('nc: 2\n', {}),
    ],
)
def test_names_are_a_list_or_a_text_for_each_class(folder, text, names):
    (folder / 'data.yaml').write_text(text)
    source = yolo('val', path=folder)
    assert dict(source.categories) == names
    is_known = not names or 1 in names  # the class of the only object
    assert source.records[0].classes == ((names.get(1, '1'),) if is_known else None)
    assert [each.kind for each in source.problems] == [UNKNOWN] * (not is_known)


def test_names_may_be_lines_of_a_list(folder):
    (folder / 'data.yaml').unlink()
    assert yolo('val', path=folder).records[0].classes == ('1',)
    for place in ('labels/val/classes.txt', 'obj.names', 'classes.txt'):
        (folder / place).write_text(f'cat \n{place}\n')
        assert yolo('val', path=folder).records[0].classes == (place,)
    (folder / 'data.yaml').write_text('nc: 2')  # which names none
    assert yolo('val', path=folder).records[0].classes == ('classes.txt',)


BOMB = 'a: &a {x: y}\n' + ''.join(
    f'{key}: &{key} {{<<: [*{old}, *{old}]}}\n'
    for old, key in zip('abcdefghijklmnopqrstuvw', 'bcdefghijklmnopqrstuvwx', strict=True)
)
LAUGHS = 'a: &a [x]\n' + ''.join(
    f'{key}: &{key} [{", ".join([f"*{old}"] * 9)}]\n'
    for old, key in zip('abcdefghijk', 'bcdefghijkl', strict=True)
)


@pytest.mark.parametrize(
    'text',
    [
        '- cat',
        'names: {cat: 0}',
        'names: data/obj.names',
        'names: "[cat, dog]"',
        'names: [[cat]]',
        'names: {0: [cat]}',
        'names: [cat',
        '[' * 100_000,
        LAUGHS + 'names: *l',
        'names: &a [*a]',
        'kpt_shape: [17, 2]\nnames: [person]',
        '',
        'x' * 2**21,
    ],
)
def test_a_description_that_cannot_be_used_is_refused_soon(folder, text):
    (folder / 'data.yaml').write_text(text)
    began = time.monotonic()
    with pytest.raises(InputError, match=r'data\.yaml: .') as error:
        yolo('val', path=folder)
    assert '\n' not in str(error.value) and len(str(error.value)) < 400
    assert time.monotonic() - began < 5


def test_nothing_in_a_description_is_executed_or_swells(folder, tmp_path):
    call = f'!!python/object/apply:os.mkdir ["{tmp_path}/made"]'
    (folder / 'data.yaml').write_text(f'{BOMB}evil: {call}\nnames: [cat, dog]\n')
    assert yolo('val', path=folder).records[0].classes == ('dog',)
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    ('change', 'split', 'complaint'),
    [
        (lambda f: None, 'test', "no split 'test'; there are train, val"),
        (lambda f: (f / 'images/val/0.jpg').unlink(), 'val', 'no images'),
        (lambda f: (f / 'labels/val/0.txt').unlink(), 'val', r'no image has a label .*val/0\.txt;'),
        (
            lambda f: (f / 'a.txt').write_text('images/train/2.jpg'),
            'a',
            'no image has a label file',
        ),
        (lambda f: None, '/images/train', 'a split is a folder or a list inside'),
        (lambda f: None, '../birds/images/train', 'a split is a folder or a list inside'),
        (lambda f: (f / 'a.txt').write_text('../x.jpg'), 'a', r"'\.\./x\.jpg' leads out"),
        (lambda f: (f / 'a.txt').write_text('/etc/x.jpg'), 'a', "'/etc/x.jpg' leads out"),
        (lambda f: (f / 'a.txt').write_text(''), 'a', 'the split is empty'),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(folder, change, split, complaint):
    change(folder)
    with pytest.raises(InputError, match=complaint):
        yolo(split, path=folder)


def test_folders_that_are_not_there_are_named(folder, tmp_path):
    with pytest.raises(InputError, match='path: no folder .*nowhere; YOLO needs'):
        yolo('train', path=tmp_path / 'nowhere')
    for keyword in ('images', 'annotations'):
        with pytest.raises(InputError, match=f'{keyword}: no folder .*nowhere'):
            yolo('train', path=folder, **{keyword: str(tmp_path / 'nowhere')})
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}: no split 'x'; there are"):
        yolo('x', path=write_yolo(tmp_path))
    os.mkdir(tmp_path / 'empty')
    with pytest.raises(InputError, match='it needs images/SPLIT and labels/SPLIT'):
        yolo('x', path=tmp_path / 'empty')


@pytest.mark.parametrize(
    ('tag', 'orientation', 'size'),
    [
        (6, 'annotation', (80, 60)),
        (6, 'apply', (80, 60)),
        (6, 'ignore', (60, 80)),
        (3, 'apply', (60, 80)),
    ],
)
def test_shares_are_of_the_upright_image_as_cv2_shows_it(folder, tag, orientation, size):
    picture = np.zeros((*YOLO_SIZE, 3), np.uint8)
    picture[:30, :40] = 255  # white is the upper left quarter as stored
    (folder / 'images/val/0.jpg').write_bytes(turned_jpeg(picture, tag))
    corner = {6: '.75 .25', 3: '.75 .75'}[tag] if orientation != 'ignore' else '.25 .25'
    (folder / 'labels/val/0.txt').write_text(f'0 {corner} .5 .5')
    changes = {'source': 'yolo', 'path': str(folder), 'orientation': orientation}
    config = tiny_config(**{f'data__{key}': value for key, value in changes.items()})
    source = data.open_split(data.options(**config.data), 'val')
    assert source.records[0].size == size
    x0, y0, x1, y1 = source.records[0].boxes[0].astype(int)
    image = source.read(0)
    assert image[y0:y1, x0:x1].min() > 200 and image.sum() < 1.1 * image[y0:y1, x0:x1].sum()


def test_a_half_turn_that_the_size_does_not_tell_is_refused(folder):
    picture = np.zeros((*YOLO_SIZE, 3), np.uint8)
    (folder / 'images/val/0.jpg').write_bytes(turned_jpeg(picture, 3))
    changes = {'source': 'yolo', 'path': str(folder)}
    config = tiny_config(**{f'data__{key}': value for key, value in changes.items()})
    with pytest.raises(InputError, match=r"set orientation='apply'"):
        data.open_split(data.options(**config.data), 'val')


def test_a_size_beyond_the_head_of_a_jpeg_is_found(folder):
    picture = np.zeros((*YOLO_SIZE, 3), np.uint8)
    jpeg = encoded(picture)
    comments = b'\xff\xfe\xff\xff' + bytes(0xFFFF - 2)
    (folder / 'images/val/0.jpg').write_bytes(jpeg[:2] + comments * 3 + jpeg[2:])
    assert yolo('val', path=folder).records[0].size == YOLO_SIZE


def test_an_error_of_a_description_names_its_line(folder):
    (folder / 'data.yaml').write_text('nc: 2\nnames:\n\t- cat\n')
    with pytest.raises(InputError, match=r'data set \(line 3: found character') as error:
        yolo('val', path=folder)
    assert str(error.value).count('data.yaml') == 1
    (folder / 'data.yaml').write_bytes(b'names: [\xff]')
    with pytest.raises(InputError, match=r'^[^ ]+data\.yaml: cannot be read') as error:
        yolo('val', path=folder)
    assert str(error.value).count('data.yaml') == 1
