"""Data: a source's records -> resized, flipped, padded uint8 batches."""

import os
from typing import NamedTuple

os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**27))  # read when cv2 is imported

from rpn_jax.data import batches as batching
from rpn_jax.data import canvases
from rpn_jax.data.coco import coco
from rpn_jax.data.lint import ON_BAD, lint
from rpn_jax.data.pictures import pictures
from rpn_jax.data.pixels import pixel_family
from rpn_jax.data.shapes import shapes
from rpn_jax.data.voc import voc
from rpn_jax.errors import InputError

SOURCES = ('voc', 'coco', 'shapes', 'images')
RESIZES = ('square', 'short_side')


class Options(NamedTuple):
    """The config section `data`, key by key; see configs/default.py."""

    source: str
    path: str
    name: str
    train_split: str
    eval_split: str
    images: str
    annotations: str
    scenes: tuple[int, int]
    resize: str
    image_size: int
    max_size: int
    canvases: int
    batch_size: int
    max_boxes: int
    flip: bool
    pixels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    on_bad: str


def check(options):
    """Returns the options; raises InputError where they contradict themselves."""
    for key, choices in (('source', SOURCES), ('resize', RESIZES), ('on_bad', ON_BAD)):
        if (value := getattr(options, key)) not in choices:
            known = ', '.join(map(repr, choices))
            raise InputError(f'config key data.{key}: {value!r} is not one of {known}')
    for key in ('image_size', 'max_size', 'canvases', 'batch_size', 'max_boxes'):
        if (value := getattr(options, key)) < 1:
            raise InputError(f'config key data.{key}: {value} is not at least 1')
    if len(options.scenes) != 2 or not all(isinstance(count, int) for count in options.scenes):
        raise InputError(f'config key data.scenes: {options.scenes!r} is not two whole numbers')
    family = 'torchvision' if options.pixels == 'auto' else options.pixels
    pixel_family(family, options.mean, options.std)
    return options


def open_split(options, split, *, seed=0, training=True, boxes=True, print=print):
    """Opens the source of one split, checks every image of it, and that its boxes fit a batch.

    With boxes=False no batch is meant: a folder of images without annotations will do.
    """
    if seed < 0:
        raise InputError(f'config key seed: {seed} is not at least 0')
    if options.source == 'images':
        if boxes:
            raise InputError(
                "config key data.source: 'images' has no boxes to learn from; it is for "
                '--mode=statistics'
            )
        return lint(pictures(path=options.path), options.on_bad, print)
    if options.source == 'shapes':
        count = options.scenes[0 if training else 1]
        source = shapes(split, count=count, size=options.image_size, seed=seed)
    else:
        places = dict(path=options.path, images=options.images, annotations=options.annotations)
        source = {'voc': voc, 'coco': coco}[options.source](split, **places)
    source = lint(source, options.on_bad, print)
    if boxes:
        batching.check_boxes(source, options.max_boxes)
    return source


def plan(sizes, options, *, least=1):
    """Returns the Canvases for images of these sizes (height, width), at least so many on each."""
    if options.resize == 'square':
        return canvases.square(options.image_size, len(sizes))
    return canvases.short_side(
        sizes,
        image_size=options.image_size,
        max_size=options.max_size,
        limit=options.canvases,
        least=least,
    )


def train_plan(source, options):
    """Returns the Canvases of a training split: each has images for a batch."""
    return plan([r.size for r in source.records], options, least=options.batch_size)


def train_batches(source, options, *, seed, steps):
    """Iterates over the training batches of the range `steps`."""
    return batching.threaded(train_batch(source, options, seed=seed), steps)


def train_batch(source, options, *, seed, host=0, hosts=1):
    """Returns the function step -> training batch, or host's share of it, one of `hosts`."""
    return batching.TrainBatches(
        source,
        train_plan(source, options),
        seed=seed,
        batch_size=options.batch_size,
        max_boxes=options.max_boxes,
        flip=options.flip,
        host=host,
        hosts=hosts,
    )


def evaluation_plan(source, options, images=0):
    """Returns the Canvases of the first `images` of a split; 0 means all of them."""
    sizes = [record.size for record in source.records[: images or None]]
    return plan(sizes, options, least=options.batch_size)


def evaluation_batches(source, options, *, batch_size, images=0):
    """Iterates over a split, every image once; images = 0 means all of them."""
    images = min(images or len(source.records), len(source.records))
    batches = batching.EvaluationBatches(
        source,
        evaluation_plan(source, options, images),
        batch_size=batch_size,
        max_boxes=options.max_boxes,
        images=images,
    )
    return batching.threaded(batches, range(len(batches)))
