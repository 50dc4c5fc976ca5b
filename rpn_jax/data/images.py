"""Image files -> uint8 RGB pixels, whatever their kind; what is not whole is refused."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from rpn_jax.errors import InputError

Image.MAX_IMAGE_PIXELS = 2**27  # above, it warns; by then cv2 has refused
PNG = b'\x89PNG\r\n\x1a\n'
ORIENTATION = 0x0112  # the EXIF tag
MODES = {  # Pillow's name of what a file holds, and what is odd about that
    **dict.fromkeys(('1', 'L', 'LA', 'La'), 'greyscale image'),
    **dict.fromkeys(('P', 'PA'), 'image with a palette'),
    **dict.fromkeys(('I', 'F', 'I;16', 'I;16B', 'I;16L', 'I;16N'), 'image of 16 bits or more'),
    'CMYK': 'CMYK image',
}
TURNED = 'image that its EXIF tag turns; the tag is ignored'


class BadRecord(InputError):
    """Says why one image would train wrongly; kind is a few words, to count by."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Facts(NamedTuple):
    """What there is to know of an image file before its pixels are used."""

    size: tuple[int, int]  # height, width; (0, 0) where it cannot be decoded
    digest: str  # of its bytes
    remarks: tuple[str, ...] = ()  # what is odd about it and harmless
    problem: tuple[str, str] = ()  # kind, message: why it cannot be decoded


def load(path):
    """Returns the bytes of a file; raises BadRecord where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        reason = 'no such image' if is_gone else f'cannot be read ({error.strerror})'
        what = f'{path}: {reason}; fetch it or take it off the list'
        raise BadRecord('image missing' if is_gone else 'image unreadable', what) from error


def decode(data, where, size=()):
    """Decodes the bytes of an image file into uint8 [height, width, 3] RGB, as they are stored.

    An orientation tag is ignored. Raises BadRecord, which begins with `where`, if the file is
    truncated, no image, or of another (height, width) than annotated.
    """
    if _truncated(data):
        what = f'{where}: the image is truncated; fetch it again or take it off the list'
        raise BadRecord('image truncated', what)
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        what = f'{where}: cannot be decoded ({error.err})'
        raise BadRecord('image unreadable', what) from error
    if image is None:
        what = f'{where}: not an image; mend it or take it off the list'
        raise BadRecord('image unreadable', what)
    check_size(image.shape[:2], size, where)
    return image


def check_size(found, size, where, turned=False):
    """Raises BadRecord where an image's (height, width) is not the annotated one; () is any."""
    if size and tuple(found) != tuple(size):
        (h, w), (height, width) = found, size
        what = f'{where}: the image is {w} x {h}, its annotation says {width} x {height}'
        if turned and (w, h) == (height, width):
            what += '; its EXIF tag turns it: store the pixels turned, without the tag'
        raise BadRecord('image of another size than annotated', what)


def examine(data, where):
    """Decodes the bytes of an image file and returns its Facts; never raises."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    try:
        size = decode(data, where).shape[:2]
    except BadRecord as problem:
        return Facts((0, 0), digest, (), (problem.kind, str(problem)))
    return Facts(size, digest, _remarks(data))


def _remarks(data):
    """Returns what is odd about an image file that can be decoded, by what its head says."""
    remarks = []
    try:
        with Image.open(io.BytesIO(data)) as image:
            remarks += [MODES[image.mode]] if image.mode in MODES else []
            if 'A' in image.getbands() or 'transparency' in image.info:
                remarks.append('image with transparency, which is ignored')
            if image.getexif().get(ORIENTATION, 1) in range(2, 9):
                remarks.append(TURNED)
    except Exception:  # whatever a strange head makes Pillow raise: cv2 has read the pixels
        remarks.append('image whose head is damaged')
    deep = 'image of 16 bits or more'
    if data.startswith(PNG) and data[24] == 16 and deep not in remarks:
        remarks.append(deep)
    return tuple(remarks)


def _truncated(data):
    """Tells a cut-off JPEG or PNG, which decoders fill up with grey without a word."""
    if data[:2] == b'\xff\xd8':  # the end marker must follow the last scan, not only a thumbnail's
        return data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda')
    return data.startswith(PNG) and b'IEND' not in data[-64:]
