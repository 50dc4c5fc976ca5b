"""A trained network for notebooks and scripts: proposals, feature maps and scores of images."""

from pathlib import Path

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from rpn_jax import data, weights
from rpn_jax.config import read_run, resolve
from rpn_jax.data.normalization import normalise
from rpn_jax.errors import InputError
from rpn_jax.evaluation.predict import make_predict
from rpn_jax.files import parse_json
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint, workdir
from rpn_jax.weights import formats


def restore(path, step=None):
    """Returns the Detector of a workdir or of an exported FILE.safetensors, on the first device.

    step chooses a checkpoint of a workdir; None takes the newest. Raises InputError where there is
    no such checkpoint, or where the file was not exported by this project.
    """
    if Path(path).suffix == '.safetensors':
        return _from_file(path, step)
    config = read_run(path)
    variables, step = checkpoint.variables(path, step)
    workdir.check_file(path, step)
    return Detector(resolve(config, path), step, variables)


def _from_file(path, step):
    tensors = weights.load(path)
    try:
        made_with = parse_json(formats.metadata(path)['rpn_jax'])
        config = ConfigDict({name: made_with[name] for name in ('model', 'anchors', 'data')})
        config.proposals = ConfigDict(made_with['proposals'])
        detector = Detector(FrozenConfigDict(config), int(made_with['step']), variables={})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f'{path}: does not say which network it holds; export it again from its workdir'
        ) from error
    if step not in (None, detector.step):
        raise InputError(f'{path}: holds step {detector.step}, not {step}')
    image = jax.ShapeDtypeStruct(rpn.SMALLEST, 'f4')
    template = jax.eval_shape(detector.model.init, jax.random.key(0), image)
    detector.variables = weights.to_variables(tensors, template)
    return detector


class Detector:
    """A trained network: its config, step and variables (nested dicts), and functions of images.

    Every method takes images uint8 [height, width, 3] RGB of any size. It compiles once for each
    canvas: one where data.resize is 'square', else one for each size after the resize, rounded up
    to multiples of data.canvas_multiple.
    """

    def __init__(self, config, step, variables):
        self.config, self.step, self.variables = config, step, variables
        self.model = rpn.build(config.model, config.anchors)
        self._options = data.Options(**config.data)
        self._apply = jax.jit(self.model.apply, static_argnames='method')
        self._predict = make_predict(
            self.model, proposals=config.proposals, pixels=self._options.family
        )

    def propose(self, image):
        """Returns Proposals of NumPy arrays, boxes in pixels of the image as given, best first.

        A list of images gives a list of Proposals.
        """
        if isinstance(image, list | tuple):
            return [self.propose(each) for each in image]
        image = np.asarray(image)  # Pillow's, say
        batch = self._batch(image)
        proposals = jax.tree.map(lambda x: x[0], self._predict(self.variables, batch))
        (height, width), size = image.shape[:2], batch['size'][0]
        # Whole numbers, and divided last: rounding cannot carry a box out of the image.
        boxes = proposals.boxes * np.float32([width, height] * 2) / np.tile(size[::-1], 2)
        return proposals._replace(boxes=boxes)

    def features(self, image):
        """Returns the feature map [h, w, C] under the head, of the whole canvas.

        A network with several levels returns a tuple of them.
        """
        maps = self._apply(self.variables, self._normalised(image), method='features')
        maps = tuple(np.asarray(x[0]) for x in maps)
        return maps[0] if len(maps) == 1 else maps

    def scores(self, image):
        """Returns the objectness [h, w, K] of every anchor, between 0 and 1, before any NMS.

        A network with several levels returns a tuple of them.
        """
        normalised = self._normalised(image)
        logits, _ = self._apply(self.variables, normalised)
        scores = np.asarray(jax.nn.sigmoid(logits[0]))
        shapes = rpn.feature_shapes(self.model, normalised.shape[1:3])
        ends = np.cumsum(rpn.anchors_of_maps(self.model, shapes).levels)
        maps = zip(np.split(scores, ends[:-1]), shapes, strict=True)
        maps = tuple(x.reshape(*shape, -1) for x, shape in maps)
        return maps[0] if len(maps) == 1 else maps

    def _batch(self, image):
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
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
        return normalise(batch['image'], batch['size'], self._options.family)
