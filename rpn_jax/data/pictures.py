"""A folder of images without annotations: for statistics of pixels, not for training."""

from pathlib import Path

import numpy as np

from rpn_jax.data.images import decode
from rpn_jax.data.records import Record, Source
from rpn_jax.errors import InputError

EXTENSIONS = frozenset('.bmp .jpeg .jpg .png .tif .tiff .webp'.split())


def pictures(*, path):
    """Opens all images below a folder, in the order of their paths.

    Their sizes are not known before they are read. Raises InputError where there is none.
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
            size=(0, 0),  # not known before it is read
            boxes=np.zeros((0, 4), np.float32),
            kind=np.zeros(0, np.int32),
        )
        for file in files
    ]

    def read(position):
        return decode(files[position])

    return Source(f'images {folder.name}', records, read)
