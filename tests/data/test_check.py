"""What would train wrongly is an error or left out; what is odd and harmless is a note."""

import io
import json
import logging
import os
import re
import sys

import numpy as np
import pytest
from data_files import (
    VOC_BOX,
    coco_box,
    encoded,
    png_of,
    turned_jpeg,
    voc_annotation,
    write_coco,
    write_voc,
)
from PIL import Image, ImageOps

from rpn_jax import files
from rpn_jax.data import images
from rpn_jax.data.check import lint
from rpn_jax.data.sources.coco import coco
from rpn_jax.data.sources.folder import pictures
from rpn_jax.data.sources.shapes import shapes
from rpn_jax.data.sources.voc import voc
from rpn_jax.errors import InputError

lint_module = sys.modules['rpn_jax.data.check']  # whose name the function bears in rpn_jax.data
PICTURE = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
XML, JPG = 'Annotations/000000.xml', 'JPEGImages/000000.jpg'  # of 80 x 60 pixels


@pytest.fixture
def folder(tmp_path):
    return write_voc(tmp_path / 'VOC')


def saved(mode, kind, **options):
    """Returns the bytes of the picture as Pillow writes it in a mode."""
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, kind, **options)
    return file.getvalue()


def xml(*objects, size=(60, 80)):
    return voc_annotation(size, *((corners, 0) for corners in objects)).encode()


def deep(picture):
    return encoded(picture.astype(np.uint16) * 257, '.png')


RESIZED, UNREADABLE = 'image of another size than annotated', 'image unreadable'
JPEG, PNG = encoded(PICTURE), encoded(PICTURE, '.png')
BAD = [  # what is wrong with one image of a split: the kind, its file, the content, the complaint
    ('image missing', JPG, None, 'no such image; fetch it'),
    ('image truncated', JPG, JPEG[:2] + bytes(500), 'is truncated'),
    ('image damaged', JPG, JPEG[: len(JPEG) // 2] + b'\xff\xd9', 'are damaged'),
    ('image damaged', JPG, JPEG[:1500] + bytes(900) + b'\xff\xd9', 'are damaged'),
    ('image damaged', JPG, PNG[:900] + b'?' + PNG[901:], 'are damaged'),  # a wrong checksum
    (UNREADABLE, JPG, encoded(PICTURE[..., 0].astype(np.float32), '.pfm'), 'not an image'),
    (UNREADABLE, JPG, png_of(80, 60), 'not an image'),  # without data
    (UNREADABLE, JPG, png_of(80, 60, kind=(8, 5, 0, 0, 0)), 'not an image'),  # of no known kind
    (UNREADABLE, JPG, b'GIF89a\x50\0\x3c\0', 'not an image'),
    (RESIZED, XML, xml(VOC_BOX, size=(80, 60)), 'is 80 x 60'),
    (RESIZED, JPG, turned_jpeg(PICTURE[:-1], 6), 'is 80 x 59'),
    ('image turned by EXIF', JPG, turned_jpeg(PICTURE, 3), "set orientation='apply' if they are"),
    ('annotation unreadable', XML, None, 'not a readable XML'),
    ('box inverted', XML, xml(VOC_BOX, (3, 40, 20, 2)), 'object 1 (cat) is inverted'),
]
GREY, DEEP = 'greyscale image', 'image of 16 bits or more'
ODD = [  # what is odd and harmless about one image: its file, the content, the remark
    (JPG, saved('L', 'JPEG'), GREY),
    (JPG, saved('1', 'PNG'), GREY),
    (JPG, saved('CMYK', 'JPEG'), 'CMYK image'),
    (JPG, saved('P', 'PNG'), 'image with a palette'),
    (
        JPG,
        saved('RGB', 'TIFF', save_all=True, append_images=[Image.new('1', (9, 9))]),
        'image of several f',
    ),
    (JPG, deep(PICTURE), DEEP),
    (JPG, deep(PICTURE[..., 0]), DEEP),
    (JPG, encoded(np.dstack([PICTURE, PICTURE[..., :1]]), '.png'), 'image with transparency'),
    (JPG, turned_jpeg(PICTURE, 6), 'image that its EXIF tag turns; the tag is ignored'),
    (JPG, turned_jpeg(PICTURE.swapaxes(0, 1), 6), 'image that its EXIF tag turns; the tag is app'),
    (XML, xml(VOC_BOX, VOC_BOX), 'box that its image has twice'),
    (JPG, JPEG[:-2] + bytes(7) + JPEG[-2:], 'JPEG with stray bytes'),
    (XML, xml((0, 2, 81, 40)), 'box up to 1 pixel outside its image'),
    (XML, xml((5, 5, 5, 40)), 'box of at most 1 pixel'),
]


def write(path, content):
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def notes_of(source):
    """Returns the notes of a checked source, but for that of images without objects."""
    return [note for note in lint(source).notes if lint_module.WITHOUT not in note]


@pytest.mark.parametrize(('kind', 'file', 'content', 'complaint'), BAD)
def test_a_bad_file_is_an_error_or_left_out(folder, kind, file, content, complaint):
    write(folder / file, content)
    with pytest.raises(InputError, match=re.escape(complaint)) as error:
        lint(voc('train', path=folder))
    message = str(error.value)
    assert message.startswith(str(folder)) and '000000' in message and '\n' not in message
    assert message.endswith("; on_bad='skip' leaves the image out")
    source = lint(voc('train', path=folder), 'skip')
    assert [record.image_id for record in source.records] == ['000001', '000002', '000003']
    for position, record in enumerate(source.records):
        assert source.read(position).shape[:2] == record.size
        data = (folder / f'JPEGImages/{record.image_id}.jpg').read_bytes()
        assert source.files.load(position) == data
    note = source.notes[-1]
    assert (
        note.startswith(f'{source.name}: 1 of 4 images left out, as on_bad=')
        and f'({kind}: 1)' in note
    )


@pytest.mark.parametrize('tag', range(2, 9))
@pytest.mark.parametrize('square', [False, True])
def test_exif_orientation_is_applied_where_the_annotated_size_is_the_turned_one(
    folder, tag, square
):
    """Compared with Pillow's own way to turn an image."""
    upright = PICTURE[:, :60] if square else PICTURE
    path, sides = folder / JPG, upright.shape[:2]
    write(folder / XML, xml(VOC_BOX, size=sides))
    pixels = upright.swapaxes(0, 1) if tag > 4 else upright  # as the file has them
    path.write_bytes(turned_jpeg(pixels, tag))
    can_tell = tag > 4 and not square
    with Image.open(path) as image:
        pictures = {'ignore': np.asarray(image), 'apply': ImageOps.exif_transpose(image)}
    for orientation in ('ignore', 'apply', 'annotation'):
        fails = orientation == 'ignore' and can_tell  # the stored size is not the annotated one
        if fails or (orientation == 'annotation' and not can_tell):
            with pytest.raises(InputError, match='is 60 x 80' if fails else 'orientation='):
                lint(voc('train', path=folder), orientation=orientation)
            continue
        source = lint(voc('train', path=folder), orientation=orientation)
        picture = np.asarray(pictures.get(orientation, pictures['apply']))
        np.testing.assert_array_equal(source.read(0), picture)
        assert source.files.turned == ({} if orientation == 'ignore' else {0: tag})


def test_notes_do_not_count_images_that_are_left_out(folder):
    write(folder / XML, xml((0, 2, 81, 40), (3, 40, 20, 2)))
    write(folder / JPG, saved('L', 'JPEG'))
    assert [
        note for note in lint(voc('train', path=folder), 'skip').notes if '000000' in note
    ] == []


@pytest.mark.parametrize(('image', 'left'), [(7, 2), (99, 3)])
def test_a_bad_annotation_is_an_error_or_its_image_left_out(tmp_path, image, left):
    folder = write_coco(tmp_path / 'coco')
    file = folder / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    content['annotations'].append(coco_box(image, [10, 10, -3, 5]))
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        lint(coco('train2017', path=folder))
    assert str(error.value).startswith(f'{file}: ') and '\n' not in str(error.value)
    source = lint(coco('train2017', path=folder), 'skip')
    assert len(source.records) == left and ': 1)' in source.notes[-1]
    assert (' and 1 annotations of unlisted images' in source.notes[-1]) == (image == 99)


@pytest.mark.parametrize(('file', 'content', 'remark'), ODD)
def test_what_is_odd_and_harmless_is_a_note(folder, caplog, file, content, remark):
    caplog.set_level(logging.INFO)
    write(folder / file, content)
    source = voc('train', path=folder)
    (note,) = notes_of(source)
    assert note.startswith(f'voc VOC train: {remark}') and note.endswith(': 1 (000000)')
    assert caplog.messages == [] and lint(source).read(0).shape == (60, 80, 3)


def test_an_image_that_is_there_twice_is_a_note(folder):
    for file in (JPG, XML):
        write(folder / file.replace('000000', '000003'), (folder / file).read_bytes())
    for other, remark in (('000000', 'listed twice'), ('000003', 'there under another name too')):
        (folder / 'ImageSets/Main/train.txt').write_text(f'{other}\n000000')
        (note,) = notes_of(voc('train', path=folder))
        assert note == f'voc VOC train: image that is {remark}: 1 (000000)'


def test_whole_data_have_few_notes(folder, tmp_path):
    (folder / 'Annotations/000003.xml').write_text(voc_annotation((70, 90), (VOC_BOX, 1)))
    (note,) = lint(voc('', path=folder)).notes  # a difficult object is none to learn from
    assert note == 'voc VOC all: image without objects: 2 (000001, ..)'
    assert lint(shapes('train', count=4, size=48)).notes == ()
    source = coco('train2017', path=write_coco(tmp_path / 'coco'))
    noted = lint(source._replace(notes=('as it was opened',))).notes
    empty = 'coco coco train2017: box without width or height, left out: 1 (000000000003.jpg)'
    assert noted[0] == 'as it was opened' and empty in noted


def test_many_problems_are_counted_and_the_first_twenty_shown(folder, caplog):
    caplog.set_level(logging.INFO)
    ids = [f'9{i:05}' for i in range(30)]
    for number, image_id in enumerate(ids):
        corners = (30, 2, 20, 40) if number % 3 else (200, 2, 300, 40)
        (folder / f'Annotations/{image_id}.xml').write_bytes(xml(corners))
        (folder / f'JPEGImages/{image_id}.jpg').write_bytes(JPEG)
    (folder / 'ImageSets/Main/many.txt').write_text('\n'.join(ids))
    with pytest.raises(InputError) as error:
        lint(voc('many', path=folder))
    counts = '(box inverted: 20, box outside its image: 10)'
    assert f'has 30 such problems {counts}; mend them' in str(error.value)
    lines = caplog.messages
    assert len(lines) == 21 and all(line.startswith('bad: ') for line in lines)
    assert ids[19] in lines[19] and lines[20] == 'bad: .. and 10 more'
    with pytest.raises(InputError, match=re.escape(f'is left without the bad ones {counts}')):
        lint(voc('many', path=folder), 'skip')


def test_a_file_is_examined_again_only_when_it_changed(folder, cache, monkeypatch):
    seen, examine = [], images.examine
    monkeypatch.setattr(images, 'examine', lambda *both: seen.append(both) or examine(*both))
    for split, expected in (('train', 4), ('train', 4), ('val', 6), ('', 6)):
        lint(voc(split, path=folder))
        assert len(seen) == expected
    write(folder / JPG, JPEG[:-2])
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(InputError, match='truncated'):
            lint(voc('train', path=folder))
        assert len(seen) == 7
    (path,) = (cache / 'lint').iterdir()
    older = path.read_text().replace(f'"version": {lint_module.VERSION}', '"version": 1')
    own = f'{{"version": {lint_module.VERSION}, "files": '
    empty = [f'{own}{files}}}' for files in ('[]', json.dumps({str(folder / JPG): []}))]
    for content in ('', '{', '[]', older, '{"version": 2}', *empty):
        path.write_text(content)
        before = len(seen)
        lint(voc('val', path=folder))
        assert len(seen) == before + 2


def test_a_cache_that_cannot_be_written_only_costs_time(folder, cache):
    cache.write_text('a file where a folder should be')
    assert len(lint(voc('train', path=folder)).records) == 4
    assert files.cache_folder() == cache and cache.is_file()


def test_a_folder_of_pictures_is_checked_too(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(JPEG)
    (tmp_path / 'b.jpg').write_bytes(JPEG[:-2])
    with pytest.raises(InputError, match='b.jpg: the image is truncated'):
        lint(pictures(path=tmp_path))
    source = lint(pictures(path=tmp_path), 'skip')
    assert [record.image_id for record in source.records] == ['a.jpg']


@pytest.mark.parametrize('file', [JPG, XML])
def test_a_pipe_is_refused(folder, file):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(InputError, match='not a file'):
        lint(voc('train', path=folder))


def test_what_follows_the_end_of_a_jpeg_does_not_matter(folder):
    (folder / JPG).write_bytes(JPEG + b'video \xff\xda and more \xff\xd8' + JPEG[:300])
    source = lint(voc('train', path=folder))
    assert source.read(0).shape == (60, 80, 3)


def test_boxes_in_shares_of_the_image_are_refused(folder):
    for path in (folder / 'Annotations').iterdir():
        text = path.read_text()
        path.write_text(re.sub(r'<(xm|ym)(in|ax)>(\d+)<', r'<\1\2>1.0\3<', text))
    with pytest.raises(
        InputError, match='at most 1 pixel wide and high; their numbers must be pixels'
    ):
        lint(voc('', path=folder))
