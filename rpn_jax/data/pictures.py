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
    files = [Path(place) / name for place, names in _walk(folder) for name in names]
    files = [f for f in files if f.suffix.lower() in EXTENSIONS and not f.name.startswith('.')]
    if not files:
        raise InputError(f'{folder}: no images ({", ".join(sorted(EXTENSIONS))})')
    return sorted(files)


def _walk(folder):
    """Yields (folder, names of its files) below a folder, each once however it is linked."""
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            inner.clear()
            continue
        seen.add(real)
        yield place, names
