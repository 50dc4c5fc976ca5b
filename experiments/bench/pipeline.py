"""The input pipeline beside one thread of OpenCV and beside a loader of PIL and float32 batches."""

import functools
import tempfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from PIL import Image

from experiments.bench.ours import Program
from rpn_jax.data import batches, canvases, images
from rpn_jax.data.normalization import FAMILIES
from rpn_jax.data.sources.folder import pictures
from rpn_jax.data.sources.shapes import shapes

DRAWN, SIDES = 96, (375, 500)  # scenes, where no folder is given; their height and width
EACH = 96  # photographs of a call


@functools.lru_cache(maxsize=1)
def drawn():
    """Returns a folder of drawn scenes as JPEG files of photographs' usual size."""
    folder, scenes = tempfile.TemporaryDirectory(), shapes('bench', count=DRAWN, size=max(SIDES))
    for position in range(DRAWN):
        scene = scenes.read(position)[: SIDES[0], :, ::-1]
        noise = np.random.default_rng(position).normal(0, 8, scene.shape)  # as photographs have
        cv2.imwrite(f'{folder.name}/{position}.jpg', np.clip(scene + noise, 0, 255).astype('uint8'))
    return folder


def reading(case, path=''):
    """Returns the input pipeline: uint8 batches of the photographs in a folder, or of scenes."""
    source = pictures(path=path or drawn().name, images='*.jpg')
    sizes = [images.decode(source.files.load(i), 'x').shape[:2] for i in range(len(source.records))]
    records = [r._replace(size=size) for r, size in zip(source.records, sizes, strict=True)]
    if case.stage == 'square':
        plan = canvases.square(case.size[0], len(sizes))
    else:
        settings = dict(image_size=case.size[0], max_size=2 * case.size[0], limit=4)
        plan = canvases.short_side(sizes, **settings, least=case.batch)
    settings = dict(seed=0, batch_size=case.batch, max_boxes=1, flip=True)
    make = batches.TrainBatches(source._replace(records=records), plan, **settings)
    steps = range(max(EACH // case.batch, 1))
    rows = [
        [(source.files.names[p], tuple(plan.sizes[p][::-1].tolist())) for p in positions]
        for positions in (make.positions(step)[1] for step in steps)
    ]
    pool = ThreadPoolExecutor(2)
    return Program(
        lambda: [None for _ in batches.threaded(make, steps)],
        beside={
            ', beside one thread of OpenCV': lambda: [opencv(*row) for row in sum(rows, [])],
            ', beside two threads of PIL': lambda: list(pool.map(pil, rows)),
        },
    )


def opencv(path, size):
    """Decodes and resizes a photograph, and nothing else."""
    with open(path, 'rb') as file:
        image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def pil(rows):
    """Makes a float32 batch as detection code usually does.

    Threads will do, although such loaders use processes: Pillow and NumPy let other threads run
    while they work, and threads need not send their batches anywhere.
    """
    family, made = FAMILIES['torchvision'], []
    mean, std = (np.float32(value) / 255 for value in (family.mean, family.std))
    for path, size in rows:
        with Image.open(path) as file:
            image = file.convert('RGB').resize(size, Image.Resampling.BILINEAR)
        made.append((np.asarray(image, np.float32) / 255 - mean) / std)
    if len({image.shape for image in made}) == 1:
        np.stack(made)
