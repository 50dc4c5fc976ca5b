"""The update on one, two and four devices, the state that it returns, and any backbone in it."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from helpers import Strided, assert_same, compilations, tiny_config

from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.models import resnet, rpn
from rpn_jax.training import loop
from rpn_jax.training.optim import make_optimizer
from rpn_jax.training.parallel import replicate, shard_batch
from rpn_jax.training.step import assign_images, init_state, make_update, step_key

STEPS, LOSSES = 6, ['loss', 'loss_objectness', 'loss_box']
DEVICES = {'batch': (1, 4), 'frozen': (1, 2)}  # of each norm that the update treats differently


@pytest.fixture(scope='module', autouse=True)
def shallow():
    """Lets there be a network of one block in each stage, which compiles faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 14, (1, 1, 1, 1))
        yield


class Trajectory(NamedTuple):
    """What some steps of the update on some devices gave."""

    before: Any  # NumPy
    state: Any
    metrics: list
    compiled: list  # what was compiled for each step


def uneven_config(norm):
    """Returns a config of which some never learns; anchors at the border are left out."""
    frozen_stages = 1 if norm == 'batch' else 2
    changes = {'model__norm': norm, 'model__depth': 14, 'model__frozen_stages': frozen_stages}
    # A seed for which no activation is so near 0 that rounding decides what its ReLU does.
    return tiny_config(targets__border=0, seed=1, **changes)


def uneven_batch():
    """Returns four images of which unequally many anchors are sampled."""
    kind, boxes = np.zeros((4, 16), np.int32), np.zeros((4, 16, 4), np.float32)
    # The first has no objects. In the second hardly anything is background.
    kind[1, :3], boxes[1, :2] = (1, 3, 2), [[4, 4, 20, 24], [0, 0, 64, 52]]
    boxes[1, 2] = [30, 40, 62, 64]
    kind[2, :5] = 1
    boxes[2, :5] = [[x, y, x + 20, y + 14] for x, y in [(0, 0), (30, 2), (8, 20), (40, 22), (5, 1)]]
    kind[3, 0], boxes[3, 0] = 1, [2, 3, 20, 22]  # only a few anchors are inside this image
    return {
        'image': np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8),
        'boxes': boxes,
        'kind': kind,
        'size': np.float32([[64, 64], [64, 64], [40, 64], [24, 30]]),
        'index': np.int32([7, 3, 12, 0]),
    }


@functools.cache
def labels_of_steps():
    """Returns the sampled labels [STEPS, 4, S] of the uneven batch."""
    config = uneven_config('batch')
    anchors, batch = rpn.anchors_of(loop.build(config)[0], (64, 64)), uneven_batch()
    assign = jax.jit(lambda key: assign_images(key, anchors, batch, config.targets)[1])
    return np.array([assign(step_key(config.seed, step)) for step in range(STEPS)])


@functools.cache
def start(norm, count):
    """Returns the update on so many devices, and the state, in NumPy, that it starts from."""
    config = uneven_config(norm)
    model, optimizer, _ = loop.build(config)
    update = loop.update_of(config, model, optimizer, jax.devices()[:count])
    return update, jax.device_get(init_state(model, optimizer, config.seed))


@functools.cache
def follow(norm, count):
    """Takes STEPS steps with the uneven batch on so many devices."""
    devices, (update, before) = jax.devices()[:count], start(norm, count)
    state, metrics, compiled = replicate(before, devices), [], []
    batch = shard_batch(uneven_batch(), devices)
    for step in range(STEPS):
        with compilations() as names, jax.transfer_guard('disallow' if step else 'allow'):
            state, figures = update(state, batch)
        metrics.append(jax.device_get(figures))
        compiled.append(names)
    return Trajectory(before, state, metrics, compiled)


@pytest.fixture(scope='module', params=DEVICES)
def norm(request):
    return request.param


@pytest.fixture(scope='module')
def trajectories(norm):
    """Returns the same steps on several numbers of devices: {number: Trajectory}."""
    return {count: follow(norm, count) for count in DEVICES[norm]}


def paths(tree):
    """Returns {path: NumPy array} of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_devices_sample_unequally():
    for count in (labels_of_steps() >= 0).sum(axis=2):
        assert len(set(count)) >= 3 and count.max() == 48 and count.min() < 10
        assert count[:2].sum() != count[2:].sum()  # on two devices as well


def test_losses_and_states_do_not_depend_on_the_number_of_devices(trajectories):
    one, *others = trajectories.values()
    figures, state, before = (paths(x) for x in (one.metrics, one.state, one.before))
    assert len(figures) == STEPS * (6 + 5)  # five of them by anchor type
    for other in others:
        for name, values in paths(other.metrics).items():
            np.testing.assert_allclose(values, figures[name], rtol=1e-5, err_msg=name)
        for name, leaf in paths(other.state).items():
            moved, rounding = np.abs(state[name] - before[name]).max(), 1e-6 * np.abs(leaf).max()
            assert np.abs(leaf - state[name]).max() <= 1e-3 * moved + rounding, name
    losses = [m['loss'] for m in one.metrics]
    assert abs(losses[-1] - losses[0]) > 0.01  # or else nothing was compared


def test_replicas_stay_equal_bit_for_bit(trajectories):
    for n, trajectory in trajectories.items():
        assert trajectory.before.step == 0 and trajectory.state.step == STEPS
        for leaf in jax.tree.leaves(trajectory.state):
            replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert len(replicas) == n and replicas[0].shape == leaf.shape
            assert all(replica.tobytes() == replicas[0].tobytes() for replica in replicas)


def test_the_update_compiles_at_its_first_step_alone(trajectories):
    for trajectory in trajectories.values():
        assert trajectory.compiled[0].count('jit(_fun)') == 1  # what pmap calls it
        assert trajectory.compiled[1:] == [[]] * (STEPS - 1)


def test_metrics_are_sums_over_the_sampled_anchors_of_all_devices(trajectories):
    for metrics in (t.metrics for t in trajectories.values()):
        for figures, labels in zip(metrics, labels_of_steps(), strict=True):
            assert figures.keys() == {*LOSSES, 'positives', 'anchors', 'finite', 'image_loss'}
            assert figures['image_loss'].shape == (4,) and figures['finite']
            assert figures['positives'] == (labels == 1).sum() / 4
            mean = figures['image_loss'].sum() / (labels >= 0).sum()
            np.testing.assert_allclose(figures['loss'], mean, rtol=1e-5)
            total = figures['loss_objectness'] + 2 * figures['loss_box']
            np.testing.assert_allclose(figures['loss'], total, rtol=1e-5)
            assert figures['loss_box'] > 0
            for name in ('positives', *LOSSES[1:]):
                np.testing.assert_allclose(sum(figures['anchors'][name]), figures[name], 1e-5)


def test_what_is_frozen_stays_and_has_no_optimizer_state(norm, trajectories):
    before, state, *_ = [*trajectories.values()][-1]
    fixed = paths(rpn.frozen(loop.build(uneven_config(norm))[0], before.params))
    assert 0 < sum(map(bool, fixed.values())) < len(fixed)
    params, moved = paths(before.params), paths(state.params)
    for name in params:
        assert (params[name].tobytes() == moved[name].tobytes()) == fixed[name], name
    held = [x.size for x in paths(state.opt_state).values() if x.dtype == np.float32]
    assert sum(held) == sum(params[name].size for name in params if not fixed[name])
    stats, moved = paths(before.batch_stats), paths(state.batch_stats)
    assert stats
    for name in stats:
        stays = norm == 'frozen' or name.startswith("['backbone']['stem")
        assert (stats[name].tobytes() == moved[name].tobytes()) == stays, name


def test_floating_point_images_pass_as_normalised():
    update, before = start('batch', 1)
    batch = uneven_batch()
    image = normalise(batch['image'], batch['size'], pixel_family('torchvision'))
    _, metrics = update(replicate(before, jax.devices()[:1]), batch)
    _, figures = update(replicate(before, jax.devices()[:1]), batch | {'image': np.asarray(image)})
    for name in LOSSES:
        np.testing.assert_allclose(figures[name], metrics[name], rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_but_the_step_and_the_schedule():
    update, before = start('batch', 1)
    batch = uneven_batch()
    batch['image'] = batch['image'] / np.float32(255)
    state, good = update(replicate(before, jax.devices()[:1]), batch)
    untouched = jax.device_get(state)
    assert good['finite'] and untouched.step == 1
    spoiled = batch | {'image': batch['image'].copy()}
    spoiled['image'][2, 5, 5] = np.nan
    state, metrics = update(state, spoiled)
    after = jax.device_get(state)
    assert not metrics['finite'] and after.step == 2
    for name in ('params', 'batch_stats'):
        assert_same(getattr(after, name), getattr(untouched, name))
    leaves = zip(*map(jax.tree.leaves, (after.opt_state, untouched.opt_state)), strict=True)
    moved = [(int(new), int(old)) for new, old in leaves if not np.array_equal(new, old)]
    assert moved == [(2, 1)]
    state, metrics = update(state, batch)
    assert metrics['finite'] and state.step == 3


def test_a_backbone_of_the_readers_own_learns_but_for_what_is_frozen():
    model = rpn.RPN(Strided('tuple'), rpn.RPNHead(2), (8, 16), ((16,), (32,)), (0.5, 1.0))

    def frozen(params):
        fixed = jax.tree.map(lambda _: False, params)
        return fixed | {'backbone': jax.tree.map(lambda _: True, params['backbone'])}

    optimizer, _ = make_optimizer(learning_rate=0.1, frozen=frozen)
    rules = {'targets': {'samples': 32}, 'frozen': frozen, 'devices': jax.devices()[:1]}
    update = make_update(model, optimizer, **rules)
    state, losses = init_state(model, optimizer, 0), []
    before = jax.device_get(state.params)
    for _ in range(12):
        state, metrics = update(state, uneven_batch())
        losses.append(float(metrics['loss']))
    assert losses[-1] < 0.9 * losses[0]
    assert len(metrics['anchors']['positives']) == 4  # types of both levels
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.params)
    assert all(jax.tree.leaves(moved['head'])) and not any(jax.tree.leaves(moved['backbone']))
