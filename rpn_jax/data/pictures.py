"""A folder of images without annotations: for statistics of pixels, not for training."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from rpn_jax.data.images import decode
from rpn_jax.data.records import Record, Source
from rpn_jax.errors import InputError

EXTENSIONS = frozenset('.bmp .jpeg .jpg .png .tif .tiff .webp'.split())


def pictures(*, path):
    """Opens all images below a folder, in the order of their paths.

    Their sizes come from the files' heads. Raises InputError where there is none, or where a file
    named like an image is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f'config key data.path: no folder {folder}; it needs one of images')
    files = sorted(
        file for file in folder.rglob('*') if file.suffix.lower() in EXTENSIONS and file.is_file()
    )
    if not files:
        raise InputError(f'{folder}: no images ({", ".join(sorted(EXTENSIONS))})')
    records = [
        Record(
            image_id=file.relative_to(folder).as_posix(),
            size=_size(file),
            boxes=np.zeros((0, 4), np.float32),
            kind=np.zeros(0, np.int32),
        )
        for file in files
    ]

    def read(position):
        return decode(files[position], records[position].size)

    return Source(f'images {folder.name}', records, read)


def _size(file):
    """Returns the (height, width) that a file's head tells, without decoding it."""
    try:
        with Image.open(file) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise InputError(f'{file}: not an image; mend it or take it out of the folder') from error
    except Image.DecompressionBombError as error:
        raise InputError(f'{file}: an image of too many pixels') from error
