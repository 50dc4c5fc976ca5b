"""Pixels come out of files as they are; what is damaged or too large is refused by its file."""

import struct

import cv2
import numpy as np
import pytest
from data_files import damaged, encoded, jpeg_with, png_of, turned_jpeg

from rpn_jax.data import images
from rpn_jax.data.images import load
from rpn_jax.errors import InputError


def decode(path, size=()):
    """Decodes a file."""
    return images.decode(load(path), path, size)


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_a_red_image_stays_red(tmp_path, extension):
    path = tmp_path / f'red{extension}'
    path.write_bytes(encoded(np.full((20, 30, 3), (0, 0, 255), np.uint8), extension))
    image = decode(path, (20, 30))
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], image.shape), atol=2)


def test_the_orientation_tag_is_ignored(tmp_path):
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:20] = 255
    data = turned_jpeg(picture, 6)
    obedient = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert obedient.shape == (80, 60, 3)
    (tmp_path / 'turned.jpg').write_bytes(data)
    image = decode(tmp_path / 'turned.jpg', (60, 80))
    assert image[:18].min() > 200 and image[22:].max() < 50


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_a_grey_image_has_three_equal_channels(tmp_path, extension):
    grey = np.tile(np.arange(0, 160, 2, dtype=np.uint8), (60, 1))
    (tmp_path / f'x{extension}').write_bytes(encoded(grey, extension))
    image = decode(tmp_path / f'x{extension}')
    assert image.shape == (60, 80, 3) and np.ptp(image, axis=-1).max() == 0
    np.testing.assert_allclose(image[..., 0], grey, atol=3)


def test_transparency_and_sixteen_bits_become_plain_pixels(tmp_path):
    colour = (10, 20, 200)
    transparent = np.full((20, 30, 4), (*colour, 7), np.uint8)
    deep = np.full((20, 30, 3), colour, np.uint16) * 257
    for picture in (transparent, deep):
        (tmp_path / 'x.png').write_bytes(encoded(picture, '.png'))
        image = decode(tmp_path / 'x.png')
        np.testing.assert_array_equal(image, np.broadcast_to(colour[::-1], (20, 30, 3)))


@pytest.mark.parametrize(
    ('name', 'data', 'complaint'), [pytest.param(*rest, id=title) for title, *rest in damaged()]
)
def test_a_damaged_picture_is_refused_by_its_file(tmp_path, capfd, name, data, complaint):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f'{name}: .*{complaint}') as error:
        decode(tmp_path / name, (60, 80))
    assert '\n' not in str(error.value) and capfd.readouterr() == ('', '')


def test_a_whole_picture_with_a_thumbnail_is_read(tmp_path):
    jpeg = encoded(np.full((60, 80, 3), 90, np.uint8))
    (tmp_path / 'x.jpg').write_bytes(jpeg_with(jpeg, b'Exif\0\0' + encoded(np.zeros((16, 16)))))
    assert abs(decode(tmp_path / 'x.jpg').mean() - 90) < 2


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
