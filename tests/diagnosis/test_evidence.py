"""Evidence: originals are decoded where decoders agree; distances are those of areas."""

import io

import cv2
import numpy as np
import pytest
from data_files import encoded
from helpers import PICTURE_SIZE, noise
from PIL import Image

from rpn_jax.data.normalization import denormalise, normalise, pixel_family
from rpn_jax.data.records import Record
from rpn_jax.diagnosis import evidence


def measure(original, shown, boxes, moved):
    """Returns the Evidence of a picture in the corner of a canvas; moved are its boxes there."""
    record = Record('x', PICTURE_SIZE, np.float32(boxes), np.ones(len(boxes), np.int32))
    image = np.zeros((64, 64, 3), np.uint8)
    image[: shown.shape[0], : shown.shape[1]] = shown
    row = {'image': image, 'boxes': np.float32(moved), 'kind': np.ones(len(moved), np.int32)}
    row['size'] = np.float32(shown.shape[:2])
    pixels = pixel_family('torchvision')
    network = np.asarray(normalise(image[None], row['size'][None], pixels))
    seen = denormalise(network, pixels)[0]
    return evidence.compare(record, original, network[0], seen, row, shown.shape[:2], pixels)


def test_plain_files_are_decoded_as_they_are_and_others_are_left_alone():
    def saved(mode, kind, **options):
        file = io.BytesIO()
        Image.fromarray(noise()).convert(mode).save(file, kind, **options)
        return file.getvalue()

    for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1'):
        data = saved(mode, 'PNG', **({'transparency': b'\x10\x20'} if mode == 'P' else {}))
        expected = np.asarray(Image.fromarray(noise()).convert(mode).convert('RGB'))
        np.testing.assert_array_equal(evidence.decode(data), expected)
    tags = Image.Exif()
    tags[0x0112] = 6  # an orientation, which turns nothing
    assert evidence.decode(saved('RGB', 'JPEG', exif=tags)).shape == (*PICTURE_SIZE, 3)
    deep = encoded(np.full(PICTURE_SIZE, 40_000, np.uint16), '.png')
    unknown = b'no image', b'', encoded(noise(), '.png')[:200]
    for data in (saved('CMYK', 'JPEG'), deep, *unknown):  # decoders disagree on the first two
        assert evidence.decode(data) is None


def test_a_picture_is_nearest_to_itself():
    picture, box = noise(), [[10, 12, 40, 36]]
    found = measure(picture, picture, box, box)
    assert found.turns['upright'] == 0 and found.colours['RGB'] == 0
    assert min(v for k, v in found.turns.items() if k != 'upright') > 10
    assert min(v for k, v in found.colours.items() if k != 'RGB') > 5
    assert found.round_trip == found.outside == found.beyond == 0 and found.formula < 1e-3
    assert found.corners[False].tolist() == [0] and found.patches[False].tolist() == [0]
    assert found.corners[True].max() == 10 and found.patches[True].min() > 10
    assert found.moved.min() > 5 and found.padded and found.same_objects


@pytest.mark.parametrize('size', [(20, 30), (57, 33), (64, 64)])
def test_a_resize_changes_little(size):
    picture = noise()
    scale = np.tile(np.divide(size[::-1], PICTURE_SIZE[::-1]), 2)
    small = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
    found = measure(picture, small, [[10, 2, 58, 36]], [[10, 2, 58, 36] * scale])
    assert found.turns['upright'] < 4 and found.patches[False].max() < 4
    assert found.corners[False].max() < 1e-5 and found.size == size == found.planned


def test_content_of_a_box_is_averaged_over_its_exact_area():
    ramp = np.repeat(np.arange(60, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    cells = evidence._cells(evidence._sums(ramp), [10.25, 3.5, 26.25, 19.5], 8)
    expected = 10.25 + 1 + 2 * np.arange(8) - 0.5  # the middles of cells, of pixels from their own
    np.testing.assert_allclose(cells[..., 0], np.tile(expected, (8, 1)), atol=0.13)
    corner = evidence._cells(evidence._sums(ramp), [0, 0, 1, 1], 1)
    assert corner.tolist() == [[[0, 0, 0]]]


def test_without_content_or_an_original_there_are_corners_only():
    box = [[10, 12, 17, 36]]  # too small to compare its content
    found = measure(noise(), noise(), box, box)
    assert len(found.patches[False]) == 0 and found.corners[False].tolist() == [0]
    found = measure(noise(), noise(), [[1, 2, 30, 30], [5, 5, 20, 20]], [[1, 2, 30, 30]])
    assert not found.same_objects and len(found.corners[False]) == 0
    found = measure(None, noise(), [[1, 2, 30, 30]], [[3, 2, 30, 61]])
    assert found.turns == {} == found.colours and len(found.patches[True]) == 0
    assert found.corners[False].tolist() == [31] and found.beyond == 21
