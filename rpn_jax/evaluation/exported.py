"""A trained network as one file that JAX alone runs: uint8 image -> proposals (jax.export)."""

import jax
import jax.numpy as jnp
from jax import export

from rpn_jax.data.normalization import normalise
from rpn_jax.models import rpn
from rpn_jax.ops.proposals import propose

PLATFORMS = 'cpu', 'cuda', 'tpu'
IMAGE = 'resized (bilinear) into the upper left corner of the canvas, which is zero elsewhere'
BOXES = 'x0, y0, x1, y1 in pixels of the canvas, best first'


def serialised(model, variables, canvas, *, proposals, pixels):
    """Returns the bytes that jax.export.deserialize reads, for all PLATFORMS.

    The function in them takes an image uint8 [H, W, 3] RGB on the canvas (H, W) and its size [2]
    float32 (height, width) in pixels there, and returns boxes [P, 4] float32 in pixels of the
    canvas, best first, scores [P] float32 and valid [P] bool, P being post_nms. The variables are
    part of it. proposals are keywords of propose, pixels a normalization.Pixels.
    """

    @jax.jit
    def function(image, size):
        images = normalise(image[None], size[None], pixels)
        logits, deltas = model.apply(variables, images)
        anchors = rpn.anchors_of(model, canvas)
        found = propose(logits[0], deltas[0], anchors, size, **proposals)
        return found.boxes, found.scores, found.valid

    image = jax.ShapeDtypeStruct((*canvas, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((2,), jnp.float32)
    return export.export(function, platforms=PLATFORMS)(image, size).serialize()


def description(canvas, *, proposals, data):
    """Returns what goes in and comes out of the function, to be written beside it as JSON.

    data is the config's section: how an image is brought onto the canvas.
    """
    count = proposals['post_nms']
    return {
        'inputs': [
            {'name': 'image', 'dtype': 'uint8', 'shape': [*canvas, 3], 'order': 'RGB', 'is': IMAGE},
            {'name': 'size', 'dtype': 'float32', 'shape': [2], 'is': 'its height, width there'},
        ],
        'resize': {key: data[key] for key in ('resize', 'image_size', 'max_size')},
        'outputs': [
            {'name': 'boxes', 'dtype': 'float32', 'shape': [count, 4], 'is': BOXES},
            {'name': 'scores', 'dtype': 'float32', 'shape': [count]},
            {'name': 'valid', 'dtype': 'bool', 'shape': [count]},
        ],
        'platforms': PLATFORMS,
        'jax': jax.__version__,
        'read': 'jax.export.deserialize(open(FILE, "rb").read()).call(image, size)',
    }
