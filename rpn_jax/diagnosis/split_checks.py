"""Checks the splits as wholes: how much there is to learn from, and what else is measured on.

Each function yields Findings.
"""

import re

import numpy as np

from rpn_jax.data import images
from rpn_jax.data.check import examined
from rpn_jax.data.images import BadRecord
from rpn_jax.data.records import Kind
from rpn_jax.diagnosis.finding import MEASURE, SCHEDULE, TRUTH, Finding
from rpn_jax.diagnosis.statistics import evenly

EXAMINED = 200  # images of the evaluation whose files are compared with those of training


def amount(source, config):
    """Checks the number of images, how many were left out, and how many a run sees."""
    count, seen = len(source.records), config.steps * config.data.batch_size
    if count < 20:
        yield Finding(
            'warning',
            'There are so few images that they will be learnt by heart.',
            f'{count} images in {source.name}',
            'a few hundred',
            'config.data.train_split: a larger one',
            TRUTH,
        )
    if seen < 300:
        yield Finding(
            'warning',
            'The run ends before much can be learnt.',
            f'{config.steps} steps of {config.data.batch_size} images: {seen / count:.2g} times '
            f'the {count} of {source.name}',
            '1000 images from pretrained weights, many more from nothing',
            f'config.steps = {max(1000, 4 * count) // config.data.batch_size}',
            SCHEDULE - 1,
        )
    for note in source.notes:
        left = re.search(r'(\d+) of (\d+) images.* left out', note)
        if left and int(left[1]) > 0.1 * int(left[2]):
            yield Finding(
                'error' if int(left[1]) > 0.5 * int(left[2]) else 'warning',
                'Many images are left out, as something is wrong with them.',
                note,
                'a few',
                'config.data.on_bad = "error" names them; mend the annotations',
                TRUTH + 3,
            )


def evaluated(source, other):
    """Checks the evaluated Source `other`: objects, enough images, none that is trained on."""
    if not any(np.any(record.kind == Kind.OBJECT) for record in other.records):
        yield Finding(
            'error',
            'The split that is evaluated has no object: nothing can be measured.',
            f'{len(other.records)} images in {other.name}',
            'objects',
            'config.data.eval_split, eval_annotations: other annotations',
            MEASURE + 3,
        )
    both, compared = shared(source, other)
    if both > 0.01 * compared:
        yield Finding(
            'error' if both > 0.1 * compared else 'warning',
            'Images of the evaluation are trained on: it measures what was learnt by heart.',
            f'{both} of {compared} images of {other.name} that were compared',
            'none',
            'config.data.eval_split: images that training never sees; remove the copies',
            TRUTH - 5,
        )


def shared(source, other):
    """Returns how many images of a Source `other` are in the first as well, and of how many."""
    if not (source.files and other.files):
        return 0, 0
    digests = {facts.digest for facts in examined(source)}
    names, every = {*source.files.names}, len(other.records)
    rows = evenly(every, EXAMINED).tolist()
    return sum(
        other.files.names[i] in names or _digest(other.files, i) in digests for i in rows
    ), len(rows)


def _digest(files, position):
    try:
        return images.examine(files.load(position), files.names[position]).digest
    except BadRecord:
        return None
