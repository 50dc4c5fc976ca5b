"""VOC folders: corners, kinds and lists are read as VOC means them; pixels come out as they are."""

import re

import numpy as np
import pytest
from data_files import VOC_BOX, VOC_SIZES, encoded, voc_annotation, write_voc

from rpn_jax.data.images import BadRecord
from rpn_jax.data.sources.voc import parse, voc
from rpn_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return write_voc(tmp_path / 'VOC2007')


@pytest.fixture
def read_xml(tmp_path):
    """Returns the function text -> Record."""

    def read(text):
        path = tmp_path / 'x.xml'
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return parse(path, 'x')

    return read


def test_corners_from_one_become_half_open(read_xml):
    boxes = (VOC_BOX, 0), ((1, 1, 80, 60), 0), ((7, 7, 7, 7), 0), ((5.5, 6.25, 40.75, 50.5), 0)
    record = read_xml(voc_annotation((60, 80), *boxes))
    assert record.image_id == 'x' and record.size == (60, 80)
    assert record.boxes.dtype == np.float32
    half_open = [4, 5, 40, 50], [0, 0, 80, 60], [6, 6, 7, 7], [4.5, 5.25, 40.75, 50.5]
    np.testing.assert_array_equal(record.boxes, half_open)
    empty = read_xml(voc_annotation((60, 80)))  # an image without objects is legal
    assert empty.boxes.shape == (0, 4) and empty.kind.shape == (0,)


def test_difficult_objects_are_of_kind_two(read_xml):
    text = voc_annotation((60, 80), *((VOC_BOX, text) for text in (0, 1, ' 1 ', '', 9)))
    record = read_xml(text.replace('<difficult>9</difficult>', ''))
    assert record.kind.dtype == np.int32
    assert record.kind.tolist() == [1, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ('box', 'clipped'),
    [
        ((0, 6, 40, 50), (0, 5, 40, 50)),
        ((5, 0.5, 40, 50), (4, 0, 40, 50)),
        ((5, 6, 81, 50), (4, 5, 80, 50)),
        ((5, 6, 40, 60.75), (4, 5, 40, 60)),
    ],
)
def test_up_to_a_pixel_outside_is_clipped(read_xml, box, clipped):
    np.testing.assert_array_equal(read_xml(voc_annotation((60, 80), (box, 0))).boxes, [clipped])


NOT_A_NUMBER, UNREADABLE = 'annotation with what is not a number', 'annotation unreadable'
OUTSIDE, SIZELESS = 'box outside its image', 'annotation without a size'


@pytest.mark.parametrize(
    ('box', 'kind', 'complaint'),
    [
        ((-0.5, 6, 40, 50), OUTSIDE, '80 x 60 image: (-0.5, 6, 40, 50)'),
        ((5, -1, 40, 50), OUTSIDE, ''),
        ((5, 6, 81.5, 50), OUTSIDE, ''),
        ((5, 6, 40, 62), OUTSIDE, ''),
        ((2, 50, 30, 79), OUTSIDE, ''),  # x and y swapped
        ((200, 200, 300, 300), OUTSIDE, ''),
        ((81, 6, 81, 50), OUTSIDE, ''),  # nothing is left of it
        ((5, 0, 40, 0), OUTSIDE, ''),
        ((40, 6, 39, 50), 'box inverted', '(cat) is inverted: (40, 6, 39, 50)'),
        ((5, 50, 40, 6), 'box inverted', ''),
        (('nan', 6, 40, 50), NOT_A_NUMBER, "xmin = 'nan'"),
        ((5, 'inf', 40, 50), NOT_A_NUMBER, "ymin = 'inf'"),
        ((5, 6, 'right', 50), NOT_A_NUMBER, "xmax = 'right'"),
        ((5, 6, 40, ''), NOT_A_NUMBER, "ymax = ''"),
    ],
)
def test_a_wrong_box_is_refused_by_its_object(read_xml, box, kind, complaint):
    with pytest.raises(BadRecord, match=rf'x\.xml: object 1 .*{re.escape(complaint)}') as error:
        read_xml(voc_annotation((60, 80), (VOC_BOX, 0), (box, 0)))
    assert error.value.kind == kind


DECLARED = '<?xml version="1.0" encoding="klingon"?><annotation>'
ENTITY = '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'


@pytest.mark.parametrize(
    ('old', 'new', 'kind', 'complaint'),
    [
        ('size>', 'scale>', SIZELESS, 'no <size>'),
        ('size>', 'Size>', SIZELESS, 'lower case'),
        ('<annotation>', '<annotation xmlns="x">', SIZELESS, 'namespace'),
        ('<width>80</width>', '', NOT_A_NUMBER, '<size> has width = None'),
        ('>60<', '>tall<', NOT_A_NUMBER, "<size> has height = 'tall'"),
        ('>60<', '>inf<', NOT_A_NUMBER, "<size> has height = 'inf'"),
        ('>60<', '>0<', SIZELESS, '<size> is 80 x 0'),
        ('>80<', '>1e300<', SIZELESS, '<size> is 1e+300 x 60'),
        ('bndbox>', 'polygon>', 'object without a box', 'object 0 (cat) has no <bndbox>'),
        ('<xmin>5</xmin>', '', NOT_A_NUMBER, 'xmin = None'),
        ('object>', 'Object>', UNREADABLE, 'not in <Object>'),
        ('</annotation>', '', UNREADABLE, 'take x off the list'),
        ('<annotation>', DECLARED, UNREADABLE, 'not a readable XML file'),
        ('<annotation>', ENTITY, UNREADABLE, 'declares a DOCTYPE'),
        *((None, text, UNREADABLE, '') for text in (b'', b'\xff\xfe\x00', b'no xml', b'\0' * 99)),
    ],
)
def test_a_wrong_annotation_is_refused_by_its_file(read_xml, old, new, kind, complaint):
    text = voc_annotation((60, 80), (VOC_BOX, 0))
    assert old is None or old in text
    with pytest.raises(BadRecord, match=rf'x\.xml: .*{re.escape(complaint)}') as error:
        read_xml(new if old is None else text.replace(old, new))
    assert error.value.kind == kind and '\n' not in str(error.value)


def test_a_list_gives_the_split_its_order(folder):
    lines = '000003  1\n\n 000000\r\n000003 -1\n'
    (folder / 'ImageSets/Main/odd.txt').write_bytes(b'\xef\xbb\xbf' + lines.encode())
    source = voc('odd', path=folder)
    assert [record.image_id for record in source.records] == ['000003', '000000', '000003']
    assert source.name == 'voc VOC2007 odd'
    for position, record in enumerate(source.records):
        assert source.read(position).shape == (*record.size, 3)


def test_no_list_takes_every_annotation(folder):
    (folder / 'JPEGImages/unused.jpg').write_bytes(b'nothing')
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


@pytest.mark.parametrize('extension', ['.jpeg', '.png', '.JPG', '.PNG'])
def test_pictures_are_found_by_any_extension(folder, extension):
    path = folder / 'JPEGImages/000000.jpg'
    picture = np.full((60, 80, 3), (10, 20, 200), np.uint8)
    path.with_suffix(extension).write_bytes(encoded(picture, extension))
    path.unlink()
    np.testing.assert_allclose(voc('train', path=folder).read(0)[0, 0], (200, 20, 10), atol=3)


@pytest.mark.parametrize('image_id', ['../x', '..', '/etc/x', 'a\\b', '.hidden'])
def test_a_list_cannot_lead_out_of_the_folder(folder, image_id):
    (folder / 'ImageSets/Main/train.txt').write_text(f'000000\n{image_id}\n')
    with pytest.raises(InputError, match=r'train\.txt: image id .* would leave the folder'):
        voc('train', path=folder)
