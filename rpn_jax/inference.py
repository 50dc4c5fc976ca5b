"""A trained RPN as notebooks use it: scores, features and proposals of one image."""

import cv2
import jax
import numpy as np

from rpn_jax import data
from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.errors import InputError
from rpn_jax.evaluation.evaluate import make_predict
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint
from rpn_jax.training.workdir import read_config


def restore(workdir, step=None):
    """Returns the TrainedRPN of a workdir's newest checkpoint, or of a step, on the first device.

    Raises InputError where there is no such checkpoint.
    """
    config = read_config(workdir)
    variables, step = checkpoint.variables(workdir, step)
    return TrainedRPN(config, step, variables)


class TrainedRPN:
    """A checkpoint: its config, step and variables (nested dicts), and what it sees in images.

    Every method takes an image uint8 [height, width, 3] RGB of any size. It compiles once for each
    canvas: one where data.resize is 'square', else one for each size after the resize, rounded up
    to multiples of 32.
    """

    def __init__(self, config, step, variables):
        self.config, self.step, self.variables = config, step, variables
        self.model = rpn.build(config)
        self._options = data.Options(**config.data)
        self._pixels = pixel_family(config.data.pixels, config.data.mean, config.data.std)
        self._apply = jax.jit(self.model.apply, static_argnames='method')
        self._predict = make_predict(self.model, config, jax.local_devices()[:1])

    def propose(self, image):
        """Returns Proposals of NumPy arrays, boxes in pixels of the image as given, best first."""
        batch = self._batch(image)
        proposals = jax.tree.map(lambda x: x[0], self._predict(self.variables, batch))
        (height, width), size = image.shape[:2], batch['size'][0]
        # Whole numbers, and divided last: rounding cannot carry a box out of the image.
        boxes = proposals.boxes * np.float32([width, height] * 2) / np.tile(size[::-1], 2)
        return proposals._replace(boxes=boxes)

    def features(self, image):
        """Returns the backbone's last feature map [h, w, C], of the whole canvas."""
        features = self._apply(self.variables, self._normalised(image), method='features')
        return np.asarray(features[0])

    def scores(self, image):
        """Returns the objectness [h, w, K] of every anchor, between 0 and 1, before any NMS."""
        normalised = self._normalised(image)
        logits, _ = self._apply(self.variables, normalised)
        h, w = rpn.feature_shape(self.model, normalised.shape[1:3])
        return np.asarray(jax.nn.sigmoid(logits[0])).reshape(h, w, -1)

    def _batch(self, image):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f'an image of {image.dtype} {image.shape}; it must be uint8 [height, width, 3] RGB'
            )
        canvases = data.plan([image.shape[:2]], self._options)
        (height, width), (tall, wide) = canvases.sizes[0].tolist(), canvases.shapes[0]
        canvas = np.zeros((1, tall, wide, 3), np.uint8)
        canvas[0, :height, :width] = cv2.resize(image, (width, height))
        return {'image': canvas, 'size': np.float32([[height, width]])}

    def _normalised(self, image):
        batch = self._batch(image)
        return normalise(batch['image'], batch['size'], self._pixels)
