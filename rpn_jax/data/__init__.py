"""Data: a source's records -> resized, flipped, padded uint8 batches."""

import logging
import os
from pathlib import Path
from typing import NamedTuple

# Read when cv2 is imported: a bound on images, and nothing on stderr beside our own line.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**27))
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')

from rpn_jax.data import batches as batching
from rpn_jax.data import canvases
from rpn_jax.data.check import ON_BAD, lint
from rpn_jax.data.normalization import pixel_family
from rpn_jax.data.sources.coco import coco
from rpn_jax.data.sources.folder import pictures
from rpn_jax.data.sources.shapes import shapes
from rpn_jax.data.sources.tfds import tfds
from rpn_jax.data.sources.voc import voc
from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
SOURCES = ('tfds', 'voc', 'coco', 'shapes', 'images')
RESIZES = ('square', 'short_side')
PLACES = ('path', 'images', 'annotations')


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
    """Returns the options, ~ in their paths expanded; raises InputError where they are wrong."""
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
    places = {key: os.path.expanduser(getattr(options, key)) for key in PLACES}
    return options._replace(**places)


def open_split(options, split, *, seed=0, training=True, boxes=True):
    """Opens the source of one split, checks every image of it, and that its boxes fit a batch.

    With boxes=False no batch is meant: a folder of images without annotations will do. The seed
    draws scenes to train on; those to evaluate on are the same for every seed, so that runs of
    several seeds compare, unless they are of the split that is trained on.
    """
    if seed < 0:
        raise InputError(f'config key seed: {seed} is not at least 0')
    if options.source == 'images':
        if boxes:
            raise InputError(
                "config key data.source: 'images' has no boxes to learn from; it is for "
                '--mode=statistics'
            )
        source = pictures(path=options.path, pattern=options.images)
        return lint(source, options.on_bad)
    if options.source == 'shapes':
        count = options.scenes[0 if training else 1]
        drawn = seed if training or split == options.train_split else 0
        source = shapes(split, count=count, size=options.image_size, seed=drawn)
    else:
        source = _read(options, split)
    source = lint(source, options.on_bad)
    if boxes:
        batching.check_boxes(source, options.max_boxes)
    return source


def _read(options, split):
    """Opens a split of a TFDS data set or of a folder of one's own."""
    kind = options.source
    if kind == 'tfds' and (own := _own_folder(options, split)):
        logger.info(f'{options.path} is a {own} folder: read as with data.source={own}')
        kind = own
    if kind == 'tfds':
        settings = dict(name=options.name, on_bad=options.on_bad)
        return tfds(split, path=options.path, **settings)
    places = dict(path=options.path, images=options.images, annotations=options.annotations)
    return {'voc': voc, 'coco': coco}[kind](split, **places)


def _own_folder(options, split):
    """Returns 'voc' or 'coco' where data.path is such a folder, not a place for TFDS data."""
    path, family = Path(options.path), options.name.partition('/')[0]
    parts = {
        'voc': (path / 'JPEGImages', path / 'Annotations'),
        'coco': (path / 'annotations' / f'instances_{split}.json',),
    }
    found = [kind for kind, places in parts.items() if all(place.exists() for place in places)]
    return next((kind for kind in found if family in ('', kind)), '')


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


def train_batches(source, options, *, seed, steps, **share):
    """Iterates over the training batches of the range `steps`, or over a host's share of them.

    The other keywords are those of train_batch.
    """
    return batching.threaded(train_batch(source, options, seed=seed, **share), steps)


def train_batch(source, options, *, seed, host=0, hosts=1, known=None):
    """Returns the function step -> training batch, or host's share of it, one of `hosts`.

    With known, a function of 2 * position + flip, images of which it knows something are not read:
    see batches.TrainBatches.
    """
    return batching.TrainBatches(
        source,
        train_plan(source, options),
        seed=seed,
        batch_size=options.batch_size,
        max_boxes=options.max_boxes,
        flip=options.flip,
        host=host,
        hosts=hosts,
        known=known,
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
