"""Examples of the training input, each with what was measured against its original file."""

from typing import NamedTuple

import jax
import numpy as np

from rpn_jax import data
from rpn_jax.data.normalization import denormalise, normalise, pixel_family
from rpn_jax.data.records import Record
from rpn_jax.diagnosis import checks, evidence
from rpn_jax.models import rpn
from rpn_jax.training.step import assign_images, step_key


class Example(NamedTuple):
    """One training image of a step, with all that is drawn of it."""

    step: int
    record: Record
    file: bytes  # the original as it is stored; b'' where it is drawn
    original: np.ndarray  # uint8 [h, w, 3] RGB
    seen: np.ndarray  # uint8 [H, W, 3] RGB, the network's input carried back
    size: tuple[int, int]  # (height, width) of the real image in the canvas
    boxes: np.ndarray  # [n, 4] in pixels of the canvas
    kind: np.ndarray  # [n]
    positive: np.ndarray  # [p, 4] sampled anchors
    background: np.ndarray  # [q, 4]
    evidence: evidence.Evidence


def examples(config, source, steps):
    """Yields the Examples of each training batch in the range `steps`, as a list.

    The images went through the very functions of the update, normalisation included, and back: what
    is seen is what is learnt from.
    """
    options = data.Options(**config.data)
    model = rpn.build(config.model, config.anchors)
    pixels = pixel_family(options.pixels, options.mean, options.std)
    planned = data.train_plan(source, options).sizes

    @jax.jit
    def assign(key, batch):
        anchors = rpn.anchors_of(model, batch['image'].shape[1:3])
        return anchors, assign_images(key, anchors, batch, config.targets)

    for step, batch in zip(
        steps, data.train_batches(source, options, seed=config.seed, steps=steps), strict=True
    ):
        network = np.asarray(normalise(batch['image'], batch['size'], pixels))
        seen = denormalise(network, pixels)
        anchors, targets = assign(step_key(config.seed, step), batch)
        index, labels, _ = map(np.asarray, targets)
        found = []
        for i, position in enumerate(batch['index'].tolist()):
            row = {key: value[i] for key, value in batch.items()}
            record = source.records[position]
            file = source.files.load(position) if source.files else b''
            original = evidence.decode(file) if file else source.read(position)
            measured = evidence.compare(
                record, original, network[i], seen[i], row, planned[position], pixels
            )
            sampled, real = np.asarray(anchors.boxes)[index[i]], row['kind'] > 0
            found.append(
                Example(
                    step=step,
                    record=record,
                    file=file,
                    original=source.read(position) if original is None else original,
                    seen=seen[i],
                    size=measured.size,
                    boxes=row['boxes'][real],
                    kind=row['kind'][real],
                    positive=sampled[labels[i] == 1],
                    background=sampled[labels[i] == 0],
                    evidence=measured,
                )
            )
        yield found


def failures(example):
    """Returns (name, text) of the checks that fail at one image."""
    start = f'{example.record.image_id}: '
    found = checks.verdicts([example.evidence])
    return [(c.name, c.text.removeprefix(start)) for c in found if c.passed is False]
