"""Pixels come out of files as they are; what is damaged or too large is refused by its file."""

import struct

import cv2
import numpy as np
import pytest
from data_files import damaged, encoded, jpeg_with, png_of, turned_jpeg
from PIL import Image

from rpn_jax.data import images
from rpn_jax.data.images import load
from rpn_jax.errors import InputError


def decode(path, size=()):
    """Decodes a file."""
    return images.decode(load(path), path, size)


RED = np.full((20, 30, 3), (10, 20, 200), np.uint8)  # as BGR
RAMP = np.tile(np.arange(0, 160, 2, dtype=np.uint8), (60, 1))
STEP = np.repeat(np.uint8([255, 0]), [20, 40])[:, None].repeat(80, 1)
CLEAR = np.dstack([RED, np.full((20, 30), 7, np.uint8)])


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        *((encoded(RED, extension), RED[..., ::-1]) for extension in ('.jpg', '.png')),
        *((encoded(RAMP, extension), np.dstack([RAMP] * 3)) for extension in ('.jpg', '.png')),
        (encoded(CLEAR, '.png'), RED[..., ::-1]),
        (encoded(RED.astype(np.uint16) * 257, '.png'), RED[..., ::-1]),  # of 16 bits
        (turned_jpeg(STEP, 6), np.dstack([STEP] * 3)),  # the tag is ignored
        (jpeg_with(encoded(RAMP), b'Exif\0\0' + encoded(RED)), np.dstack([RAMP] * 3)),  # thumbnail
    ],
)
def test_a_picture_is_read_as_plain_rgb(tmp_path, data, expected):
    (tmp_path / 'x').write_bytes(data)
    image = decode(tmp_path / 'x', expected.shape[:2])
    assert image.shape == expected.shape and image.dtype == np.uint8
    np.testing.assert_allclose(image, expected, atol=3 if data[:2] == b'\xff\xd8' else 0)


@pytest.mark.parametrize(
    ('name', 'data', 'complaint'), [pytest.param(*rest, id=title) for title, *rest in damaged()]
)
def test_a_damaged_picture_is_refused_by_its_file(tmp_path, capfd, name, data, complaint):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f'{name}: .*{complaint}') as error:
        decode(tmp_path / name, (60, 80))
    assert '\n' not in str(error.value) and capfd.readouterr() == ('', '')


def huge():
    """Yields small files that say that they are of 30,000 x 15,000 pixels or more."""
    yield pytest.param(png_of(30_000, 15_000), id='png')
    for extension, sides, form in (('.jpg', (60, 80), '>HH'), ('.bmp', (80, 60), '<II')):
        data = encoded(np.zeros((60, 80, 3), np.uint8), extension)
        sides, larger = struct.pack(form, *sides), struct.pack(form, *(s * 375 for s in sides))
        assert data.count(sides) == 1
        yield pytest.param(data.replace(sides, larger), id=extension)


@pytest.mark.parametrize('data', [*huge()])
def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, data):
    monkeypatch.setattr(images.cv2, 'imdecode', None)  # it is not even tried
    (tmp_path / 'x').write_bytes(data)
    with pytest.raises(InputError, match='x: .* more than 134217728'):
        decode(tmp_path / 'x')


@pytest.mark.parametrize('tag', range(1, 9))
@pytest.mark.parametrize('kind', ['.jpg', '.png', '.webp', '.tif'])
def test_an_orientation_is_applied_once_as_opencv_does(tmp_path, kind, tag):
    """TIFF's is applied by the decoder itself."""
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:24, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f'x{kind}'
    options = {'tiffinfo': exif} if kind == '.tif' else {'exif': exif}
    Image.fromarray(corner).save(path, **options)
    data = path.read_bytes()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    upright = images.decode(data, path, orientation=images.orientation_of(data))
    np.testing.assert_allclose(upright.astype(int), expected, atol=12)
    assert images.shown_size(path) == expected.shape[:2]
    white = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[tag]  # quarter, row by row
    rows, columns = (slice(side // 2) for side in upright.shape[:2])
    quarters = [upright[rows, columns], upright[rows, columns.stop :]]
    quarters += [upright[rows.stop :, columns], upright[rows.stop :, columns.stop :]]
    assert np.argmax([quarter.mean() for quarter in quarters]) == white


def test_what_stands_far_behind_or_in_xmp_alone_does_not_mislead(tmp_path):
    picture, path = np.zeros((48, 64, 3), np.uint8), tmp_path / 'x.jpg'
    turned = turned_jpeg(picture, 6)
    at = turned.index(b'\xff\xda')  # segments between its size and its pixels
    path.write_bytes(turned[:at] + (b'\xff\xfe\xff\xff' + bytes(0xFFFF - 2)) * 3 + turned[at:])
    assert images.shown_size(path) == (64, 48)
    assert images.shown_size(path, upright=False) == (48, 64)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:Description tiff:Orientation="6"/></x:xmpmeta>'
    jpeg = jpeg_with(encoded(picture), b'http://ns.adobe.com/xap/1.0/\0' + xmp)
    path.write_bytes(jpeg)
    assert images.orientation_of(jpeg) == 1 and images.shown_size(path) == (48, 64)
