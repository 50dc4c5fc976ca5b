"""Open a split of a data set, plan its canvases, and iterate over its batches."""

import contextlib
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rpn_jax.data import batches as batching
from rpn_jax.data import categories
from rpn_jax.data.canvases import short_side, square
from rpn_jax.data.check import ON_BAD, ORIENTATIONS, lint
from rpn_jax.data.normalization import pixel_family
from rpn_jax.data.sources.coco import coco
from rpn_jax.data.sources.folder import pictures
from rpn_jax.data.sources.shapes import shapes
from rpn_jax.data.sources.tfds import tfds
from rpn_jax.data.sources.voc import voc
from rpn_jax.data.sources.yolo import yolo
from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
SOURCES = {  # name: the function (split, **keywords) -> Source, and its keywords
    'tfds': (tfds, ('path', 'name', 'on_bad')),
    'voc': (voc, ('path', 'images', 'annotations', 'on_bad')),
    'coco': (coco, ('path', 'images', 'annotations', 'on_bad')),
    'yolo': (yolo, ('path', 'images', 'annotations', 'on_bad', 'orientation')),
    'shapes': (shapes, ('count', 'size', 'seed')),
    'images': (pictures, ('path', 'images')),
}
WITHOUT_BOXES = ('images',)  # sources that cannot be trained on
RESIZES = ('square', 'short_side')
PATHS = ('path', 'images', 'annotations')  # each has an eval_ key for the evaluation split


class Options(NamedTuple):
    """The keywords of the config section `data`, explained in configs/default.py."""

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
    orientation: str = 'annotation'
    canvas_multiple: int = 32
    eval_path: str = ''
    eval_images: str = ''
    eval_annotations: str = ''
    categories: tuple[str | int, ...] = ()

    @property
    def family(self):
        """The normalization.Pixels of `pixels`, `mean` and `std`."""
        return pixel_family(self.pixels, self.mean, self.std)


def options(**keywords):
    """Returns the Options of these keywords, ~ in their paths expanded.

    Raises InputError where they are wrong.
    """
    options = Options(**keywords)
    choices_of = {'source': SOURCES, 'resize': RESIZES}
    choices_of |= {'on_bad': ON_BAD, 'orientation': ORIENTATIONS}
    for key, choices in choices_of.items():
        if (value := getattr(options, key)) not in choices:
            raise InputError(f'{key} {value!r} is not one of {", ".join(map(repr, choices))}')
    for key in ('image_size', 'max_size', 'canvases', 'batch_size', 'max_boxes'):
        if (value := getattr(options, key)) < 1:
            raise InputError(f'{key} {value} is not at least 1')
    if len(options.scenes) != 2 or not all(isinstance(count, int) for count in options.scenes):
        raise InputError(f'scenes {options.scenes!r} is not two whole numbers')
    family = 'torchvision' if options.pixels == 'auto' else options.pixels
    pixel_family(family, options.mean, options.std)
    keys = [prefix + key for prefix in ('', 'eval_') for key in PATHS]
    return options._replace(**{key: os.path.expanduser(getattr(options, key)) for key in keys})


def open_split(options, split, *, seed=0, training=True, boxes=True, files=True):
    """Opens the source of one split, checks every image of it, and that its boxes fit a batch.

    With boxes=False the source is not for batches: a folder of images without annotations will do.
    With files=False it is for its records alone: no image file is opened.
    The seed draws the scenes to train on; those to evaluate on are the same for every seed, so that
    runs of several seeds compare, unless they are of the split that is trained on.
    """
    if seed < 0:
        raise InputError(f'seed {seed} is not at least 0')
    if boxes and options.source in WITHOUT_BOXES:
        what = f'source {options.source!r} has no boxes to learn from; it is for statistics'
        raise InputError(what)
    given, options = options, options if training else _for_evaluation(options)
    function, keywords = SOURCES[_source_at(options, split)]
    values = options._asdict() | {
        'count': options.scenes[0 if training else 1],
        'size': options.image_size,
        'seed': seed if training or split == options.train_split else 0,
    }
    with contextlib.nullcontext() if training else _naming_evaluation(given):
        source = function(split, **{key: values[key] for key in keywords})
    source = lint(source, options.on_bad, options.orientation, files)
    if options.categories:
        source = categories.only(source, options.categories, complete=training)
    for record in source.records if boxes else ():
        if len(record.boxes) > options.max_boxes:
            what = f'{len(record.boxes)} boxes, but max_boxes is {options.max_boxes}; raise it'
            raise InputError(f'image {record.image_id}: {what}')
    return source


@contextlib.contextmanager
def _naming_evaluation(options):
    """Lets an error on a path name its key of the evaluation where that is given."""
    try:
        yield
    except InputError as error:
        key = str(error).partition(':')[0]
        if key in PATHS and getattr(options, f'eval_{key}'):
            raise InputError(f'eval_{error}') from error
        raise


def _for_evaluation(options):
    """Returns the options with the paths of the evaluation split in place of those of training.

    Raises InputError where one json file would annotate the images of both splits.
    """
    paths = {key: getattr(options, f'eval_{key}') or getattr(options, key) for key in PATHS}
    own = options._replace(**paths)
    pictures = {
        (each.images or f'{each.path}/{split}')
        for each, split in ((options, options.train_split), (own, options.eval_split))
    }
    same = own.annotations == options.annotations
    if same and options.annotations.endswith('.json') and len(pictures) > 1:
        raise InputError(
            f'annotations: {options.annotations} is the only json file for the images of two '
            f'splits; name that of {options.eval_split!r} in eval_annotations'
        )
    return own


def _source_at(options, split):
    """Returns the name of the source: a plain VOC or COCO folder is read as one, not by TFDS."""
    if options.source != 'tfds':
        return options.source
    path, family = Path(options.path), options.name.partition('/')[0]
    needed = {
        'voc': (path / 'JPEGImages', path / 'Annotations'),
        'coco': (path / 'annotations' / f'instances_{split}.json',),
    }
    for name, paths in needed.items():
        if family in ('', name) and all(each.exists() for each in paths):
            logger.info(f'{options.path} is a {name} folder: read as with source={name!r}')
            return name
    return 'tfds'


def plan(sizes, options, *, least=1):
    """Returns the Canvases for images of these sizes (height, width), `least` or more on each."""
    if options.resize == 'square':
        return square(options.image_size, len(sizes))
    sides = dict(image_size=options.image_size, max_size=options.max_size)
    sides |= dict(limit=options.canvases, multiple=options.canvas_multiple)
    return short_side(sizes, **sides, least=least)


def canvases_of(source, options, images=0):
    """Returns the Canvases of the first `images` of a split, each with a batch or more; 0: all."""
    sizes = [record.size for record in source.records[: images or None]]
    return plan(sizes, options, least=options.batch_size)


def train_batches(source, options, *, seed, steps, **share):
    """Iterates over train_batch of the range `steps`, made ahead by background threads."""
    return batching.threaded(train_batch(source, options, seed=seed, **share), steps)


def train_batch(source, options, *, seed, **share):
    """Returns the function step -> training batch, batches.TrainBatches.

    Its keywords host and hosts choose a host's share, `known` gives what need not be read.
    """
    share |= dict(batch_size=options.batch_size, max_boxes=options.max_boxes, flip=options.flip)
    return batching.TrainBatches(source, canvases_of(source, options), seed=seed, **share)


def evaluation_batches(source, options, *, batch_size, images=0, host=0, hosts=1):
    """Iterates over the first `images` of a split, each once, canvas by canvas; 0 means all.

    Rows that only fill a batch have index -1. Of several hosts each gets its share of the rows, but
    the `index` [batch_size] of all.
    """
    canvases = canvases_of(source, options, images)
    members = [np.flatnonzero(canvases.of == c).tolist() for c in range(len(canvases.shapes))]
    groups = [
        positions[start : start + batch_size]
        for positions in members
        for start in range(0, len(positions), batch_size)
    ]
    share = slice(batch_size * host // hosts, batch_size * (host + 1) // hosts)
    settings = dict(max_boxes=options.max_boxes, rows=share.stop - share.start)

    def batch(step):
        group = groups[step]
        own = group[share] or group[:1]  # of a share that only fills the batch: its index is -1
        index = np.int32(group + [-1] * (batch_size - len(group)))
        return batching.collate(source, canvases, own, **settings) | {'index': index}

    return batching.threaded(batch, range(len(groups)))
