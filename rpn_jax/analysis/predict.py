"""Proposals of images of one's own: a json file and a picture of each."""

import json
import os
from pathlib import Path

import numpy as np

from rpn_jax import workdir
from rpn_jax.analysis import drawings
from rpn_jax.data import images
from rpn_jax.data.images import BadRecord
from rpn_jax.data.pictures import image_files
from rpn_jax.errors import InputError

SHOWN = 10  # best proposals in a picture


def find(paths):
    """Returns {image file: name without extension} of files and of all images in folders.

    A name keeps the folders below the one that was given; of two that would be the same the second
    gets a number. Raises InputError where a path is not there, or a folder has no images.
    """
    found, taken = {}, set()
    for path in map(Path, paths):
        if path.is_dir():
            files = {file: file.relative_to(path) for file in image_files(path)}
        elif path.exists():
            files = {path: Path(path.name)}
        else:
            raise InputError(f'{path}: no such file or folder; --mode=predict takes images')
        for file, name in files.items():
            name = plain = name.with_suffix('').as_posix()
            number = 2
            while name in taken:
                name, number = f'{plain}-{number}', number + 1
            if file not in found:
                found[file] = name
                taken.add(name)
    return found


def write(trained, path, place, print=print):
    """Writes an image's proposals to place.json and place.png; returns whether it could be read.

    Boxes are (x0, y0, x1, y1) in pixels of the image as it is stored, best first.
    """
    try:
        image = images.decode(images.load(path), path)
    except BadRecord as error:
        print(f'skipped: {error}')
        return False
    proposals = trained.propose(image)
    boxes, scores = (x[proposals.valid] for x in (proposals.boxes, proposals.scores))
    content = {
        'image': os.fspath(path),
        'height': image.shape[0],
        'width': image.shape[1],
        'step': int(trained.step),
        'boxes': np.round(boxes.astype(float), 2).tolist(),
        'scores': np.round(scores.astype(float), 5).tolist(),
    }
    workdir.make(place.parent)
    workdir.write_atomically(place.with_name(f'{place.name}.json'), json.dumps(content) + '\n')
    labels = [f'{score:.2f}' for score in scores[:SHOWN]]
    colour = drawings.COLOURS['proposal']
    picture = drawings.draw_boxes(image, boxes[:SHOWN], colour, labels=labels)
    drawings.write_png(place.with_name(f'{place.name}.png'), picture)
    return True
