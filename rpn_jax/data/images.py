"""Image files -> uint8 RGB pixels, whatever their kind; what is not whole is refused."""

import hashlib
import io
import re
import stat
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from rpn_jax.errors import InputError

Image.MAX_IMAGE_PIXELS = 2**27  # above, it warns; by then cv2 has refused
JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
MARKER = re.compile(rb'\xff+[^\x00\xff\xd0-\xd7]')  # in a scan: what is no pixel and no restart
ORIENTATION = 0x0112  # the EXIF tag
MODES = {  # Pillow's name of what a file holds, and what is odd about that
    **dict.fromkeys(('1', 'L', 'LA', 'La'), 'greyscale image'),
    **dict.fromkeys(('P', 'PA'), 'image with a palette'),
    **dict.fromkeys(('I', 'F', 'I;16', 'I;16B', 'I;16L', 'I;16N'), 'image of 16 bits or more'),
    'CMYK': 'CMYK image',
}
EXTRA, STRAY = 'JPEG with stray bytes between its parts', 1024  # at most so many
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
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for, for ever
            raise BadRecord('image unreadable', f'{path}: not a file; leave it out')
        return Path(path).read_bytes()
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        reason = 'no such image' if is_gone else f'cannot be read ({error.strerror})'
        what = f'{path}: {reason}; fetch it or leave it out'
        raise BadRecord('image missing' if is_gone else 'image unreadable', what) from error


def decode(data, where, size=()):
    """Decodes the bytes of an image file into uint8 [height, width, 3] RGB, as they are stored.

    An orientation tag is ignored. Raises BadRecord, which begins with `where`, if the file is
    truncated, no image, or of another (height, width) than annotated.
    """
    if _truncated(data):
        what = f'{where}: the image is truncated; fetch it again or leave it out'
        raise BadRecord('image truncated', what)
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        what = f'{where}: cannot be decoded ({error.err})'
        raise BadRecord('image unreadable', what) from error
    if image is None or image.dtype != np.uint8 or image.ndim != 3:
        what = f'{where}: not an image; mend it or leave it out'
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
        stray = _check_whole(data, where)
        size = decode(data, where).shape[:2]
    except BadRecord as problem:
        return Facts((0, 0), digest, (), (problem.kind, str(problem)))
    return Facts(size, digest, _remarks(data) + stray)


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


def _check_whole(data, where):
    """Raises BadRecord where pixels are damaged, which decoders fill up with whatever comes.

    Returns remarks: a few bytes too many do no harm.
    """
    if _truncated(data):
        return ()  # decode says so
    problem = ''
    try:
        if data.startswith(JPEG):
            simplejpeg.decode_jpeg(data, colorspace='GRAY', min_height=1, min_width=1, strict=True)
        elif data.startswith(PNG):
            with Image.open(io.BytesIO(data)) as image:
                image.verify()  # the sums of its chunks
    except UnidentifiedImageError:
        return ()  # so does it say of this
    except Exception as error:  # whatever a strange head makes Pillow raise
        problem = str(error)
    stray = re.search(r'(\d+) extraneous bytes', problem)
    if stray and int(stray[1]) <= STRAY:
        return (EXTRA,)
    if 'Corrupt' in problem or (problem and data.startswith(PNG)):
        what = f'{where}: its pixels are damaged ({problem}); fetch it anew or leave it out'
        raise BadRecord('image damaged', what)
    return ()


def _truncated(data):
    """Tells a cut-off JPEG or PNG, which decoders fill up with grey without a word."""
    if data.startswith(PNG):
        return b'IEND' not in data[-64:]
    return data.startswith(JPEG) and not _has_end(data)


def _has_end(data):
    """Says whether a JPEG's own end marker is there; those of thumbnails do not count."""
    place = 2
    while (found := MARKER.search(data, place)) is not None:
        marker, place = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return True
        if marker == 0xDA:  # pixels follow, among which an end cannot be by chance
            return data.find(b'\xff\xd9', place) > 0
        if marker in (0x01, 0xD8):  # these two have no length
            continue
        length = int.from_bytes(data[place : place + 2], 'big')
        place += max(length, 2)
    return False
