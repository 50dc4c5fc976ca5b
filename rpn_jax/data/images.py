"""Image files -> uint8 RGB pixels, whatever their kind; what is not whole is refused."""

from pathlib import Path

import cv2
import numpy as np

from rpn_jax.errors import InputError


def decode(path, size=None):
    """Decodes an image file into uint8 [height, width, 3] RGB; its orientation tag is ignored.

    Raises InputError where the file is truncated, no image, or of another (height, width) than
    annotated.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
    if _truncated(data):
        raise InputError(f'{path}: the image is truncated; fetch it again or take it off the list')
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise InputError(f'{path}: cannot be decoded ({error.err})') from error
    if image is None:
        raise InputError(f'{path}: not an image; mend it or take it off the list')
    if size is not None and image.shape[:2] != tuple(size):
        (h, w), (height, width) = image.shape[:2], size
        raise InputError(f'{path}: the image is {w} x {h}, its annotation says {width} x {height}')
    return image


def _truncated(data):
    """Tells a cut-off JPEG or PNG, which decoders fill up with grey without a word."""
    if data[:2] == b'\xff\xd8':  # the end marker must follow the last scan, not only a thumbnail's
        return data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda')
    return data[:8] == b'\x89PNG\r\n\x1a\n' and b'IEND' not in data[-64:]
