"""Examples of the training input, each with what was measured against its original file."""

from typing import NamedTuple

import jax
import numpy as np

from rpn_jax import data
from rpn_jax.data import images
from rpn_jax.data.normalization import denormalise, normalise
from rpn_jax.data.records import Kind, Record
from rpn_jax.diagnosis import checks, evidence
from rpn_jax.models import rpn
from rpn_jax.training.step import assign_images, step_key

KEPT = 2**22  # bytes of an original file, and pixels of its picture, that an example holds


class Example(NamedTuple):
    """One training image of a step, with its ground truth and its sampled anchors."""

    step: int
    record: Record
    file: bytes  # the original file; b'' where it has more than KEPT bytes, or the image is drawn
    file_size: int  # bytes
    original: np.ndarray  # uint8 [h, w, 3] RGB, of KEPT pixels at most
    seen: np.ndarray  # uint8 [H, W, 3] RGB, the network's input denormalised
    size: tuple[int, int]  # (height, width) of the real image in the canvas
    boxes: np.ndarray  # [n, 4] in pixels of the canvas
    kind: np.ndarray  # [n]
    positive: np.ndarray  # [p, 4] sampled anchors
    level: np.ndarray  # [p] int, their feature levels
    background: np.ndarray  # [q, 4]
    levels: int  # the number of feature levels
    evidence: evidence.Evidence
    turned: bool = False  # whether the file's EXIF orientation is applied


def examples(model, source, options, *, targets, seed, steps, pixels):
    """Yields the Examples of each training batch in the range `steps`, as a list.

    The images pass through the functions of the update, normalisation included, and back, so that
    what is seen is what the network learns from. options are the data.Options, targets the keywords
    of matching.assign, pixels the Pixels.
    """
    canvases = data.canvases_of(source, options)
    rpn.check_canvases(model, canvases.shapes)

    @jax.jit
    def assign(key, batch):
        anchors = rpn.anchors_of(model, batch['image'].shape[1:3])
        return anchors, assign_images(key, anchors, batch, targets)

    batches = data.train_batches(source, options, seed=seed, steps=steps)
    for step, batch in zip(steps, batches, strict=True):
        network = np.asarray(normalise(batch['image'], batch['size'], pixels))
        seen = denormalise(network, pixels)
        anchors, (index, labels, _) = jax.device_get(assign(step_key(seed, step), batch))
        made = []
        for i, position in enumerate(batch['index'].tolist()):
            row = {key: value[i] for key, value in batch.items()}
            record = source.records[position]
            file, turned = b'', False
            if source.files:
                file, turned = source.files.load(position), position in source.files.turned
            original = evidence.decode(file, turned) if file else source.read(position)
            measured = evidence.compare(
                record, original, network[i], seen[i], row, canvases.sizes[position], pixels
            )
            picture = source.read(position) if original is None else original
            real, positive = row['kind'] != Kind.PADDING, index[i][labels[i] == 1]
            made.append(
                Example(
                    step=step,
                    record=record,
                    file=file if len(file) <= KEPT else b'',
                    file_size=len(file),
                    original=images.shrunk(picture, KEPT),
                    seen=seen[i],
                    size=measured.size,
                    boxes=row['boxes'][real],
                    kind=row['kind'][real],
                    positive=anchors.boxes[positive],
                    level=anchors.level[positive],
                    background=anchors.boxes[index[i][labels[i] == 0]],
                    levels=len(anchors.levels),
                    evidence=measured,
                    turned=turned,
                )
            )
        yield made


def failures(example):
    """Returns (name, text) of the checks that fail at one image."""
    start = f'{example.record.image_id}: '
    verdicts = checks.verdicts([example.evidence])
    return [(c.name, c.text.removeprefix(start)) for c in verdicts if c.passed is False]
