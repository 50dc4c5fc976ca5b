"""Proposals of images of one's own: a json file and a picture of each."""

import json
import os
from pathlib import Path

import numpy as np

from rpn_jax import files
from rpn_jax.data import images
from rpn_jax.data.images import BadRecord
from rpn_jax.data.sources.folder import EXTENSIONS, listing
from rpn_jax.errors import InputError
from rpn_jax.report import drawings

SHOWN = 10  # best proposals in a picture


def find(paths, output, print=print):
    """Returns {image file: name without extension} of files and of all images in folders.

    A name keeps the folders below the one that was given; of two that would be the same the second
    gets a number. What lies in the output folder, pictures drawn before, is left out. Says how many
    files of folders are no images. Raises InputError where a path is not there, a folder has no
    images, or a picture would be written over an image.
    """
    found, taken, passed = {}, set(), []
    for path in map(Path, paths):
        if path.is_dir():
            if os.path.realpath(path) == os.path.realpath(output):
                raise InputError(f'--output={output}: holds the images; name another folder')
            files, others = listing(path, without=output)
            files = {file: file.relative_to(path) for file in files}
            passed += others
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
    written = {os.path.realpath(f'{output / name}.png') for name in taken}
    if over := [file for file in found if os.path.realpath(file) in written]:
        raise InputError(f'{over[0]}: its picture would be written over it; name another --output')
    if passed:
        known = ', '.join(sorted(EXTENSIONS))
        print(f'passed over: {len(passed)} of other extensions, as {passed[0]}; images are {known}')
    return found


def write(trained, path, place, print=print):
    """Writes an image's proposals to place.json and place.png; returns whether it could be read.

    Boxes are (x0, y0, x1, y1) in pixels of the image as it is stored, best first. Raises InputError
    where a file cannot be written.
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
    labels = [f'{score:.2f}' for score in scores[:SHOWN]]
    colour = drawings.COLOURS['proposal']
    picture = drawings.draw_boxes(image, boxes[:SHOWN], colour, labels=labels)
    files.make_folder(place.parent, '--output')
    target = place.with_name(f'{place.name}.json')
    try:
        files.write_atomically(target, json.dumps(content) + '\n')
        target = place.with_name(f'{place.name}.png')
        drawings.write_png(target, picture)
    except OSError as error:
        what = (
            f'{target}: cannot be written ({error.strerror}); make room, or name another --output'
        )
        raise InputError(what) from error
    return True
