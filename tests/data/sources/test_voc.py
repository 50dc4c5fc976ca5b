"""VOC folders: corners, kinds and lists are read as VOC means them; pixels come out as they are."""

from pathlib import Path

import numpy as np
import pytest
from data_files import VOC_BOX, VOC_SIZES, encoded, voc_annotation, write_voc

from rpn_jax.data.sources.voc import parse, voc
from rpn_jax.errors import InputError

ROOT = Path(__file__).parents[3]


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
    record = read_xml(
        voc_annotation((60, 80), (VOC_BOX, 0), ((1, 1, 80, 60), 0), ((7, 7, 7, 7), 0))
    )
    assert record.image_id == 'x' and record.size == (60, 80)
    assert record.boxes.dtype == np.float32
    np.testing.assert_array_equal(record.boxes, [[4, 5, 40, 50], [0, 0, 80, 60], [6, 6, 7, 7]])


def test_fractions_of_pixels_are_kept(read_xml):
    record = read_xml(voc_annotation((60, 80), ((5.5, 6.25, 40.75, 50.5), 0)))
    np.testing.assert_array_equal(record.boxes, [[4.5, 5.25, 40.75, 50.5]])


def test_difficult_objects_are_of_kind_two(read_xml):
    text = voc_annotation(
        (60, 80), (VOC_BOX, 0), (VOC_BOX, 1), (VOC_BOX, ' 1 '), (VOC_BOX, ''), (VOC_BOX, 9)
    )
    record = read_xml(text.replace('<difficult>9</difficult>', ''))
    assert record.kind.dtype == np.int32
    assert record.kind.tolist() == [1, 2, 2, 1, 1]


def test_an_image_without_objects_is_legal(read_xml):
    record = read_xml(voc_annotation((60, 80)))
    assert record.boxes.shape == (0, 4) and record.kind.shape == (0,)


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


@pytest.mark.parametrize(
    ('box', 'complaint'),
    [
        ((-0.5, 6, 40, 50), r'outside the 80 x 60 image: \(-0.5, 6, 40, 50\)'),
        ((5, -1, 40, 50), 'outside'),
        ((5, 6, 81.5, 50), 'outside'),
        ((5, 6, 40, 62), 'outside'),
        ((81, 6, 81, 50), 'outside'),  # nothing is left of it
        ((5, 0, 40, 0), 'outside'),
        ((40, 6, 39, 50), r'\(cat\) is inverted: \(40, 6, 39, 50\)'),
        ((5, 50, 40, 6), 'inverted'),
        (('nan', 6, 40, 50), "xmin = 'nan', which is not a number"),
        ((5, 'inf', 40, 50), "ymin = 'inf'"),
        ((5, 6, 'right', 50), "xmax = 'right'"),
        ((5, 6, 40, ''), "ymax = ''"),
    ],
)
def test_a_wrong_box_is_refused_by_its_object(read_xml, box, complaint):
    with pytest.raises(InputError, match=rf'x\.xml: object 1 .*{complaint}'):
        read_xml(voc_annotation((60, 80), (VOC_BOX, 0), (box, 0)))


@pytest.mark.parametrize(
    ('old', 'new', 'complaint'),
    [
        ('size>', 'scale>', 'no <size>'),
        ('<width>80</width>', '', '<size> has width = None'),
        ('>60<', '>tall<', "<size> has height = 'tall'"),
        ('>60<', '>0<', 'at least 1 x 1'),
        ('bndbox>', 'polygon>', r'object 0 \(cat\) has no <bndbox>'),
        ('<xmin>5</xmin>', '', 'xmin = None, which is not a number'),
        ('</annotation>', '', 'not a readable XML file .*take x off the list'),
        ('<annotation>', '<?xml version="1.0" encoding="klingon"?><annotation>', 'not a readable'),
        ('<annotation>', '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', 'declares a DOCTYPE'),
    ],
)
def test_a_wrong_annotation_is_refused_by_its_file(read_xml, old, new, complaint):
    text = voc_annotation((60, 80), (VOC_BOX, 0))
    assert old in text
    with pytest.raises(InputError, match=rf'x\.xml: .*{complaint}'):
        read_xml(text.replace(old, new))


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00', b'no xml', b'\0' * 99])
def test_what_is_no_xml_is_refused(read_xml, content):
    with pytest.raises(InputError, match='not a readable XML file'):
        read_xml(content)


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
    with pytest.raises(InputError, match=r'path: no folder .*JPEGImages'):
        voc('train', path=folder)
    with pytest.raises(InputError, match=r'path: no folder .*Annotations'):
        voc('train', path=folder, images=tmp_path / 'pictures')
    places = {'images': tmp_path / 'pictures', 'annotations': tmp_path / 'labels'}
    source = voc('train', path=folder, **places)
    assert len(source.records) == 4 and source.read(3).shape == (70, 90, 3)


@pytest.mark.parametrize('extension', ['.jpeg', '.png', '.JPG', '.PNG'])
def test_pictures_are_found_by_any_extension(folder, extension):
    place = folder / 'JPEGImages/000000.jpg'
    picture = np.full((60, 80, 3), (10, 20, 200), np.uint8)
    place.with_suffix(extension).write_bytes(encoded(picture, extension))
    place.unlink()
    np.testing.assert_allclose(voc('train', path=folder).read(0)[0, 0], (200, 20, 10), atol=3)


@pytest.mark.parametrize('image_id', ['../x', '..', '/etc/x', 'a\\b', '.hidden'])
def test_a_list_cannot_lead_out_of_the_folder(folder, image_id):
    (folder / 'ImageSets/Main/train.txt').write_text(f'000000\n{image_id}\n')
    with pytest.raises(InputError, match=r'train\.txt: image id .* would leave the folder'):
        voc('train', path=folder)
