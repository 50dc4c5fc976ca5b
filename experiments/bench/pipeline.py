"""The input pipeline, beside a loader of PIL and float32 batches."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from experiments.bench.ours import Program
from rpn_jax.data import batches, canvases, images
from rpn_jax.data.normalization import FAMILIES
from rpn_jax.data.sources.folder import pictures

EACH = 96  # photographs of a call


def reading(case, path=''):
    """Returns the input pipeline: uint8 batches of the photographs in a folder."""
    source = pictures(path=path, images='*.jpg')
    sizes = [images.decode(source.files.load(i), 'x').shape[:2] for i in range(len(source.records))]
    records = [r._replace(size=size) for r, size in zip(source.records, sizes, strict=True)]
    plan, steps = canvases.square(case.size[0], len(sizes)), range(max(EACH // case.batch, 1))
    settings = dict(seed=0, batch_size=case.batch, max_boxes=1, flip=True)
    make = batches.TrainBatches(source._replace(records=records), plan, **settings)
    rows = [[source.files.names[p] for p in make.positions(step)[1]] for step in steps]
    pool, pil = ThreadPoolExecutor(2), functools.partial(pillow, side=case.size[0])
    beside = {', beside two threads of PIL': lambda: [None for _ in pool.map(pil, rows)]}
    return Program(lambda: [None for _ in batches.threaded(make, steps)], beside=beside)


def pillow(paths, side):
    """Makes a float32 batch as detection code usually does.

    Threads will do, although such loaders use processes: Pillow and NumPy let other threads run
    while they work, and threads need not send their batches anywhere.
    """
    family, made = FAMILIES['torchvision'], []
    mean, std = (np.float32(value) / 255 for value in (family.mean, family.std))
    for path in paths:
        with Image.open(path) as file:
            image = file.convert('RGB').resize((side, side), Image.Resampling.BILINEAR)
        made.append((np.asarray(image, np.float32) / 255 - mean) / std)
    return np.stack(made)
