"""A folder of images without annotations: for statistics of pixels, not for training."""

import os
from pathlib import Path

from rpn_jax.data.records import from_paths, without_boxes
from rpn_jax.errors import InputError

EXTENSIONS = frozenset('.bmp .jpeg .jpg .png .tif .tiff .webp'.split())


def pictures(*, path, pattern=''):
    """Opens all images below a folder, in the order of their paths, linked folders as well.

    pattern restricts them: '*/image/*.jpg' as pathlib knows it. Their sizes are not known before
    they are read. Raises InputError where there is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f'config key data.path: no folder {folder}; it needs one of images')
    files = [
        file
        for file in image_files(folder)
        if not pattern or file.relative_to(folder).match(pattern)
    ]
    if not files:
        raise InputError(f'{folder}: no images like {pattern!r}; config key data.images')
    records = [without_boxes(file.relative_to(folder).as_posix()) for file in files]
    return from_paths(f'images {folder.name}', records, files)


def image_files(folder):
    """Returns the paths of all images below a folder, sorted; hidden files are none.

    Raises InputError where there is none.
    """
    return listing(folder)[0]


def listing(folder, without=''):
    """Returns the sorted paths of the images and of the other files below a folder, none hidden.

    What lies in the folder `without` is left out. Raises InputError where there is no image.
    """
    skipped = {os.path.realpath(without)} if without else set()
    files = [Path(place) / name for place, names in _walk(folder, skipped) for name in names]
    images, others = [], []
    for file in sorted(files):
        if not file.name.startswith('.'):
            (images if file.suffix.lower() in EXTENSIONS else others).append(file)
    if not images:
        raise InputError(f'{folder}: no images ({", ".join(sorted(EXTENSIONS))})')
    return images, others


def _walk(folder, seen):
    """Yields (folder, names of its files) below a folder, each once however it is linked."""
    for place, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            inner.clear()
            continue
        seen.add(real)
        yield place, names
