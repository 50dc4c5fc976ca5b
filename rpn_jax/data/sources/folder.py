"""A folder of images without annotations: for statistics of pixels, not for training."""

import os
from pathlib import Path

from rpn_jax.data.images import EXTENSIONS
from rpn_jax.data.records import from_paths, without_boxes
from rpn_jax.errors import InputError


def pictures(split='', *, path, images=''):
    """Opens all images below a folder, sorted by path; linked folders are followed.

    `images` restricts them to a pattern such as '*/image/*.jpg', as pathlib knows it; the split is
    ignored. Sizes are not known before the images are read. Raises InputError where there is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f'path: no folder {folder}; it needs one of images')
    files = [
        file for file in listing(folder)[0] if not images or file.relative_to(folder).match(images)
    ]
    if not files:
        raise InputError(f'{folder}: no images match images={images!r}')
    records = [without_boxes(file.relative_to(folder).as_posix()) for file in files]
    return from_paths(f'images {folder.name}', records, files)


def listing(folder, without=''):
    """Returns the sorted paths of the images and of the other files below a folder, none hidden.

    Files below the folder `without` are left out. Raises InputError where there is no image.
    """
    images, others = [], []
    for file in walk(folder, without):
        (images if file.suffix.lower() in EXTENSIONS else others).append(file)
    if not images:
        raise InputError(f'{folder}: no images ({", ".join(sorted(EXTENSIONS))})')
    return images, others


def walk(folder, without=''):
    """Returns the sorted paths of all files below a folder, none hidden; links are followed."""
    seen, files = {os.path.realpath(without)} if without else set(), []
    for below, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(below)) in seen:  # links may lead to a folder again
            inner.clear()
            continue
        seen.add(real)
        files += [Path(below) / name for name in names if not name.startswith('.')]
    return sorted(files)
