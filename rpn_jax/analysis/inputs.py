"""Training inputs for the eye: batches exactly as the network gets them, targets drawn in."""

import jax
import numpy as np

from rpn_jax import data, rpn
from rpn_jax.analysis import drawings
from rpn_jax.data.pixels import denormalise, normalise, pixel_family
from rpn_jax.train import assign_images, step_key


def pictures(config, source, steps):
    """Yields (step, picture uint8 RGB, lines of text) of each training batch in the range `steps`.

    The images went through the very functions of the update, normalisation included, and back: what
    is seen is what is learnt from.
    """
    options = data.Options(**config.data)
    model = rpn.build(config)
    pixels = pixel_family(options.pixels, options.mean, options.std)

    @jax.jit
    def assign(key, batch):
        anchors = rpn.anchors(model, batch['image'].shape[1:3])
        return anchors, assign_images(key, anchors, batch, config.targets)

    for step, batch in zip(
        steps, data.train_batches(source, options, seed=config.seed, steps=steps), strict=True
    ):
        seen = denormalise(normalise(batch['image'], batch['size'], pixels), pixels)
        anchors, targets = assign(step_key(config.seed, step), batch)
        index, labels, _ = map(np.asarray, targets)
        drawn, captions = [], []
        for row, image in enumerate(seen):
            sampled = np.asarray(anchors)[index[row]]
            positive, background = sampled[labels[row] == 1], sampled[labels[row] == 0]
            boxes, kind = batch['boxes'][row], batch['kind'][row]
            real = kind > 0
            drawn.append(
                drawings.draw_input(
                    image, batch['size'][row], boxes[real], kind[real], positive, background
                )
            )
            captions.append(
                f'{source.records[batch["index"][row]].image_id}: {real.sum()} objects, '
                f'{len(positive)} positive, {len(background)} background'
            )
        yield step, drawings.contact_sheet(drawn, captions, columns=4), captions
