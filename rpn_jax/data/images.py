"""Read image files of any kind as uint8 RGB pixels; files that are not whole are refused."""

import contextlib
import functools
import hashlib
import io
import os
import re
import threading
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from rpn_jax import files
from rpn_jax.errors import InputError

LARGEST = 2**27  # pixels of an image, and of all that threads hold at once
LONGEST = 2**16  # pixels of a side: no format of a camera has more
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n'
XMP = 'xmp', 'XML:com.adobe.xmp'  # where Pillow looks for an orientation, too
MARKER = re.compile(rb'\xff+[^\x00\xff\xd0-\xd7]')  # in a scan: what is no pixel and no restart
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers that the size follows
ORIENTATION = 0x0112  # the EXIF tag
ORIENTATIONS = {  # its values, and what turns the stored pixels upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
DEEP = 'image of 16 bits or more'
MODES = {  # Pillow's name of what a file holds, and what is odd about that
    **dict.fromkeys(('1', 'L', 'LA', 'La'), 'greyscale image'),
    **dict.fromkeys(('P', 'PA'), 'image with a palette'),
    **dict.fromkeys(('I', 'F', 'I;16', 'I;16B', 'I;16L', 'I;16N'), DEEP),
    'CMYK': 'CMYK image',
}
EXTRA, STRAY = 'JPEG with stray bytes between its parts', 1024  # at most so many


_free, _changed = LARGEST, threading.Condition()


@contextlib.contextmanager
def in_flight(size):
    """Waits until an image of (height, width) fits into LARGEST beside those of other threads."""
    global _free
    pixels = min(size[0] * size[1], LARGEST)
    with _changed:
        _changed.wait_for(lambda: pixels <= _free)
        _free -= pixels
    try:
        yield
    finally:
        with _changed:
            _free += pixels
            _changed.notify_all()


class BadRecord(InputError):
    """Says why one image cannot be trained on; kind is a few words, to count by."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Facts(NamedTuple):
    """What is known of an image file before its pixels are used."""

    size: tuple[int, int]  # height, width as stored; (0, 0) where it cannot be decoded
    digest: str  # of its bytes
    remarks: tuple[str, ...] = ()  # what is odd about it and harmless
    problem: tuple[str, str] = ()  # kind, message: why it cannot be decoded
    orientation: int = 1  # of its EXIF tag: 1 upright, 2 to 8 as ORIENTATIONS


def load(path):
    """Returns the bytes of a file; raises BadRecord where it cannot be read."""
    try:
        return files.read(path)
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        reason = 'no such image' if is_gone else f'cannot be read ({error.strerror})'
        what = f'{path}: {reason}; fetch it or leave it out'
        raise BadRecord('image missing' if is_gone else 'image unreadable', what) from error


def declared_size(path):
    """Returns the (height, width) that an image file says it has; raises BadRecord without any."""
    size = _declared(load(path))[0]
    if not all(size):
        what = f'{path}: says nothing of its size, and its annotation gives none'
        raise BadRecord('annotation without a size', what)
    return size


def shown_size(path, *, upright=True):
    """Returns the (height, width) of an image file, upright as its EXIF tag turns it, or as stored.

    No pixel is decoded, but those of a PNG with an EXIF tag. Raises BadRecord where the file is not
    an image.
    """
    if not os.path.isfile(path):
        load(path)  # which says what is wrong
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # on damaged tags
            with Image.open(path) as image:
                may_turn = image.format != 'PNG' or re.search(b'(?i)exif', load(path))
                turns = upright and may_turn and _exif_orientation(image) > 4
                return (image.width, image.height) if turns else (image.height, image.width)
    except Exception as error:  # whatever a strange head makes Pillow raise
        what = f'{path}: its size cannot be read ({error}); fetch it anew or leave it out'
        raise BadRecord('image unreadable', what) from error


def decode(data, where, size=(0, 0), orientation=1):
    """Decodes the bytes of an image file into uint8 [height, width, 3] RGB.

    The file's own orientation tag is ignored; orientation is the one to apply. Raises BadRecord,
    which begins with `where`, if the file is truncated, no image, larger than LARGEST or, once it
    is turned, not of this (height, width); (0, 0) is any.
    """
    _silence_cv2()
    declared, is_whole = _declared(data)
    if not is_whole:
        what = f'{where}: the image is truncated; fetch it again or leave it out'
        raise BadRecord('image truncated', what)
    if declared[0] * declared[1] > LARGEST or max(declared) > LONGEST:
        shape = (
            f'{declared[1]} x {declared[0]} pixels, more than {LARGEST} or than {LONGEST} a side'
        )
        raise BadRecord('image unreadable', f'{where}: {shape}; make it smaller or leave it out')
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        is_known = all(declared)  # else nothing would bound what is decoded
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if is_known else None
    except cv2.error as error:
        what = f'{where}: cannot be decoded ({error.err})'
        raise BadRecord('image unreadable', what) from error
    if image is None or image.dtype != np.uint8 or image.ndim != 3:
        what = f'{where}: not an image; mend it or leave it out'
        raise BadRecord('image unreadable', what)
    if orientation != 1:
        image = np.ascontiguousarray(ORIENTATIONS[orientation](image))
    check_size(image.shape[:2], size, where)
    return image


def check_size(actual, annotated, where):
    """Raises BadRecord where an image's (height, width) is not the annotated one; (0, 0) is any."""
    if any(annotated) and tuple(actual) != tuple(annotated):
        (h, w), (height, width) = actual, annotated
        what = f'{where}: the image is {w} x {h}, its annotation says {width} x {height}'
        raise BadRecord('image of another size than annotated', what)


def shrunk(image, pixels):
    """Returns an image [h, w, 3], shrunk where it has more pixels than that."""
    factor = min(1, (pixels / (image.shape[0] * image.shape[1])) ** 0.5)
    if factor == 1:
        return image
    sides = [max(1, int(side * factor)) for side in image.shape[1::-1]]
    return cv2.resize(image, sides, interpolation=cv2.INTER_AREA)


def orientation_of(data):
    """Returns the EXIF orientation of an image file, 1 to 8; 1 where it says nothing sensible.

    That of a TIFF is 1: decoders apply its tag.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _exif_orientation(image)
    except Exception:  # whatever a strange head makes Pillow raise
        return 1


def _exif_orientation(image):
    """Returns the same of an image that Pillow has opened; its pixels need not be there."""
    if image.format == 'TIFF':
        return 1
    for key in XMP:  # which no decoder heeds
        image.info.pop(key, None)
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in ORIENTATIONS else 1


def examine(data, where):
    """Decodes the bytes of an image file and returns its Facts; never raises."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    try:
        with in_flight(_declared(data)[0]):
            stray = _check_whole(data, where)
            size = decode(data, where).shape[:2]
    except BadRecord as problem:
        return Facts((0, 0), digest, problem=(problem.kind, str(problem)))
    return Facts(size, digest, _remarks(data) + stray, orientation=orientation_of(data))


def _remarks(data):
    """Returns what is odd about an image file that can be decoded, by what its head says."""
    remarks = []
    try:
        with Image.open(io.BytesIO(data)) as image:
            remarks += [MODES[image.mode]] if image.mode in MODES else []
            if 'A' in image.getbands() or 'transparency' in image.info:
                remarks.append('image with transparency, which is ignored')
            if not data.startswith(JPEG):  # a phone's may hold a depth map besides
                with contextlib.suppress(EOFError):
                    image.seek(1)
                    remarks.append('image of several frames, of which the first is taken')
    except Exception:  # whatever a strange head makes Pillow raise: cv2 has read the pixels
        remarks.append('image whose head is damaged')
    if data.startswith(PNG) and data[24] == 16:  # in colour, of which Pillow's mode says nothing
        remarks.append(DEEP)
    return tuple(dict.fromkeys(remarks))


def _check_whole(data, where):
    """Raises BadRecord where pixels are damaged, which decoders fill in without an error.

    Returns remarks: a few bytes too many do no harm.
    """
    if not _declared(data)[1]:
        return ()  # decode refuses it
    problem = ''
    try:
        if data.startswith(JPEG):
            simplejpeg.decode_jpeg(data, colorspace='GRAY', min_height=1, min_width=1, strict=True)
        elif data.startswith(PNG):
            with Image.open(io.BytesIO(data)) as image:
                image.verify()  # the checksums of its chunks
    except UnidentifiedImageError:
        return ()  # decode refuses this, too
    except Exception as error:  # whatever a strange head makes Pillow raise
        problem = str(error)
    stray = re.search(r'(\d+) extraneous bytes', problem)
    if stray and int(stray[1]) <= STRAY:
        return (EXTRA,)
    if 'Corrupt' in problem or (problem and data.startswith(PNG)):
        what = f'{where}: its pixels are damaged ({problem}); fetch it anew or leave it out'
        raise BadRecord('image damaged', what)
    return ()


def _declared(data):
    """Returns ((height, width), whether the end is there) as an image file says itself.

    Decoders fill up a cut-off JPEG or PNG with grey, without an error. (0, 0) is not known.
    """
    if data.startswith(PNG):
        return _declared_by_png(data)
    if data.startswith(JPEG):
        return _declared_by_jpeg(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return (image.height, image.width), True
    except Image.DecompressionBombError:
        return (LARGEST, LARGEST), True
    except Exception:  # whatever Pillow raises: what it does not know, cv2 may
        return (0, 0), True


def _declared_by_png(data):
    """Returns the same for a PNG.

    cv2 takes memory for what a chunk says of its length. Not whole is a file with a chunk that is
    longer than the file, or with its end before its pixels: there cv2 reads on.
    """
    width, height = (int.from_bytes(data[i : i + 4], 'big') for i in (16, 20))
    position, pixels = len(PNG), False
    while position + 8 <= len(data):
        kind = data[position + 4 : position + 8]
        position += 8 + int.from_bytes(data[position : position + 4], 'big')
        pixels |= kind == b'IDAT'
        if kind == b'IEND':
            return (height, width), pixels and position <= len(data)
        position += 4  # its checksum
    return (height, width), False


def _declared_by_jpeg(data):
    """Returns the same for a JPEG; size and end marker of a thumbnail inside do not count."""
    size, position = (0, 0), 2
    while (match := MARKER.search(data, position)) is not None:
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:
            return size, True
        if marker == 0xDA:  # pixels follow, among which an end cannot be by chance
            return size, data.find(b'\xff\xd9', position) > 0
        if marker in (0x01, 0xD8):  # these two have no length
            continue
        if marker in FRAMES and not any(size):
            sides = data[position + 3 : position + 7]
            size = int.from_bytes(sides[:2], 'big'), int.from_bytes(sides[2:], 'big')
        position += max(int.from_bytes(data[position : position + 2], 'big'), 2)
    return size, False


@functools.cache
def _silence_cv2():
    """Keeps cv2 from writing to stderr what decode raises anyway."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
