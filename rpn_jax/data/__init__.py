"""Data: a source's records -> resized, flipped, padded uint8 batches."""

import os
from typing import NamedTuple

os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**27))  # read when cv2 is imported

from rpn_jax.data import batches as batching
from rpn_jax.data.coco import coco
from rpn_jax.data.pictures import pictures
from rpn_jax.data.pixels import pixel_family
from rpn_jax.data.shapes import shapes
from rpn_jax.data.voc import voc
from rpn_jax.errors import InputError

SOURCES = ('voc', 'coco', 'shapes', 'images')


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
    batch_size: int
    max_boxes: int
    flip: bool
    pixels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def canvas(self):
        """(height, width) of every image as the network sees it, in pixels."""
        return (self.image_size, self.image_size)


def check(options):
    """Returns the options; raises InputError where they contradict themselves."""
    if options.source not in SOURCES:
        choices = ', '.join(map(repr, SOURCES))
        raise InputError(f'config key data.source: {options.source!r} is not one of {choices}')
    if options.resize != 'square':
        raise InputError(
            f"config key data.resize: {options.resize!r} is not 'square', the only one so far"
        )
    for key in ('image_size', 'batch_size', 'max_boxes'):
        if (value := getattr(options, key)) < 1:
            raise InputError(f'config key data.{key}: {value} is not at least 1')
    if len(options.scenes) != 2 or not all(isinstance(count, int) for count in options.scenes):
        raise InputError(f'config key data.scenes: {options.scenes!r} is not two whole numbers')
    family = 'torchvision' if options.pixels == 'auto' else options.pixels
    pixel_family(family, options.mean, options.std)
    return options


def open_split(options, split, *, seed=0, training=True, boxes=True):
    """Opens the source of one split and checks that its boxes fit a batch.

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
        return pictures(path=options.path)
    if options.source == 'shapes':
        count = options.scenes[0 if training else 1]
        source = shapes(split, count=count, size=options.image_size, seed=seed)
    else:
        places = dict(path=options.path, images=options.images, annotations=options.annotations)
        source = {'voc': voc, 'coco': coco}[options.source](split, **places)
    if boxes:
        batching.check_boxes(source, options.max_boxes)
    return source


def train_batches(source, options, *, seed, steps):
    """Iterates over the training batches of the range `steps`."""
    return batching.threaded(train_batch(source, options, seed=seed), steps)


def train_batch(source, options, *, seed):
    """Returns the function step -> training batch."""
    size = options.batch_size, options.canvas, options.max_boxes
    return batching.TrainBatches(source, seed, *size, options.flip)


def evaluation_batches(source, options, *, batch_size, images=0):
    """Iterates over a split in order, every image once; images = 0 means all of them."""
    images = min(images or len(source.records), len(source.records))
    batches = batching.EvaluationBatches(
        source, batch_size, options.canvas, options.max_boxes, images
    )
    return batching.threaded(batches, range(-(-images // batch_size)))
