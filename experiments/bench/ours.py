"""What the benchmark measures of this project: each case as a function to call."""

import functools
import math
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from rpn_jax.data import images
from rpn_jax.data.sources.shapes import shapes
from rpn_jax.evaluation import metrics
from rpn_jax.evaluation.predict import make_predict
from rpn_jax.models import rpn
from rpn_jax.ops import boxes as box
from rpn_jax.ops.matching import match
from rpn_jax.ops.nms import nms
from rpn_jax.training import loop
from rpn_jax.training.parallel import replicate, shard_batch
from rpn_jax.training.step import TrainState

REST = 0.2  # seconds between two turns, in which the other side's threads fall asleep
OBJECTS = 8  # of an image that is trained on; the other rows of boxes are padding
COUNTED = 5000, 1000, 8  # images, proposals of each, objects of each: of the metrics
TAME = 0.2  # scale of the last norm of a block: without it random weights overflow in 33 blocks


class Case(NamedTuple):
    """What is measured at once. JSON carries it to the other side as a dict."""

    kind: str  # train, predict, ..
    depth: int
    stage: str  # c4, dc5, fpn
    frozen_stages: int
    batch: int
    size: tuple[int, int]  # height, width of the canvas
    dtype: str
    boxes: int = 0  # that NMS sees, or objects of matching
    limit: int = 0  # that it keeps at most

    @property
    def name(self):
        """Says in a few words what it is."""
        learning = f' frozen {self.frozen_stages}' if self.kind == 'train' else ''
        return {
            'match': f'match {self.boxes} objects',
            'nms': f'nms {self.boxes} -> {self.limit}',
            'metrics': 'metrics {} x {} x {}'.format(*COUNTED),
            'input': f'input batch {self.batch}',
        }.get(self.kind, f'{self.kind} R{self.depth} {self.stage}{learning} batch {self.batch}')


class Program(NamedTuple):
    """A case, ready to be called."""

    call: Callable  # () -> results, perhaps still to be computed by the device
    lower: Callable | None = None  # () -> jax.stages.Lowered; None for NumPy
    arrays: dict = {}  # what torchvision is given, by name
    answer: Callable | None = None  # results -> what must be equal on both sides, as JSON
    beside: dict = {}  # other ways to do the same here: {note: call}


def config_of(case):
    """Returns the config of a case: the default one but for what the case names."""
    config = default.get_config()
    config.model.update(depth=case.depth, dtype=case.dtype, frozen_stages=case.frozen_stages)
    if case.stage == 'dc5':
        config.model.update(last_stage=5, dilations=(1, 1, 1, 2))
    if case.stage == 'fpn':
        config.model.update(last_stage=5, fpn_stages=(2, 3, 4, 5))
        config.anchors.sizes = tuple((size,) for size in config.anchors.sizes)
        config.proposals.pre_nms = 1000
    config.data.update(pixels='torchvision', batch_size=case.batch)
    return config


def variables_of(model):
    """Returns random variables of a model as NumPy arrays; made without compiling anything."""
    random = np.random.default_rng(0)

    def fill(path, shape):
        part, *_, module, name = (key.key for key in path[1:])
        n = random.standard_normal(shape.shape, np.float32)
        if name == 'kernel':
            scale = 0.003 if part == 'head' else math.sqrt(2 / np.prod(shape.shape[:3]))
            return n * np.float32(scale)
        scale = (1 + 0.1 * n) * np.float32(TAME if module == 'norm3' else 1)
        return {'scale': scale, 'var': np.exp(0.2 * n)}.get(name, 0.1 * n)

    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(rpn.SMALLEST))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def start(case):
    """Returns the update that training runs, a state and a uint8 batch, on the device."""
    config, devices = config_of(case), jax.local_devices()[:1]
    model, optimizer, _ = loop.build(config)
    update = loop.update_of(config, model, optimizer, devices)
    variables = variables_of(model)
    params = variables['params']
    momentum = jax.tree.map(jnp.zeros_like, jax.eval_shape(optimizer.init, params))
    state = TrainState(np.int32(0), params, variables['batch_stats'], momentum)
    kind = np.tile(np.int32(np.arange(config.data.max_boxes) < OBJECTS), (case.batch, 1))
    boxes = np.zeros((*kind.shape, 4), np.float32)
    boxes[kind > 0] = objects(case.batch * OBJECTS, case.size)
    batch = {'image': picture(case), 'boxes': boxes, 'kind': kind}
    return update, replicate(state, devices), shard_batch(batch, devices)


def train(case, path=''):
    """Returns the training step: pixels normalised, head at sampled cells, SGD, state donated."""
    update, state, batch = start(case)
    arrays = {'objects': np.asarray(batch['boxes'])[0, :, :OBJECTS]}
    held = [state]
    del state  # it is donated

    def call():
        held[0], figures = update(held[0], batch)
        return figures

    return Program(call, lambda: update.mapped.lower(held[0], batch), arrays)


def predict(case, path=''):
    """Returns the function that evaluation runs: uint8 images to proposals."""
    config, devices = config_of(case), jax.local_devices()[:1]
    model = loop.build(config)[0]
    batch = shard_batch({'image': picture(case, path)}, devices)
    del batch['index']
    variables = replicate(variables_of(model), devices)
    predict = make_predict(model, proposals=config.proposals, devices=devices)
    return jitted(predict.mapped, variables, batch)


def backbone(case, path=''):
    """Returns the function from normalised images to feature maps."""
    model = loop.build(config_of(case))[0]
    features = jax.jit(functools.partial(model.apply, method='features'))
    noise = np.random.default_rng(0).standard_normal((case.batch, *case.size, 3), np.float32)
    return jitted(features, *jax.device_put((variables_of(model), noise)))


def matching(case, path=''):
    """Returns match of one image; it answers how many anchors are foreground and background."""
    arrays = {'anchors': anchors_of(case), 'objects': objects(case.boxes, case.size)}
    kind = np.ones(case.boxes, np.int32)

    def counts(results):
        return [int((results[0] == n).sum()) for n in (1, 0)]

    program = jitted(jax.jit(match), *jax.device_put((*arrays.values(), kind)))
    return program._replace(arrays=arrays, answer=counts)


def suppression(case, path=''):
    """Returns nms, its sort included, of ranked boxes; it answers the kept ones."""
    boxes, scores = ranked(case._replace(boxes=0, limit=0), path)
    arrays = {'boxes': boxes[: case.boxes], 'scores': scores[: case.boxes]}
    function = jax.jit(functools.partial(nms, iou_threshold=0.7, limit=case.limit))
    return jitted(function, *jax.device_put((*arrays.values(),)))._replace(
        arrays=arrays, answer=lambda results: results[0][results[1]].tolist()
    )


def counting(case, path=''):
    """Returns the metrics of a split of made-up proposals, from boxes to figures."""
    count, most, each = COUNTED
    proposals = list(objects(count * most, case.size).reshape(count, most, 4))
    real = list(objects(count * each, case.size, seed=1).reshape(count, each, 4))
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in real]
    return Program(lambda: metrics.summarise(metrics.measure(proposals, real, areas)))


def alternate(runs, repeats):
    """Returns the seconds of each of runs(), [runs][repeats]; who begins changes."""
    times = [[] for _ in runs]
    for number in range(repeats):
        turns = list(zip(times, runs, strict=True))
        for seconds, run in reversed(turns) if number % 2 else turns:
            time.sleep(REST)
            seconds.append(run())
        last = [f'{seconds[-1]:.4g} s' for seconds in times]
        print(f'  {number + 1}/{repeats}:', *last, file=sys.stderr, flush=True)
    return times


def timed(call, calls=1):
    """Returns the seconds of a call, the mean of so many, until the last one's result is there."""
    began = time.perf_counter()
    for _ in range(calls):
        results = call()
    jax.block_until_ready(results)
    return (time.perf_counter() - began) / calls


def warmed(run, least):
    """Returns run, a function of a number of calls, with as many as take at least so long."""
    seconds = [run(1) for _ in range(3)][-1]
    return functools.partial(run, max(1, math.ceil(least / max(seconds, 1e-6))))


def jitted(function, *arguments):
    """Returns the Program of a jitted function."""
    return Program(lambda: function(*arguments), lambda: function.lower(*arguments))


def picture(case, path=''):
    """Returns uint8 [B, H, W, 3]: an image file, or a drawn scene, on the canvas."""
    height, width = case.size
    if path:
        pixels = images.decode(images.load(path), path)
    else:
        pixels = shapes('bench', count=1, size=max(case.size)).read(0)
    return np.tile(cv2.resize(pixels, (width, height)), (case.batch, 1, 1, 1))


def objects(count, canvas, seed=0):
    """Returns drawn boxes [count, 4] float32 of 16 pixels to half of the canvas (height, width)."""
    random, (height, width) = np.random.default_rng(seed), canvas
    sides = np.exp(random.uniform(np.log(16), np.log([width / 2, height / 2]), (count, 2)))
    corner = random.uniform(size=(count, 2)) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides], 1).astype(np.float32)


@functools.lru_cache(maxsize=1)
def ranked(case, path):
    """Returns the boxes [A, 4] that a network makes of its anchors, and their logits, ranked."""
    _, logits, deltas = jax.device_get(predict(case, path).call())
    boxes = box.clip(box.decode(deltas[0, 0], anchors_of(case)), np.float32(case.size))
    order = np.argsort(-logits[0, 0], kind='stable')
    return np.asarray(boxes)[order], logits[0, 0][order]


def anchors_of(case):
    """Returns the anchors [A, 4] of a case's canvas."""
    model = loop.build(config_of(case))[0]
    return np.asarray(rpn.anchors_of(model, case.size).boxes)
