"""The update on one, two and four devices, the state it returns, and the loop around it."""

import functools
import json
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from helpers import compilations, finished_run, messages, tiny_config

from rpn_jax import commands, data
from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint, loop
from rpn_jax.training.parallel import place
from rpn_jax.training.step import assign_images, init_state, step_key
from rpn_jax.training.workdir import read_history

pytestmark = pytest.mark.usefixtures('quick_compilation')
STEPS, LOSSES = 10, ['loss', 'loss_objectness', 'loss_box']


class Trajectory(NamedTuple):
    """What some steps of the update on some devices gave."""

    before: Any  # NumPy
    state: Any
    metrics: list
    compiled: list  # what was compiled for each step


def run_of(config, folder, devices=None, watch=None):
    """Trains a config in a folder; returns the state, the Evaluation and the lines logged."""
    with messages(watch) as lines:
        make_evaluate = commands.evaluator(config, folder)
        return *loop.train(config, folder, make_evaluate, devices=devices), lines


def uneven_config(norm):
    """Returns a config with parts that never learn; anchors at the border are left out."""
    config = tiny_config(model__norm=norm, targets__border=0)
    config.model.frozen_stages = 1 if norm == 'batch' else 2
    return config


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


def start(config, devices):
    """Returns an update and the state, placed, that it starts from."""
    model, optimizer, _ = loop.build(config)
    state = init_state(model, optimizer, config.seed)
    return loop.update_of(config, model, optimizer, devices), place(state, devices)


def follow(config, devices):
    """Takes STEPS steps with the uneven batch."""
    update, state = start(config, devices)
    before, metrics, compiled = jax.device_get(state), [], []
    for _ in range(STEPS):
        with compilations() as names:
            state, figures = update(state, uneven_batch())
        metrics.append(jax.device_get(figures))
        compiled.append(names)
    return Trajectory(before, state, metrics, compiled)


@pytest.fixture(scope='module', params=['batch', 'frozen'])
def norm(request, quick_compilation):
    """Both norms that the update treats differently."""
    return request.param


@pytest.fixture(scope='module')
def trajectories(norm):
    """Returns the same steps on 1, 2 and 4 devices: {number: Trajectory}."""
    config = uneven_config(norm)
    return {n: follow(config, jax.devices()[:n]) for n in (1, 2, 4)}


@pytest.fixture(scope='module')
def floating(quick_compilation):
    """Returns an update on one device in which images share no statistics, and a NumPy state."""
    update, state = start(uneven_config('frozen'), jax.devices()[:1])
    return update, jax.device_get(state)


def paths(tree):
    """Returns {path: NumPy array} of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(a, b):
    """Checks that two trees are equal bit for bit."""
    a, b = paths(a), paths(b)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


def test_devices_sample_unequally():
    for count in (labels_of_steps() >= 0).sum(axis=2):
        assert len(set(count)) >= 3 and count.max() == 48 and count.min() < 10
        assert count[:2].sum() != count[2:].sum()  # on two devices as well


def test_losses_do_not_depend_on_the_number_of_devices(trajectories):
    one, two, four = (paths(trajectories[n].metrics) for n in (1, 2, 4))
    assert len(one) == STEPS * (6 + 5)  # five of them by anchor type
    for name, other in [(name, other) for name in one for other in (two, four)]:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-5, err_msg=name)
    losses = [m['loss'] for m in trajectories[1].metrics]
    assert abs(losses[-1] - losses[0]) > 0.01  # or else nothing was compared


def test_states_do_not_depend_on_the_number_of_devices(trajectories):
    one = paths(trajectories[1].state)
    before = paths(trajectories[1].before)
    for n in (2, 4):
        for name, leaf in paths(trajectories[n].state).items():
            moved, rounding = np.abs(one[name] - before[name]).max(), 1e-6 * np.abs(leaf).max()
            assert np.abs(leaf - one[name]).max() <= 1e-3 * moved + rounding, name


def test_replicas_stay_equal_bit_for_bit(trajectories):
    for n, trajectory in trajectories.items():
        for leaf in jax.tree.leaves(trajectory.state):
            replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert len(replicas) == n and replicas[0].shape == leaf.shape
            assert all(replica.tobytes() == replicas[0].tobytes() for replica in replicas)


def test_the_update_compiles_at_its_first_step_alone(trajectories):
    for trajectory in trajectories.values():
        assert trajectory.compiled[0]
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


def test_the_state_counts_its_steps(trajectories):
    for trajectory in trajectories.values():
        assert trajectory.before.step == 0 and trajectory.state.step == STEPS


def test_frozen_parameters_stay_and_have_no_optimizer_state(norm, trajectories):
    config = uneven_config(norm)
    fixed = paths(rpn.frozen(loop.build(config)[0], trajectories[1].before.params))
    assert 0 < sum(map(bool, fixed.values())) < len(fixed)
    before, after = (paths(s.params) for s in trajectories[4][:2])
    for name in before:
        moved = before[name].tobytes() != after[name].tobytes()
        assert moved != fixed[name], name
    momentum = [
        x.size for x in paths(trajectories[1].state.opt_state).values() if x.dtype == np.float32
    ]
    assert sum(momentum) == sum(before[name].size for name in before if not fixed[name])


def test_statistics_of_frozen_stages_stay(norm, trajectories):
    before, after = (paths(s.batch_stats) for s in trajectories[4][:2])
    assert before
    for name in before:
        stays = norm == 'frozen' or name.startswith("['backbone']['stem")
        assert (before[name].tobytes() == after[name].tobytes()) == stays, name


def test_floating_point_images_pass_as_normalised(floating):
    update, before = floating
    batch = uneven_batch()
    image = normalise(batch['image'], batch['size'], pixel_family('torchvision'))
    normalised = batch | {'image': np.asarray(image)}
    assert normalised['image'].dtype == np.float32
    _, metrics = update(place(before, jax.devices()[:1]), batch)
    _, figures = update(place(before, jax.devices()[:1]), normalised)
    for name in LOSSES:
        np.testing.assert_allclose(figures[name], metrics[name], rtol=1e-5)


@pytest.mark.parametrize('wrong', [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(floating, wrong):
    update, before = floating
    batch = uneven_batch()
    batch['image'] = batch['image'] / np.float32(255)
    state, good = update(place(before, jax.devices()[:1]), batch)
    untouched = jax.device_get(state)
    assert good['finite'] and untouched.step == 1
    spoiled = batch | {'image': batch['image'].copy()}
    spoiled['image'][2, 5, 5] = wrong
    state, metrics = update(state, spoiled)
    assert not metrics['finite']
    np.testing.assert_array_equal(np.isfinite(metrics['image_loss']), [True, True, False, True])
    assert_same(state, untouched)
    state, metrics = update(state, batch)
    assert metrics['finite'] and state.step == 2


def spoil(monkeypatch, position):
    """Makes a NaN of the third image of the batch at a position; returns its image id."""
    original, ids = data.train_batches, []

    def batches(source, options, *, seed, steps, **share):
        stream = original(source, options, seed=seed, steps=steps)
        for step, batch in zip(steps, stream, strict=True):
            batch['image'] = batch['image'] / np.float32(255)
            if step == position:
                batch['image'][2] = np.nan
                ids.append(source.records[batch['index'][2]].image_id)
            yield batch

    monkeypatch.setattr(loop.data, 'train_batches', batches)
    return ids


@pytest.mark.parametrize(
    ('position', 'saved', 'checkpoints'),
    [(5, 'the last good checkpoint is of step 4', [2, 4]), (0, 'there is no checkpoint yet', [])],
)
def test_a_run_stops_where_the_loss_is_not_finite(
    monkeypatch, tmp_path, position, saved, checkpoints
):
    ids = spoil(monkeypatch, position)
    config = uneven_config('frozen')
    with pytest.raises(InputError) as caught:
        run_of(config, tmp_path, jax.devices()[:1])
    message = str(caught.value)
    assert f'not finite at step {position + 1}, images {ids[0]}; {saved}; ' in message
    assert 'optim.learning_rate' in message and '\n' not in message
    assert checkpoint.steps(tmp_path) == checkpoints


def test_images_that_devices_cannot_share_are_refused(tmp_path):
    config = tiny_config()
    model, optimizer, _ = loop.build(config)
    update = loop.update_of(config, model, optimizer, jax.devices()[:3])
    with pytest.raises(InputError, match='batch_size: 4 images .* 3 devices'):
        update(None, uneven_batch())
    config.data.batch_size = 6
    with pytest.raises(InputError, match='batch_size: 6 images .* 4 devices'):
        run_of(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


class Killed(Exception):
    """Ends a run at an unforeseen place."""


def test_a_run_that_died_ends_bit_for_bit_like_one_that_did_not(tmp_path):
    def die(line):
        if line.startswith('step 6/8'):
            raise Killed

    with pytest.raises(Killed):
        run_of(tiny_config(), tmp_path, watch=die)
    assert checkpoint.steps(tmp_path) == [2, 4]
    assert [line['step'] for line in read_history(tmp_path)][-1] == 6
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 7, "lo')
    state, evaluation, lines = run_of(tiny_config(), tmp_path)

    assert lines[0].endswith('steps 4 to 8')
    assert [line for line in lines if line.startswith('step ')][0].startswith('step 5/8')
    other = finished_run().folder
    with checkpoint.Checkpoints(other, every=2, keep=3) as checkpoints:
        assert_same(state, checkpoints.load(state))
    middle, _ = checkpoint.restore(tmp_path, 4)
    moved = paths(state.params)
    assert all(moved[name].tobytes() != x.tobytes() for name, x in paths(middle['params']).items())
    clock = 'images_per_second'
    mine, theirs = ([{**x, clock: 0} for x in read_history(place)] for place in (tmp_path, other))
    assert mine == theirs
    assert [line['step'] for line in mine if 'loss' in line] == list(range(1, 9))
    assert evaluation.summary == json.loads((other / 'evaluation.json').read_text())


def test_a_run_compiles_its_update_and_its_prediction_once():
    run = finished_run()
    assert [line['step'] for line in read_history(run.folder) if 'AR@10' in line] == [4]
    # Both are called _fun by pmap; two evaluations and eight steps made two of them.
    assert run.compiled.count('jit(_fun)') == 2
    assert run.compiled.count('jit(init)') == 1


def test_a_checkpoint_is_of_its_step_although_training_goes_on(tmp_path):
    update, state = start(uneven_config('batch'), jax.devices())
    seen = {}
    with checkpoint.Checkpoints(tmp_path, every=1, keep=3) as checkpoints:
        for step in range(1, 4):
            state, _ = update(state, uneven_batch())
            seen[step] = jax.device_get(state.params)
            checkpoints.save(step, state)
    for step in seen:
        restored, _ = checkpoint.restore(tmp_path, step)
        assert_same(restored['params'], seen[step])


def test_a_run_that_is_done_only_evaluates_again(tmp_path):
    shutil.copytree(finished_run().folder, tmp_path / 'tiny')
    state, evaluation, lines = run_of(tiny_config(), tmp_path / 'tiny')
    assert state.step == 8 and lines[0].endswith('steps 8 to 8')
    expected = json.loads((finished_run().folder / 'evaluation.json').read_text())
    assert evaluation.summary == expected
    assert read_history(tmp_path / 'tiny') == read_history(finished_run().folder)


def test_a_run_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(InputError, match='JAX has 2 processes.*: train in one process'):
        run_of(tiny_config(), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
