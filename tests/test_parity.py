"""The same numbers as torchvision 0.28, function by function: figures stored in tests/golden."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.formula import formula

from configs import default
from rpn_jax import weights
from rpn_jax.models import resnet, rpn
from rpn_jax.ops import anchors as anchor
from rpn_jax.ops import boxes as box
from rpn_jax.ops import losses, matching, proposals
from rpn_jax.ops.nms import nms
from rpn_jax.training import loop
from rpn_jax.training.parallel import replicate
from rpn_jax.training.step import init_state

GOLDEN = Path(__file__).parent / 'golden'
propose = jax.jit(proposals.propose, static_argnames=('pre_nms', 'post_nms', 'levels'))
nms = jax.jit(nms, static_argnames='limit')
CANVAS = (608, 800)


def golden(name):
    return np.load(GOLDEN / f'{name}.npz')


def canvas_anchors():
    base = anchor.base_anchors((32, 64, 128, 256, 512), (0.5, 1, 2))
    return anchor.grid(base, (CANVAS[0] // 16, CANVAS[1] // 16), 16)


@pytest.mark.parametrize('case', range(4))
def test_anchors(case):
    names = 'sizes aspect_ratios image stride base grid_shape grid_head grid_tail grid_sum'.split()
    sizes, ratios, image, stride, *expected = (golden('anchors')[f'{case}.{n}'] for n in names)
    base = anchor.base_anchors(sizes, ratios)
    grid = np.asarray(anchor.grid(base, tuple(-(-image // stride)), int(stride)))
    ours = base, grid.shape, grid[:200], grid[-200:], grid.astype(np.float64).sum(0)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_coding():
    figures = golden('coding')
    anchors, boxes = figures['anchors'], figures['boxes']
    near = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(box.encode(boxes, anchors), figures['deltas'], **near)
    decoded, expected = box.decode(figures['random_deltas'], anchors), figures['decoded']
    size = np.abs(expected).max(axis=1, keepdims=True)  # of a box, some of thousands of pixels
    assert np.all(np.abs(decoded - expected) <= 1e-5 * np.maximum(size, 1))
    np.testing.assert_allclose(box.iou(anchors[:100], boxes[:80]), figures['iou'], **near)


CASES = ['voc0', 'voc1', 'voc2', 'voc3', 'tiny', 'empty', 'edge', 'twins']


@pytest.mark.parametrize('case', CASES)
def test_match(case):
    figures = golden('match')
    boxes = figures[f'{case}.boxes']
    anchors = canvas_anchors()
    padded = np.zeros((40, 4), np.float32)  # padding must change nothing
    padded[: len(boxes)] = boxes
    kind = (np.arange(40) < len(boxes)).astype(np.int32)
    labels, matched = jax.jit(matching.match)(anchors, padded, kind)
    np.testing.assert_array_equal(labels, figures[f'{case}.labels'])
    positive = np.asarray(labels) == 1
    deltas = box.encode(padded[np.asarray(matched)[positive]], anchors[positive])
    np.testing.assert_allclose(deltas, figures[f'{case}.positive_target_deltas'], atol=1e-4)


def test_losses():
    figures = golden('loss')
    anchors = canvas_anchors()
    logits, deltas = (figures[k].astype(np.float32) for k in ('logits', 'deltas'))
    labels = figures['sampled_labels'].astype(np.int32)
    target_deltas = []
    for image in range(2):
        boxes = figures[f'boxes{image}']
        _, matched = jax.jit(matching.match)(anchors, boxes, np.ones(len(boxes), np.int32))
        target_deltas.append(box.encode(boxes[matched], anchors))
    target_deltas = jnp.stack(target_deltas)
    count = (labels >= 0).sum()

    def both(logits, deltas):
        objectness = jax.vmap(losses.objectness_loss)(logits, labels).sum() / count
        boxes = jax.vmap(losses.box_loss)(deltas, target_deltas, labels).sum() / count
        return objectness + boxes, (objectness, boxes)

    grad = jax.jit(jax.value_and_grad(both, argnums=(0, 1), has_aux=True))
    (_, (objectness, boxes)), (logits_grad, deltas_grad) = grad(logits, deltas)
    np.testing.assert_allclose(objectness, figures['loss_objectness'], rtol=1e-5)
    np.testing.assert_allclose(boxes, figures['loss_rpn_box_reg'], rtol=1e-5)
    used = labels >= 0
    stored = figures['grad_logits_at_sampled'], figures['grad_deltas_at_sampled']
    np.testing.assert_allclose(logits_grad[used], stored[0], atol=1e-6)
    np.testing.assert_allclose(deltas_grad[used], stored[1], atol=1e-6)


@pytest.mark.parametrize('case', range(3))
def test_nms(case):
    figures = golden('nms')
    keep = figures[f'{case}.keep']
    boxes, scores = figures[f'{case}.boxes'], figures[f'{case}.scores']
    threshold = float(figures[f'{case}.iou_threshold'])
    indices, valid = nms(boxes, scores, iou_threshold=threshold, limit=len(boxes))
    np.testing.assert_array_equal(indices[valid], keep)


def test_proposals():
    figures = golden('proposals')
    anchors = canvas_anchors()
    for image in range(2):
        kept = propose(
            figures['logits'][image],
            figures['deltas'][image].astype(np.float32),
            anchors,
            figures['sizes'][image],
            pre_nms=1000,
            post_nms=1000,
            nms_iou=0.7,
        )
        valid = np.asarray(kept.valid)
        np.testing.assert_allclose(kept.boxes[valid], figures[f'{image}.boxes'], atol=1e-2)
        np.testing.assert_allclose(kept.scores[valid], figures[f'{image}.scores'], rtol=1e-5)


def zeros(shapes):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def load_formula(shapes, **more):
    """Returns variables of these shapes, each by its formula."""
    names = weights.from_variables(zeros(shapes))
    tensors = {name: formula(name, tensor.shape, **more) for name, tensor in names.items()}
    return weights.to_variables(tensors, shapes)


@pytest.mark.parametrize('depth', [50, 101])
@pytest.mark.parametrize('dilated', [False, True])
def test_backbone(depth, dilated):
    figures = golden('backbone')
    image = figures[f'{depth}.image'].transpose(0, 2, 3, 1)
    backbone = resnet.ResNet(depth, 5, (1, 1, 1, 2) if dilated else (1, 1, 1, 1))
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), image)
    variables = load_formula({kind: {'backbone': tree} for kind, tree in shapes.items()})
    variables = {kind: tree['backbone'] for kind, tree in variables.items()}
    outputs = jax.jit(backbone.apply)(variables, image)
    names = {'conv5': 'dc5'} if dilated else {'conv3': 'c3', 'conv4': 'c4', 'conv5': 'c5'}
    for ours, theirs in names.items():
        a, b = outputs[ours], figures[f'{depth}.{theirs}'].transpose(0, 2, 3, 1)
        assert np.abs(a - b).max() / np.abs(b).max() <= 1e-4


def assert_trains_alike(config, image, boxes_of, losses, after, **more):
    """Takes the steps that torchvision took: no sampling is random where all anchors are used.

    image is [2, 3, H, W], boxes_of the objects of both, losses those before each step, after the
    first numbers of some tensors at the end.
    """
    model, optimizer, _ = loop.build(config)
    devices = jax.local_devices()[:1]
    state = zeros(jax.eval_shape(lambda: init_state(model, optimizer, 0)))
    state = replicate(state.replace(**load_formula(state.variables, **more)), devices)
    boxes, kind = np.zeros((2, 5, 4), np.float32), np.zeros((2, 5), np.int32)
    for i, objects in enumerate(boxes_of):
        boxes[i, : len(objects)], kind[i, : len(objects)] = objects, 1
    batch = {'image': image.transpose(0, 2, 3, 1), 'boxes': boxes, 'kind': kind}
    update = loop.update_of(config, model, optimizer, devices)
    for losses_before in losses:
        state, metrics = update(state, batch)
        found = metrics['loss_objectness'], metrics['loss_box']
        np.testing.assert_allclose(found, losses_before, rtol=1e-3)
    tensors = weights.from_variables(state.variables)
    for name, stored in after.items():
        ours = tensors[name].reshape(-1)[:512]
        assert np.abs(stored - ours).max() <= 1e-3 * np.abs(stored).max(), name


@pytest.mark.parametrize('steps', [2, pytest.param(6, marks=pytest.mark.slow)])
def test_training_steps(steps):
    figures = golden('training')
    config = default.get_config()
    config.anchors.sizes = tuple(figures['sizes'].tolist())
    config.targets.samples = 10 * 12 * 15 * 2  # twice the anchors: all positives, all background
    config.optim.update(learning_rate=float(figures['lr']), schedule='constant')
    after = {name: figures[name] for name in figures.files if name.endswith(('weight', 'bias'))}
    assert len(after) >= 4
    boxes = figures['boxes0'], figures['boxes1']
    after = after if steps == len(figures['losses']) else {}
    assert_trains_alike(config, figures['image'], boxes, figures['losses'][:steps], after)


PYRAMID_SIZES = tuple((size,) for size in (32, 64, 128, 256, 512))


def pyramid_config(depth=50, **model):
    config = default.get_config()
    config.model.update(depth=depth, last_stage=5, fpn_stages=(2, 3, 4, 5), frozen_stages=2)
    config.model.update(model)
    config.anchors.sizes = PYRAMID_SIZES
    return config


@pytest.mark.parametrize('case', ['50', pytest.param('101', marks=pytest.mark.slow), 'v2'])
def test_pyramid(case):
    figures = golden('fpn')
    v2 = {'fpn_norm': 'batch', 'head_convs': 2, 'norm': 'batch'}
    config = pyramid_config(int(case) if case.isdigit() else 50, **(v2 if case == 'v2' else {}))
    model = rpn.build(config.model, config.anchors)
    image = figures[f'{case}.image'].transpose(0, 2, 3, 1)
    variables = load_formula(jax.eval_shape(model.init, jax.random.key(0), image), head_bias=True)
    maps = jax.jit(functools.partial(model.apply, method='features'))(variables, image)
    for level, ours in enumerate(maps, 2):
        theirs = figures[f'{case}.p{level}']
        ours = np.asarray(ours)[0].transpose(2, 0, 1)[::8]
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    answers = jax.jit(model.apply)(variables, image)
    for ours, name in zip(answers, ('logits', 'deltas'), strict=True):
        theirs = figures[f'{case}.{name}']
        assert np.abs(ours[0] - theirs).max() <= 1e-4 * np.abs(theirs).max()
    anchors = rpn.anchors_of(model, image.shape[1:3])
    np.testing.assert_array_equal(anchors.boxes, figures['anchors'])
    np.testing.assert_array_equal(anchors.levels, figures['levels'])
    if f'{case}.proposals' in figures:
        logits, deltas = (x[0] for x in answers)
        sizes = dict(pre_nms=400, post_nms=200, nms_iou=0.7)
        ours = propose(logits, deltas, anchors, figures['canvas'], **sizes)
        theirs = figures[f'{case}.proposals']
        assert ours.valid.sum() == len(theirs)
        np.testing.assert_allclose(ours.boxes[: len(theirs)], theirs, atol=1e-2)


@pytest.mark.slow
def test_five_training_steps_with_a_pyramid():
    figures = golden('fpn')
    config = pyramid_config()
    config.targets.samples = 2 * len(figures['anchors'])
    config.optim.update(learning_rate=0.002, schedule='constant')
    boxes = figures['train.boxes0'], figures['train.boxes1']
    anchors = rpn.anchors_of(loop.build(config)[0], figures['canvas'])
    for i, objects in enumerate(boxes):
        labels, _ = jax.jit(matching.match)(anchors, objects, np.ones(len(objects), np.int32))
        np.testing.assert_array_equal(labels, figures[f'train.labels{i}'])
    start = 'train.after.'
    after = {k.removeprefix(start): figures[k] for k in figures.files if k.startswith(start)}
    steps = figures['train.image'], boxes, figures['train.losses'], after
    assert_trains_alike(config, *steps, head_bias=True)
