"""What bench.py measures of this project: each case as a function to call, and what XLA counts."""

import functools
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from experiments.bench_costs import costs, fresh_cache
from experiments.bench_memory import forget_peak, resident
from rpn_jax import data
from rpn_jax.data import images
from rpn_jax.errors import InputError
from rpn_jax.evaluation import metrics
from rpn_jax.evaluation.predict import make_predict
from rpn_jax.models import rpn
from rpn_jax.ops import boxes as box
from rpn_jax.ops.matching import match
from rpn_jax.ops.nms import nms
from rpn_jax.training import loop
from rpn_jax.training.parallel import place
from rpn_jax.training.step import SMALLEST, TrainState

WARM = 2  # calls before one is timed
REST = 0.2  # seconds between two turns, in which the other's threads fall asleep
OBJECTS = 8  # of an image that is trained on; the other rows of boxes are padding
MATCHED = (608, 1024), 100  # canvas (36,480 anchors at stride 16) and objects of matching
COUNTED = 5000, 1000, 8  # images, proposals of each, objects of each: of the metrics
TAME = 0.2  # scale of the last norm of a block: without it random weights overflow in 33 blocks


class Case(NamedTuple):
    """What is measured at once. JSON carries it to the other side as a dict."""

    kind: str  # train, predict, backbone, match, nms, metrics
    depth: int
    stage: str  # c4, dc5
    frozen_stages: int
    batch: int
    size: tuple[int, int]  # height, width of the canvas
    dtype: str
    boxes: int = 0  # that NMS sees, or objects of matching
    limit: int = 0  # that it keeps at most

    @property
    def name(self):
        """Says in a few words what it is."""
        if self.kind == 'match':
            return f'match {self.boxes} objects'
        if self.kind == 'nms':
            return f'nms {self.boxes} -> {self.limit}'
        if self.kind == 'metrics':
            return 'metrics {} x {} x {}'.format(*COUNTED)
        learning = f' frozen {self.frozen_stages}' if self.kind == 'train' else ''
        return f'{self.kind} R{self.depth} {self.stage}{learning} batch {self.batch}'


class Program(NamedTuple):
    """A case, ready to be called."""

    call: Callable  # () -> what it found, perhaps still to be computed by the device
    lower: Callable | None = None  # () -> jax.stages.Lowered; None for NumPy
    answer: Callable = lambda found: None  # what must be equal on both sides, as JSON
    using: Callable | None = None  # (what was lowered and compiled) -> another `call`


class Ours:
    """This project's side; bench.Peer is the other one. `image` is a file for NMS, or ''."""

    def __init__(self, image=''):
        self._image, self._program, self.costs = image, None, None

    def prepare(self, case, arrays):
        """Sets up a case; returns the seconds of a call when warm."""
        self._program = None  # its memory goes before the next one's comes
        gc.collect()
        self._resting = resident()[0]
        self._program = KINDS[case.kind](case, arrays)
        with fresh_cache():
            self.costs = self._program.lower and costs(self._program.lower)
            for _ in range(WARM):
                jax.block_until_ready(self._program.call())
        forget_peak()
        return self.run(1)

    def run(self, calls):
        """Returns the seconds of a call, the mean of so many."""
        return timed(self._program.call, calls)

    def report(self):
        """Returns the most memory of the calls in bytes, and the answer."""
        on_host = jax.local_devices()[0].platform == 'cpu' or self.costs is None
        memory = resident()[1] - self._resting if on_host else self.costs.planned
        memory = max(memory, 0)  # what the case before left may do
        return {'memory': memory, 'answer': self._program.answer(self._program.call())}

    def arrays(self, case):
        """Returns what both sides are given: boxes of objects, anchors, boxes with scores."""
        if case.kind == 'train':
            return {'objects': objects(case.batch * OBJECTS, case.size).reshape(case.batch, -1, 4)}
        if case.kind == 'match':
            anchors = np.asarray(rpn.anchors_of(rpn.build(config_of(case)), case.size))
            return {'anchors': anchors, 'objects': objects(case.boxes, case.size)}
        if case.kind == 'nms':
            boxes, scores = decoded(case._replace(boxes=0, limit=0), self._image)
            return {'boxes': boxes[: case.boxes], 'scores': scores[: case.boxes]}
        return {}


def take_device(name):
    """Makes JAX run on 'cpu' or 'gpu'; raises InputError where it cannot."""
    # On a GPU's machine the CPU's client is there too, for bench_costs.flops_of.
    before = jax.config.jax_platforms
    jax.config.update('jax_platforms', {'cpu': 'cpu', 'gpu': 'cuda,cpu'}[name])
    try:
        jax.local_devices(backend=name)
    except RuntimeError as error:
        jax.config.update('jax_platforms', before)
        raise InputError(f'--device {name}: JAX cannot use it ({error})') from error


def config_of(case):
    """Returns the config of a case: the default one but for what the case says."""
    config = default.get_config()
    config.model.update(depth=case.depth, dtype=case.dtype, frozen_stages=case.frozen_stages)
    if case.stage == 'dc5':
        config.model.update(last_stage=5, dilations=(1, 1, 1, 2))
    config.data.update(pixels='torchvision', batch_size=case.batch)
    return config


def variables_of(model):
    """Returns random variables of a model as NumPy arrays; made without compiling anything."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(SMALLEST))
    random = np.random.default_rng(0)

    def fill(path, shape):
        part, *_, module, name = (key.key for key in path[1:])
        if name == 'kernel':
            scale = 0.01 if part == 'head' else math.sqrt(2 / np.prod(shape.shape[:3]))
            return random.standard_normal(shape.shape, np.float32) * np.float32(scale)
        value = {'scale': TAME if module == 'norm3' else 1, 'var': 1}.get(name, 0)
        return np.full(shape.shape, value, np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def start(case, arrays):
    """Returns the update that train.py runs, a state and a uint8 batch, on the device."""
    config, devices = config_of(case), jax.local_devices()[:1]
    model, optimizer, _ = loop.build(config)
    update = loop.update_of(config, model, optimizer, devices)
    variables = variables_of(model)
    params = variables.pop('params')
    velocity = jax.eval_shape(optimizer.init, params)
    velocity = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), velocity)
    state = TrainState(np.int32(0), params, variables['batch_stats'], velocity)
    rows = config.data.max_boxes
    boxes = np.zeros((case.batch, rows, 4), np.float32)
    kind = np.zeros((case.batch, rows), np.int32)
    boxes[:, :OBJECTS], kind[:, :OBJECTS] = arrays['objects'], 1
    batch = {'image': picture(case), 'boxes': boxes, 'kind': kind}
    batch = loop.place_batch(batch, devices)
    return update, place(state, devices), batch


def training(case, arrays):
    """Returns the training step: pixels normalised, head at sampled cells, SGD, state donated."""
    update, state, batch = start(case, arrays)
    held = [state]
    del state  # it is donated

    def using(update):
        def call():
            held[0], figures = update(held[0], batch)
            return figures

        return call

    return Program(using(update), lambda: update.mapped.lower(held[0], batch), using=using)


def prediction(case, arrays):
    """Returns the function that evaluate.py runs: uint8 images to proposals."""
    config, devices = config_of(case), jax.local_devices()[:1]
    model = rpn.build(config.model, config.anchors)
    mapped = make_predict(model, proposals=config.proposals, devices=devices).mapped
    variables = place(variables_of(model), devices)
    batch = loop.place_batch({'image': picture(case)}, devices)
    del batch['index']

    def using(mapped):
        return lambda: mapped(variables, batch)

    return Program(using(mapped), lambda: mapped.lower(variables, batch), using=using)


def backbone(case, arrays):
    """Returns the function from normalised images to feature maps."""
    model = rpn.build(config_of(case))
    features = jax.jit(functools.partial(model.apply, method='features'))
    shape = (case.batch, *case.size, 3)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    return jitted(features, jax.device_put(variables_of(model)), jax.device_put(noise))


def matching(case, arrays):
    """Returns match of one image; it answers how many anchors are objects, and background."""
    kind = np.ones(len(arrays['objects']), np.int32)
    program = jitted(jax.jit(match), *jax.device_put((arrays['anchors'], arrays['objects'], kind)))
    return program._replace(answer=lambda found: [int((found[0] == n).sum()) for n in (1, 0)])


def suppression(case, arrays):
    """Returns nms, its sort included, of ranked boxes; it answers the kept ones."""
    function = jax.jit(functools.partial(nms, iou_threshold=0.7, limit=case.limit))
    program = jitted(function, *jax.device_put((arrays['boxes'], arrays['scores'])))
    return program._replace(answer=lambda found: found[0][found[1]].tolist())


def counting(case, arrays):
    """Returns the metrics of a split of made-up proposals, from boxes to figures."""
    count, most, each = COUNTED
    found = objects(count * most, case.size).reshape(count, most, 4)
    real = objects(count * each, case.size, seed=1).reshape(count, each, 4)
    areas = [(o[:, 2] - o[:, 0]) * (o[:, 3] - o[:, 1]) for o in real]
    found, real = list(found), list(real)
    return Program(lambda: metrics.summarise(metrics.measure(found, real, areas)))


KINDS = {
    'train': training,
    'predict': prediction,
    'backbone': backbone,
    'match': matching,
    'nms': suppression,
    'metrics': counting,
}


def alternate(runs, repeats):
    """Returns what each of runs() says, its seconds, [runs][repeats]; who begins changes."""
    times = [[] for _ in runs]
    for number in range(repeats):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            time.sleep(REST)
            times[i].append(runs[i]())
        shown = ' and '.join(f'{seconds[-1]:.4g} s' for seconds in times)
        print(f'  {number + 1}/{repeats}: {shown}', file=sys.stderr, flush=True)
    return times


def timed(call, calls=1):
    """Returns the seconds of a call, the mean of so many, until the last one's result is there."""
    began = time.perf_counter()
    for _ in range(calls):
        found = call()
    jax.block_until_ready(found)
    return (time.perf_counter() - began) / calls


def spread(ours, theirs):
    """Returns the median, least and most of the ratios of two lists of seconds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def jitted(function, *arguments):
    """Returns the Program of a jitted function."""
    return Program(lambda: function(*arguments), lambda: function.lower(*arguments))


def picture(case, image=''):
    """Returns uint8 [B, H, W, 3]: an image file, or a drawn scene, on the canvas."""
    height, width = case.size
    if image:
        found = images.decode(images.load(image), image)
    else:
        found = data.sources.shapes.shapes('bench', count=1, size=max(case.size)).read(0)
    return np.tile(cv2.resize(found, (width, height)), (case.batch, 1, 1, 1))


def objects(count, canvas, seed=0):
    """Returns drawn boxes [count, 4] float32 of 16 pixels to half of the canvas (height, width)."""
    random, (height, width) = np.random.default_rng(seed), canvas
    sides = np.exp(random.uniform(np.log(16), np.log([width / 2, height / 2]), (count, 2)))
    corner = random.uniform(size=(count, 2)) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides], 1).astype(np.float32)


@functools.lru_cache(maxsize=1)
def decoded(case, image):
    """Returns the boxes [A, 4] that a network makes of its anchors, and their logits, ranked."""
    model = rpn.build(config_of(case))

    @jax.jit
    def look(variables, pixels):
        size = jnp.asarray(case.size, jnp.float32)
        normalised = loop.normalise(pixels, size[None], data.pixels.FAMILIES['torchvision'])
        logits, deltas = model.apply(variables, normalised)
        boxes = box.decode(deltas[0], rpn.anchors_of(model, case.size))
        return box.clip(boxes, size), logits[0]

    boxes, logits = jax.device_get(look(variables_of(model), picture(case, image)))
    order = np.argsort(-logits, kind='stable')
    return boxes[order], logits[order]
