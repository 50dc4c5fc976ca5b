"""VOC folders: corners, kinds and lists are read as VOC means them; pixels come out as they are."""

import os
import re

import numpy as np
import pytest
from data_files import VOC_BOX, VOC_SIZES, encoded, voc_annotation, write_voc

from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import CLIPPED, FAR, UNSIZED
from rpn_jax.data.sources.voc import UNSAID, parse, voc
from rpn_jax.errors import InputError

NOT_A_NUMBER, UNREADABLE = 'annotation with what is not a number', 'annotation unreadable'
OUTSIDE, SIZELESS = 'box outside its image', 'annotation without a size'


@pytest.fixture
def folder(tmp_path):
    return write_voc(tmp_path / 'VOC2007')


def parsed(tmp_path, text):
    (tmp_path / 'x.xml').write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(tmp_path / 'x.xml')


def test_corners_from_one_become_half_open_and_up_to_a_pixel_outside_is_clipped(tmp_path):
    objects = {  # box, <difficult> -> half open box, kind
        ((5, 6, 40, 50), 0): ((4, 5, 40, 50), 1),
        ((1, 1, 80, 60), 1): ((0, 0, 80, 60), 2),
        ((7, 7, 7, 7), ' 1 '): ((6, 6, 7, 7), 2),
        ((5.5, 6.25, 40.75, 50.5), ''): ((4.5, 5.25, 40.75, 50.5), 1),
        ((0, 0.5, 40, 50), 9): ((0, 0, 40, 50), 1),
        ((5, 6, 81, 60.75), 0): ((4, 5, 80, 60), 1),
    }
    text = voc_annotation((60, 80), *objects).replace('<difficult>9</difficult>', '')
    record = parsed(tmp_path, text)
    boxes, kind = zip(*objects.values(), strict=True)
    np.testing.assert_array_equal(record.boxes, boxes)
    np.testing.assert_array_equal(record.kind, kind)
    assert (record.boxes.dtype, record.kind.dtype) == (np.float32, np.int32)
    assert (record.image_id, record.size, record.classes) == ('x', (60, 80), ('cat',) * 6)
    assert record.remarks == (UNSAID, CLIPPED, UNSAID, CLIPPED)
    empty = parsed(tmp_path, voc_annotation((60, 80)))  # an image without objects is legal
    assert empty.boxes.shape == (0, 4) and empty.kind.shape == (0,)


@pytest.mark.parametrize(
    ('box', 'kind', 'complaint'),
    [
        ((-0.5, 6, 40, 50), OUTSIDE, "image by 1.5 pixels (on_bad='clip' clips it): (-0.5, 6"),
        ((5, -1, 40, 50), OUTSIDE, ''),
        ((5, 6, 81.5, 50), OUTSIDE, ''),
        ((5, 6, 40, 62), OUTSIDE, ''),
        ((81, 6, 81, 50), OUTSIDE, ''),  # nothing is left of it
        ((40, 6, 39, 50), 'box inverted', '(cat) is inverted: (40, 6, 39, 50)'),
        ((5, 50, 40, 6), 'box inverted', ''),
        ((5, 'inf', 40, 50), NOT_A_NUMBER, "ymin = 'inf'"),
        ((5, 6, 'right', 50), NOT_A_NUMBER, "xmax = 'right'"),
        ((5, 6, 40, ''), NOT_A_NUMBER, "ymax = ''"),
    ],
)
def test_a_wrong_box_is_refused_by_its_object(tmp_path, box, kind, complaint):
    with pytest.raises(BadRecord, match=rf'x\.xml: object 1 .*{re.escape(complaint)}') as error:
        parsed(tmp_path, voc_annotation((60, 80), (VOC_BOX, 0), (box, 0)))
    assert error.value.kind == kind


@pytest.mark.parametrize(
    ('old', 'new', 'kind', 'complaint'),
    [
        ('>60<', '>nan<', NOT_A_NUMBER, "<size> has height = 'nan'"),
        ('>60<', '>-1<', SIZELESS, '<size> is 80 x -1'),
        ('>80<', '>1e300<', SIZELESS, '<size> is 1e+300 x 60'),
        ('>80<', '>80.4<', SIZELESS, '<size> is 80.4 x 60; an image has whole pixels'),
        ('<xmin>', '<xmin>1<b/>', NOT_A_NUMBER, 'object 0 (cat) has <b> inside <xmin>'),
        ('bndbox>', 'polygon>', 'object without a box', 'object 0 (cat) has no <bndbox>'),
        ('object>', 'Object>', UNREADABLE, '<Object> is elsewhere'),
        ('<bndbox>', '<bndbox/><bndbox>', UNREADABLE, 'object 0 has 2 elements <bndbox>'),
        ('<xmin>', '<xmin>3</xmin><xmin>', UNREADABLE, 'object 0 (cat) has 2 elements <xmin>'),
        ('<size>', '<size/><size>', UNREADABLE, 'has 2 elements <size>'),
        ('<difficult>0', '<difficult>2', NOT_A_NUMBER, "object 0 (cat) has difficult = '2'"),
        ('</annotation>', '', UNREADABLE, 'not a readable XML file'),
        ('<annotation>', '<?xml version="1.0" encoding="klingon"?><a>', UNREADABLE, 'take x off'),
        ('<annotation>', '<!DOCTYPE a><annotation>', UNREADABLE, 'declares a DOCTYPE'),
        ('<annotation>', '<!ENTITY b "c"><annotation>', UNREADABLE, 'declares a DOCTYPE'),
        (None, '<!DOCTYPE a><a/>'.encode('utf-16'), UNREADABLE, 'declares a DOCTYPE'),
        *((None, text, UNREADABLE, '') for text in (b'', b'\xff\xfe\x00', b'\0' * 99)),
    ],
)
def test_a_wrong_annotation_is_refused_by_its_file(tmp_path, old, new, kind, complaint):
    text = voc_annotation((60, 80), (VOC_BOX, 0))
    assert old is None or old in text
    with pytest.raises(BadRecord, match=rf'x\.xml: .*{re.escape(complaint)}') as error:
        parsed(tmp_path, new if old is None else text.replace(old, new))
    assert error.value.kind == kind and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('old', 'new'),
    [('size>', 'scale>'), ('<width>80</width>', ''), ('>80<', '><'), ('>60<', '>0<')],
)
def test_a_size_that_is_missing_is_that_of_the_image(folder, old, new):
    file = folder / 'Annotations/000000.xml'
    file.write_text(voc_annotation((60, 80), ((5, 6, 81, 50), 0)).replace(old, new))
    (record, *_), problems = voc('train', path=folder).records, voc('train', path=folder).problems
    assert problems == () and record.size == (60, 80) and record.remarks == (UNSIZED, CLIPPED)


def test_boxes_of_parts_are_no_objects_and_others_are_never_lost(tmp_path):
    text = voc_annotation((60, 80), (VOC_BOX, 0))
    box = text[text.index('<bndbox>') : text.index('</object>')]
    part = f'<part><name>head</name>{box}</part>'
    record = parsed(tmp_path, text.replace('</object>', f'{part}</object>'))
    assert len(record.boxes) == 1
    for lost in (f'<item>{box}</item>', f'<n:bndbox xmlns:n="x">{box[8:-9]}</n:bndbox>'):
        with pytest.raises(BadRecord, match='is elsewhere'):
            parsed(tmp_path, text.replace('</object>', f'{lost}</object>'))
    item = text[text.index('<object>') : text.index('</annotation>')]
    for around in ('outputs', 'part'):
        with pytest.raises(BadRecord, match='<object> is elsewhere'):
            parsed(tmp_path, text.replace('</size>', f'</size><{around}>{item}</{around}>'))


def test_boxes_outside_are_clipped_where_that_is_asked_for(folder):
    file, far = folder / 'Annotations/000000.xml', ((-14, 6, 95, 75), 0)
    file.write_text(voc_annotation((60, 80), far))
    source = voc('train', path=folder, on_bad='clip')
    assert source.problems == () and source.records[0].remarks == (FAR,)
    np.testing.assert_array_equal(source.records[0].boxes, [[0, 5, 80, 60]])
    file.write_text(voc_annotation((60, 80), ((-14, 6, 0, 75), 0)))
    (problem,) = voc('train', path=folder, on_bad='clip').problems
    assert 'lies outside the 80 x 60 image: ' in problem.message


def test_xml_files_may_lie_beside_their_images_in_a_folder_of_the_split(folder, tmp_path):
    (tmp_path / 'x').mkdir()
    (folder / 'Annotations').rename(tmp_path / 'x/valid')
    for picture in (folder / 'JPEGImages').iterdir():
        picture.rename(tmp_path / 'x/valid' / picture.name)
    source = voc('valid', path=tmp_path / 'x')
    assert [record.size for record in source.records] == list(VOC_SIZES)
    assert source.read(1).shape == (90, 50, 3)


def test_a_line_of_a_list_may_be_a_name_with_spaces(folder, caplog):
    caplog.set_level('INFO')
    for name in ('JPEGImages/{}.jpg', 'Annotations/{}.xml'):
        (folder / name.format('000001')).rename(folder / name.format('a photo (1)'))
    text = 'a photo (1)\n000000 -1\nno photo 1\n'
    for encoding in ('utf-8', 'utf-16'):
        (folder / 'ImageSets/Main/odd.txt').write_text(text, encoding)
        source = voc('odd', path=folder)
        assert [record.image_id for record in source.records] == ['a photo (1)', '000000', 'no']
        assert [problem.position for problem in source.problems] == [2]
        assert "odd.txt: 2 lines have columns after the id, which are not used ('000000 -1')" in (
            caplog.messages.pop()
        )


def test_a_wrong_annotation_is_a_problem_of_its_image(folder):
    (folder / 'Annotations/000002.xml').unlink()
    os.mkfifo(folder / 'Annotations/000002.xml')  # reading it would wait for ever
    source = voc('train', path=folder)
    (problem,) = source.problems
    assert problem.position == 2 and 'not a file' in problem.message
    assert [len(record.boxes) for record in source.records] == [1, 0, 0, 1]


def test_a_list_gives_the_split_its_order_and_no_list_takes_every_annotation(folder):
    lines = '000003  1\n\n 000000\r\n000003 -1\n'
    (folder / 'ImageSets/Main/odd.txt').write_bytes(b'\xef\xbb\xbf' + lines.encode())
    source = voc('odd', path=folder)
    assert [record.image_id for record in source.records] == ['000003', '000000', '000003']
    assert source.name == 'voc VOC2007 odd'
    for position, record in enumerate(source.records):
        assert source.read(position).shape == (*record.size, 3)
    (folder / 'Annotations/._000000.xml').write_bytes(b'of a Macintosh')
    source = voc('', path=folder)
    assert [record.image_id for record in source.records] == [f'{i:06}' for i in range(6)]
    assert [record.size for record in source.records] == list(VOC_SIZES)


def test_pictures_and_annotations_may_lie_elsewhere(folder, tmp_path):
    (folder / 'JPEGImages').rename(tmp_path / 'pictures')
    (folder / 'Annotations').rename(tmp_path / 'labels')
    with pytest.raises(InputError, match='^path: no folder .*JPEGImages'):
        voc('train', path=folder)
    with pytest.raises(InputError, match='^path: no folder .*Annotations'):
        voc('train', path=folder, images=tmp_path / 'pictures')
    elsewhere = {'images': tmp_path / 'pictures', 'annotations': tmp_path / 'labels'}
    source = voc('train', path=folder, **elsewhere)
    assert len(source.records) == 4 and source.read(3).shape == (70, 90, 3)


def test_pictures_are_found_by_any_extension(folder):
    extensions = '.jpeg', '.png', '.JPG', '.bmp', '.TIF', '.webp'
    for position, extension in enumerate(extensions):
        path = folder / f'JPEGImages/{position:06}.jpg'
        picture = np.full((*VOC_SIZES[position], 3), (10, 20, 200), np.uint8)
        path.with_suffix(extension).write_bytes(encoded(picture, extension))
        path.unlink()
        pixel = voc('', path=folder).read(position)[0, 0]
        np.testing.assert_allclose(pixel, (200, 20, 10), atol=3)


@pytest.mark.parametrize(
    ('text', 'complaint'),
    [(x, 'image id .* would leave the folder') for x in ('../x', '/etc/x', 'a\\b', '.hidden')]
    + [('\n', 'the split is empty'), (None, 'no such list of a split; there are: train, val;')],
)
def test_a_wrong_list_is_refused(folder, text, complaint):
    if text:
        (folder / 'ImageSets/Main/x.txt').write_text(f'{text}\n')
    with pytest.raises(InputError, match=rf'x\.txt: {complaint}'):
        voc('x', path=folder)
