"""Proposals of a user's own images: a json file and a picture of each, and a page of pictures."""

import json
import logging
import os
import urllib.parse
from pathlib import Path

import numpy as np

from rpn_jax import files
from rpn_jax.data import images
from rpn_jax.data.images import BadRecord
from rpn_jax.data.sources.folder import EXTENSIONS, listing
from rpn_jax.errors import InputError
from rpn_jax.report import drawings, pages
from rpn_jax.training import hosts

logger = logging.getLogger(__name__)
SHOWN = 10  # best proposals in a picture
PICTURES = 2000  # on a page at most


def find(paths, output):
    """Returns {image file: name without extension} of files, and of all images in folders.

    A name keeps the folders below the given one; where two would be equal the second gets a number.
    Files in the output folder, pictures drawn before, are left out; files of other extensions are
    counted in the log. Raises InputError where a path does not exist, a folder has no images, or a
    picture would overwrite an image.
    """
    names, taken, others = {}, {}, []
    for path in map(Path, paths):
        if path.is_dir():
            if os.path.realpath(path) == os.path.realpath(output):
                raise InputError(f'--output={output}: holds the images; name another folder')
            inside, rest = listing(path, without=output)
            own = {file: file.relative_to(path) for file in inside}
            others += rest
        elif path.exists():
            own = {path: Path(path.name)}
        else:
            raise InputError(f'{path}: no such file or folder; --mode=predict takes images')
        for file, name in own.items():
            if file not in names:
                names[file] = _free(name.with_suffix('').as_posix(), taken)
    written = {os.path.realpath(f'{output / name}.png') for name in taken}
    if over := [file for file in names if os.path.realpath(file) in written]:
        raise InputError(f'{over[0]}: its picture would overwrite it; name another --output')
    if others:
        known = ', '.join(sorted(EXTENSIONS))
        logger.info(f'{len(others)} files skipped, such as {others[0]}; images are {known}')
    return names


def _free(name, taken):
    """Returns the name, with a number where it is taken, and takes it.

    taken is {name: the number that it was last given}, so that a million equal names take a million
    steps.
    """
    free = name
    while free in taken:
        taken[name] += 1
        free = f'{name}-{taken[name]}'
    taken[free] = 1
    return free


def write(detector, path, target):
    """Writes an image's proposals to target.json and target.png; returns whether it was readable.

    Boxes are (x0, y0, x1, y1) in pixels of the image, best first; it is turned as its EXIF
    orientation says, unless data.orientation is 'ignore', and the json names the orientation that
    was applied, 1 where none was. An image that cannot be read is reported in the log. Raises
    InputError where a file cannot be written.
    """
    try:
        data = images.load(path)
        turns = detector.config.data.get('orientation') != 'ignore'
        orientation = images.orientation_of(data) if turns else 1
        image = images.decode(data, path, orientation=orientation)
    except BadRecord as error:
        logger.error(f'{hosts.prefix()}skipped: {error}')  # shown of every process
        return False
    proposals = detector.propose(image)
    boxes, scores = (x[proposals.valid] for x in (proposals.boxes, proposals.scores))
    content = {
        'image': os.fspath(path),
        'height': image.shape[0],
        'width': image.shape[1],
        'orientation': orientation,
        'step': int(detector.step),
        'boxes': np.round(boxes.astype(float), 2).tolist(),
        'scores': np.round(scores.astype(float), 5).tolist(),
    }
    labels = [f'{score:.2f}' for score in scores[:SHOWN]]
    colour = drawings.COLOURS['proposal']
    picture = drawings.draw_boxes(image, boxes[:SHOWN], colour, labels=labels)
    files.make_folder(target.parent, '--output')
    for suffix, data in (
        ('json', json.dumps(content) + '\n'),
        ('png', drawings.encode_png(picture)),
    ):
        files.write_atomically(target.with_name(f'{target.name}.{suffix}'), data)
    return True


def write_page(folder, names, step):
    """Writes predictions.html with those pictures that are in the folder, and returns its path.

    The page refers to the pictures, and is in their folder.
    """
    there = [name for name in names if (folder / f'{name}.png').exists()]
    links = [urllib.parse.quote(os.fsencode(name)) for name in there[:PICTURES]]
    page, shown = folder / 'predictions.html', zip(there, links, strict=False)
    values = dict(title=folder.absolute().name, count=len(there), best=SHOWN, step=step)
    pages.write(page, 'predictions.html.j2', shown=list(shown), **values)
    return page
