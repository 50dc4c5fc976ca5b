"""What tests of more than one file use: the tiny run, small networks, rules in loops."""

import atexit
import contextlib
import functools
import io
import json
import logging
import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest

import main
from configs import default
from rpn_jax import data
from rpn_jax.data.records import Record, Source
from rpn_jax.evaluation import baselines, evaluate, metrics
from rpn_jax.models import resnet, rpn
from rpn_jax.ops.anchors import Anchors
from rpn_jax.ops.proposals import Proposals
from rpn_jax.training import checkpoint, loop
from rpn_jax.training.parallel import replicate
from rpn_jax.training.step import init_state

ROOT = Path(__file__).parent.parent
TINY = {  # beside default.py: a fraction of a second for its steps, seconds to compile
    'steps': 8,
    'log_every': 1,
    'model.depth': 26,
    'model.width': 8,
    'model.last_stage': 3,
    'model.norm': 'batch',
    'model.frozen_stages': 0,
    'anchors.sizes': (16, 32),
    'targets.samples': 48,  # fewer than cells: the head looks only where it has to
    'loss.box_weight': 2.0,
    'proposals.pre_nms': 200,
    'proposals.post_nms': 50,
    'data.source': 'shapes',
    'data.train_split': 'train',
    'data.eval_split': 'val',
    'data.scenes': (10, 6),
    'data.image_size': 64,
    'data.batch_size': 4,
    'data.max_boxes': 16,
    'optim.learning_rate': 0.02,
    'optim.schedule': 'cosine',
    'optim.warmup_steps': 2,
    'checkpoint.every': 2,
    'checkpoint.keep': 3,
    'evaluation.every': 4,
}


class Run(NamedTuple):
    """A workdir that main.py made, and the names of the functions that were compiled for it."""

    folder: Path
    compiled: list[str]


def tiny(changes):
    """Returns TINY with changes by dotted key, with __ for the dot."""
    return TINY | {key.replace('__', '.'): value for key, value in changes.items()}


def tiny_config(**changes):
    """Returns the config of the tiny run; changes are as in tiny."""
    config = default.get_config()
    config.data.pixels = 'torchvision'  # what 'auto' becomes without weights
    config.update_from_flattened_dict(tiny(changes))
    return config


def tiny_flags(folder, **changes):
    """Returns the command line of a run of tiny_config(**changes)."""
    overrides = [f'--config.{key}={value}' for key, value in tiny(changes).items()]
    return [f'--config={ROOT}/configs/default.py', f'--workdir={folder}', *overrides]


def scratch():
    """Returns a folder that lives as long as the tests."""
    folder = tempfile.mkdtemp(prefix='rpn_jax_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def finished_run():
    """Trains the tiny config once for all tests: they must not write there."""
    folder = scratch() / 'tiny'
    with compilations() as compiled:
        assert main.main(tiny_flags(folder)) == 0
    return Run(folder, compiled)


@contextlib.contextmanager
def _handler(name, emit):
    """Calls emit with each message of a logger, from any thread, while the context lasts."""
    logger, handler = logging.getLogger(name), logging.Handler()
    handler.emit = lambda record: emit(record.getMessage())
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def messages(watch=None):
    """Collects what the package logs inside the context; watch is called with each line."""
    lines = []

    def emit(line):
        lines.append(line)
        if watch:
            watch(line)

    with _handler('rpn_jax', emit) as logger:
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            yield lines
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def compilations():
    """Collects the names of the functions that XLA compiles inside the context, in any thread."""
    names, pattern = [], r'Finished XLA compilation of (\S+)'
    with _handler('jax', lambda line: names.extend(re.findall(pattern, line))):
        jax.config.update('jax_log_compiles', True)
        try:
            yield names
        finally:
            jax.config.update('jax_log_compiles', False)


def last_state(config, folder):
    """Returns the newest checkpoint's whole state as NumPy arrays."""
    model, optimizer, _ = loop.build(config)
    state = replicate(init_state(model, optimizer, 0), jax.devices())
    with checkpoint.Checkpoints(folder, **config.checkpoint) as checkpoints:
        assert checkpoints.latest is not None
        return jax.device_get(checkpoints.load(state))


def assert_same(a, b):
    """Checks that two states are equal bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    equal = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    assert all(jax.tree.leaves(equal))


def lines_of(folder):
    """Returns the lines of metrics.jsonl that hold a loss, without the speed."""
    lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return [{**line, 'images_per_second': 0} for line in lines if 'loss' in line]


def loop_area(b):
    return float(max(b[2] - b[0], 0)) * float(max(b[3] - b[1], 0))


def loop_iou(a, b):
    """Returns the IoU of two boxes in double precision."""
    corners = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    overlap = loop_area(corners)
    return overlap / (loop_area(a) + loop_area(b) - overlap) if overlap else 0.0


def loop_decode(d, a):
    d, (x0, y0, x1, y1) = [float(v) for v in d], [float(v) for v in a]
    x, y = (x0 + x1) / 2 + d[0] * (x1 - x0), (y0 + y1) / 2 + d[1] * (y1 - y0)
    width, height = (x1 - x0) * min(math.exp(d[2]), 62.5), (y1 - y0) * min(math.exp(d[3]), 62.5)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def shape_of(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def config_of(**model):
    config = default.get_config()
    config.model.update({'depth': 26, 'width': 8, **model})
    return config


BLIND = {'random_boxes', 'random_anchors', 'gaussian_boxes', 'quadrants'}
OBJECT = np.float32([[8, 8, 40, 48]])
TRAINED_ON = [Record('t', (64, 64), OBJECT, np.int32([1]))]


class FakePredict:
    """Stands for make_predict: remembers the images and proposes the object boxes, moved."""

    def __init__(self, keep=lambda position: 30):
        self.seen, self.calls, self._keep = [], [], keep

    def make(self, model, *, proposals, pixels, devices):
        self.devices, self._post_nms = devices, proposals['post_nms']
        self._anchors = sum(rpn.anchors_of(model, (64, 64)).levels)
        return self

    def __call__(self, variables, batch, dense=False):
        assert len(batch['image']) % len(self.devices) == 0
        self.calls.append(len(batch['image']))
        rows = [self.propose(*row) for row in zip(batch['index'], batch['boxes'], strict=True)]
        self.seen += [int(i) for i in batch['index']]
        proposals = Proposals(*map(np.stack, zip(*rows, strict=True)))
        maps = (np.zeros((len(rows), self._anchors, *shape), np.float32) for shape in ((), (4,)))
        return (proposals, *maps) if dense else proposals

    def propose(self, position, boxes):
        """Returns the Proposals of an image by its position, -1 where it only fills a batch."""
        kept = self._keep(position) if position >= 0 else self._post_nms
        order = np.arange(self._post_nms)
        shift = np.random.default_rng(max(position, 0)).integers(-6, 7, (self._post_nms, 4))
        moved = np.clip(boxes[order % len(boxes)] + shift, 0, 64)
        valid = order < kept
        scores = np.linspace(1, 0, len(order), dtype=np.float32)
        return Proposals(np.float32(moved * valid[:, None]), scores, valid, order)


def evaluator(config, devices=4, records=TRAINED_ON, source=None):
    """Returns evaluate of a config, over its evaluation split or another source."""
    options = data.Options(**config.data)
    split = options.eval_split
    return evaluate.make_evaluate(
        rpn.build(config.model, config.anchors),
        source or data.open_split(options, split, seed=config.seed, training=False),
        options=options,
        proposals=config.proposals,
        gaussian=baselines.fit_gaussian(records),
        targets=config.targets,
        loss=config.loss,
        seed=config.seed,
        images=config.evaluation.images,
        devices=jax.devices()[:devices],
    )


def run_evaluation(fake=None, source=None, brief=False, devices=4, between=lambda: None, **changes):
    """Returns the Evaluation of the tiny config, with a FakePredict in the network's place.

    It keeps up to 1000 proposals; whatever is not brief compiles once for all tests.
    """
    many = {'proposals__post_nms': 1000, 'proposals__pre_nms': 1000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, 'make_predict', (fake or FakePredict()).make)
        return evaluator(tiny_config(**many | changes), devices, source=source)(
            {}, 3, brief=brief, between=between
        )


def large_images():
    """Returns a source of four photographs of 512 x 256 pixels, with objects of 60 pixels each."""
    boxes = np.float32([[100, 50, 160, 110], [300, 120, 360, 180], [20, 180, 80, 240]])
    records = [Record(str(i), (256, 512), boxes + 4 * i, np.int32([1, 1, 1])) for i in range(4)]
    return Source('large', records, lambda position: np.zeros((256, 512, 3), np.uint8))


LEVEL_SIZE = (64, 96)  # height, width of the image of level_anchors
LEVELS = {  # number of levels: strides, sizes
    1: ((16,), ((16, 32),)),
    2: ((8, 16), ((16,), (16, 32))),  # one size on both
    5: ((8, 16, 32, 64, 128), ((8,), (16,), (32,), (64,), (96,))),
}


def level_anchors(levels):
    """Returns NumPy Anchors of random maps of so many levels, three aspect ratios each."""
    strides, sizes = LEVELS[levels]
    shapes = [tuple(-(-side // stride) for side in LEVEL_SIZE) for stride in strides]
    return jax.device_get(Anchors.of(shapes, strides, sizes, (0.5, 1, 2)))


def random_maps(anchors, seed, spread):
    """Returns random (logits, deltas) of Anchors, the deltas of this standard deviation."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1, len(anchors.boxes))
    return np.float32(logits), np.float32(random.normal(0, spread, anchors.boxes.shape))


def loop_propose(prediction, *, pre_nms, post_nms, nms_iou, min_size=1e-3):
    """Returns the anchors that torchvision proposes, best first, of a Prediction.

    As RegionProposalNetwork.filter_proposals: the best of each level, without small boxes, through
    NMS by level, the best of all levels.
    """
    logits, boxes, level = prediction.logits, prediction.clipped, prediction.anchors.level
    chosen = []
    for each in range(len(prediction.anchors.levels)):
        own = np.flatnonzero(level == each)
        chosen += own[np.argsort(-logits[own], kind='stable')[:pre_nms]].tolist()
    sides = boxes[:, 2:] - boxes[:, :2]
    chosen = [i for i in chosen if min(sides[i]) >= min_size and logits[i] > -np.inf]
    chosen.sort(key=lambda i: (-logits[i], i))
    overlaps = metrics.iou(boxes[chosen], boxes[chosen])
    kept = []
    for row, i in enumerate(chosen):
        rivals = [r for r in kept if level[chosen[r]] == level[i]]
        if len(kept) < post_nms and not np.any(overlaps[row, rivals] > nms_iou):
            kept.append(row)
    return np.array([chosen[row] for row in kept], int)


def variables_of(depth=26, last_stage=4, norm='frozen', width=8):
    """Returns random variables of a network; they need no forward pass."""
    backbone = resnet.ResNet(depth, last_stage, norm=norm, width=width)
    model = rpn.RPN(backbone, rpn.RPNHead(3), (2**last_stage,))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)


RATIOS = (0.5, 1, 2)
PYRAMIDS = {  # shapes, strides, sizes and aspect ratios of feature maps, some of odd sides
    'one level': (((3, 5),), (16,), ((32, 64),), RATIOS),
    'two levels': (((5, 3), (1, 1)), (8, 32), ((16, 24), (64,)), ((1, 2), RATIOS)),
    'five levels': (
        ((9, 7), (5, 4), (3, 2), (2, 1), (1, 1)),
        (4, 8, 16, 32, 64),
        tuple((size,) for size in (8, 16, 32, 64, 128)),
        RATIOS,
    ),
}
CANVAS = (1, 41, 55, 3)  # odd, and odd again after every stride
KEY = jax.random.key(0)
SMALL_RESNET = functools.partial(resnet.ResNet, depth=26, last_stage=5, width=8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Strided(nn.Module):
    """A backbone as a reader would write it: one or two feature maps, of strides 8 and 16."""

    form: str = 'map'

    @nn.compact
    def __call__(self, images, train=False):
        fine = nn.relu(nn.Conv(16, (8, 8), strides=8)(images))
        coarse = nn.relu(nn.Conv(16, (3, 3), strides=2)(fine))
        both = {'fine': fine, 'coarse': coarse}
        return {'map': fine, 'tuple': (fine, coarse), 'list': [fine, coarse], 'dict': both}[
            self.form
        ]


def random_image(seed=0, shape=CANVAS):
    return normal(*shape, seed=seed)


def shapes_of(model):
    """Returns the shapes of the variables without computing them."""
    return jax.eval_shape(model.init, KEY, np.zeros(CANVAS, np.float32))


def random_variables(model):
    """Returns variables in which every number matters and the features keep their size."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        if len(leaf.shape) == 4:
            scale = np.sqrt(2 / np.prod(leaf.shape[:3]))
            return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)
        return rng.uniform(0.3, 0.9, leaf.shape).astype(np.float32)  # scale, bias, mean, variance

    return jax.tree.map(draw, shapes_of(model))


def numpy_convolution(x, kernel, stride=1, dilation=1):
    """Convolves as torch.nn.Conv2d does with padding = dilation * (kernel size // 2)."""
    size, margin = len(kernel), dilation * (len(kernel) // 2)
    h, w = ((n + 2 * margin - dilation * (size - 1) - 1) // stride + 1 for n in x.shape[1:3])
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    total = 0
    for i in range(size):
        for j in range(size):
            rows = x[:, i * dilation :][:, : (h - 1) * stride + 1 : stride]
            window = rows[:, :, j * dilation :][:, :, : (w - 1) * stride + 1 : stride]
            total = total + window @ kernel[i, j].astype(np.float64)
    return total


def assert_near(ours, theirs, tolerance=2e-5):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def narrow(monkeypatch):
    """Makes the default config's network an eighth as wide."""
    settings = default.model()
    settings.width = 8
    monkeypatch.setattr(default, 'model', settings.copy_and_resolve_references)


def data_options(**changes):
    """Returns the default options with changes."""
    return data.options(**{**default.get_config().data, **changes})


PICTURE_SIZE = (40, 60)  # height, width


def noise(size=PICTURE_SIZE):
    """Returns a picture of soft random colours."""
    small = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR)


def python_rate(step, schedule, horizon, *, learning_rate=0.1, warmup_steps=0, **changes):
    """Computes the learning rate of a step with nothing but Python's floats and branches."""
    options = dict(warmup_factor=0.001, decay_at=(0.75,), decay_factor=0.1, final_factor=0.0)
    options |= dict(cycles=2.0, low_factor=0.1) | changes
    rate, done = learning_rate, min(step / horizon, 1)
    low, final = options['low_factor'], options['final_factor']
    if step < warmup_steps:
        factor = options['warmup_factor']
        rate *= factor + (1 - factor) * step / warmup_steps
    if schedule == 'step':
        for fraction in options['decay_at']:
            rate *= options['decay_factor'] if step >= fraction * horizon else 1
    elif schedule == 'cosine':
        rate *= final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    elif schedule == 'cyclical':
        phase = (done * options['cycles']) % 1  # of one triangle
        rate *= low + (1 - low) * (2 * phase if phase <= 0.5 else 2 - 2 * phase)
    elif schedule == 'one_cycle' and done < 0.3:
        rate *= low + (1 - low) * done / 0.3
    elif schedule == 'one_cycle':
        rate *= final + (1 - final) * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
    return rate


def pycocotools_recall(instances, results, limits):
    """Returns AR@n and AR@n/size of COCOeval, None where it says -1."""
    coco = pytest.importorskip('pycocotools.coco')
    evaluation = pytest.importorskip('pycocotools.cocoeval')
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = coco.COCO(), coco.COCO()
        truth.dataset = json.loads(json.dumps(instances))
        truth.createIndex()
        if results:
            found = truth.loadRes(json.loads(json.dumps(results)))
        else:  # loadRes looks at the first of them
            found.dataset = {**truth.dataset, 'annotations': []}
            found.createIndex()
        run = evaluation.COCOeval(truth, found, 'bbox')
        run.params.useCats, run.params.maxDets = 0, list(limits)
        run.evaluate()
        run.accumulate()
    recalls = run.eval['recall'][:, 0]  # [thresholds, sizes, limits]
    return {
        f'AR@{n}{size}': None if recalls[0, i, j] < 0 else float(recalls[:, i, j].mean())
        for j, n in enumerate(limits)
        for i, size in enumerate(('', '/small', '/medium', '/large'))
    }
