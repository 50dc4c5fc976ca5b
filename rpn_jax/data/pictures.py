"""A folder of images without annotations: for statistics of pixels, not for training."""

from pathlib import Path

from rpn_jax.data.records import from_paths, without_boxes
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
    records = [without_boxes(file.relative_to(folder).as_posix()) for file in files]
    return from_paths(f'images {folder.name}', records, files)
