"""The loop: a run resumes bit for bit, stops where it must, and keeps its best checkpoint."""

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers import assert_same, compilations, finished_run, last_state, messages, tiny_config

from rpn_jax import data
from rpn_jax.commands import evaluator
from rpn_jax.errors import InputError, Interrupted
from rpn_jax.training import checkpoint, loop, nonfinite, workdir
from rpn_jax.training.parallel import replicate, shard_batch
from rpn_jax.training.step import init_state
from rpn_jax.training.workdir import figures, read_history


class Evaluation(NamedTuple):
    """As much of an evaluation as the loop reads."""

    summary: dict


def evaluate_as(figure, calls):
    """Returns a make_evaluate whose AR@100 is figure(step); it notes its calls."""

    def make(model, source, devices):
        def evaluate(variables, step, brief=False, between=None):
            calls.append((step, brief))
            own = figure(step)
            between()
            return Evaluation({'proposals': {'AR@100': own, 'AR@100/small': None}})

        evaluate.source = source
        return evaluate

    return make


@pytest.fixture
def spoiled_images(monkeypatch):
    """Makes the loss of step 6 NaN at one image; returns the list that gets its id."""
    original, ids = data.train_batches, []

    def spoiled(source, options, *, steps, **keywords):
        batches = original(source, options, steps=steps, **keywords)
        for step, batch in zip(steps, batches, strict=True):
            batch['image'] = batch['image'] / np.float32(255)
            if step == 5:
                batch['image'][2] = np.nan
                ids.append(source.records[batch['index'][2]].image_id)
            yield batch

    monkeypatch.setattr(loop.data, 'train_batches', spoiled)
    return ids


FROZEN = {'model__norm': 'frozen', 'model__frozen_stages': 2, 'model__fpn_norm': 'frozen'}


def test_a_run_stops_where_the_loss_is_not_finite(spoiled_images, tmp_path):
    with pytest.raises(InputError) as caught:
        loop.train(tiny_config(**FROZEN), tmp_path, devices=jax.devices()[:1])
    message = str(caught.value)
    path = tmp_path / 'nonfinite' / 'step_6.npz'
    for part in (
        f'not finite at step 6, images {spoiled_images[0]}; largest activations: pixels ',
        f'look at its batch: --mode=inspect --workdir={tmp_path} --batch={path}; ',
        'the last good checkpoint is of step 4; lower optim.learning_rate, or skip ',
    ):
        assert part in message
    assert '\n' not in message and checkpoint.steps(tmp_path) == [2, 4]
    kept = nonfinite.read(path)
    (bad,) = np.flatnonzero(~np.isfinite(kept.image_loss))
    assert kept.step == 6 and kept.image_ids[bad] == spoiled_images[0]


def test_a_step_that_is_not_finite_is_skipped_and_a_resumed_run_counts_it(spoiled_images, tmp_path):
    """The count of a step that is in no line yet goes on with the checkpoint."""
    config = tiny_config(optim__skip_nonfinite=1, log_every=8, steps=8, **FROZEN)
    whole, _ = loop.train(config, tmp_path, devices=jax.devices()[:1])
    (line,) = read_history(tmp_path)
    assert line['skipped'] == 1 and np.isfinite(line['loss'])
    assert checkpoint.steps(tmp_path)[-2:] == [6, 8]
    shutil.rmtree(tmp_path / 'checkpoints/8')
    state, _ = loop.train(config, tmp_path, devices=jax.devices()[:1])
    assert_same(jax.device_get(state), jax.device_get(whole))
    (again,) = read_history(tmp_path)
    assert again | {'images_per_second': line['images_per_second']} == line


def test_the_speed_of_a_line_is_without_the_evaluation_at_its_step(tmp_path):
    config = tiny_config(log_every=2, evaluation__every=4, checkpoint__every=100)
    slow = evaluate_as(lambda step: time.sleep(2 if step == 4 else 0) or 0.5, [])
    loop.train(config, tmp_path, slow)
    lines = [line for line in read_history(tmp_path) if 'loss' in line]
    speeds = {line['step']: line['images_per_second'] for line in lines}
    assert speeds.keys() == {2, 4, 6, 8}
    assert min(speeds[4], speeds[6]) > 3 * 4 / 2  # as would be, of 3 steps of 4 images, with it


@pytest.mark.parametrize('failing', [{4}, {2, 4, 6}, {4, 8}])
def test_training_goes_on_where_a_checkpoint_fails_but_not_the_last(
    monkeypatch, tmp_path, caplog, failing
):
    save = checkpoint.Checkpoints.save

    def fail(self, step, *rest):
        if step in failing:
            raise self._unwritten(step, OSError(28, 'No space left on device'))
        save(self, step, *rest)

    monkeypatch.setattr(checkpoint.Checkpoints, 'save', fail)
    monkeypatch.setattr(loop.hosts, 'prefix', lambda: 'process 0 (a): ')
    config, devices = tiny_config(checkpoint__keep=9), jax.devices()[:1]
    ends = 8 not in failing
    with (
        contextlib.nullcontext() if ends else pytest.raises(InputError, match='/8: the checkpoint')
    ):
        loop.train(config, tmp_path, devices=devices)
    told = [line for line in caplog.messages if 'cannot be written' in line]
    assert len(told) == len(failing - {8})
    expected = f'/{min(failing)}: the checkpoint cannot be written (No space left on device); make'
    assert told[0].startswith('process 0 (a): ')
    assert expected in told[0] and told[0].endswith('tries again with the next checkpoint')
    assert checkpoint.steps(tmp_path) == sorted({2, 4, 6, 8} - failing)
    assert [line['step'] for line in read_history(tmp_path)][-1] == 8


def test_the_lowered_update_is_the_one_that_trains():
    config, devices = tiny_config(), jax.devices()[:2]
    model, optimizer, _ = loop.build(config)
    options = data.Options(**config.data)
    source = data.open_split(options, 'train', seed=0)
    batch = shard_batch(data.train_batch(source, options, seed=0)(0), devices)
    state = replicate(init_state(model, optimizer, 0), devices)
    trains = loop.update_of(config, model, optimizer, devices).mapped.lower(state, batch).compile()
    lowered = loop.lowered(config, devices, 2, (64, 64)).compile()
    assert lowered.cost_analysis()['flops'] == pytest.approx(trains.cost_analysis()['flops'])
    planned, needed = (each.memory_analysis() for each in (lowered, trains))
    assert planned.temp_size_in_bytes == pytest.approx(needed.temp_size_in_bytes, rel=1e-2)


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    config = tiny_config(data__batch_size=6)
    with pytest.raises(InputError, match='batch_size: 6 images .* 4 devices'):
        loop.train(config, tmp_path / 'run')
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(InputError, match='JAX has several processes: they must be started'):
        loop.train(tiny_config(), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


class Killed(Exception):
    """Ends a run at an unforeseen moment."""


def test_a_run_that_died_ends_bit_for_bit_like_one_that_did_not(tmp_path, caplog):
    def die(line):
        if line.startswith('step 6/8'):
            raise Killed

    caplog.set_level(logging.INFO, logger='rpn_jax')
    other, config = finished_run().folder, tiny_config()
    with messages(die), pytest.raises(Killed):
        loop.train(config, tmp_path, evaluator(config, tmp_path))
    assert checkpoint.steps(tmp_path) == [2, 4]
    assert [line['step'] for line in read_history(tmp_path)][-1] == 6
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 7, "lo')
    caplog.clear()
    with compilations() as compiled:
        state, evaluation = loop.train(config, tmp_path, evaluator(config, tmp_path))

    assert compiled.count('jit(_fun)') == 2  # as in a run that begins: one update, one prediction
    told = [each.message for each in caplog.records if each.name.startswith('rpn_jax')]
    assert told[0].endswith('steps 4 to 8')
    assert next(x for x in told if x.startswith('step ')).startswith('step 5/8')
    assert_same(jax.device_get(state), last_state(config, other))
    middle, _ = checkpoint.restore(tmp_path, 4)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), middle['params'], state.params)
    assert all(jax.tree.leaves(moved))
    clock = 'images_per_second'
    mine, theirs = ([{**x, clock: 0} for x in read_history(run)] for run in (tmp_path, other))
    assert mine == theirs
    assert [line['step'] for line in mine if 'loss' in line] == list(range(1, 9))
    assert evaluation.summary == json.loads((other / 'evaluation.json').read_text())


def test_lines_and_evaluations_that_an_interruption_cut_off_are_made_up(tmp_path):
    """Means over steps before and after a checkpoint; an evaluation at the step of one."""
    config = tiny_config(log_every=3)
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'

    def die(step):
        if not (cut / 'died').exists() and cut.exists():
            (cut / 'died').touch()
            raise Killed
        return step / 10

    loop.train(config, whole, evaluate_as(lambda step: step / 10, []))
    with pytest.raises(Killed):
        loop.train(config, cut, evaluate_as(die, []))
    assert checkpoint.steps(cut) == [2, 4]
    assert [line['step'] for line in read_history(cut)] == [3]
    loop.train(config, cut, evaluate_as(die, []))
    clock = 'images_per_second'
    mine, theirs = ([{**x, clock: 0} for x in read_history(run)] for run in (cut, whole))
    assert mine == theirs and [line['step'] for line in mine] == [3, 4, 6, 8]
    with pytest.raises(InputError, match='^steps: 6 is fewer than the 8 of the newest checkpoint'):
        loop.train(tiny_config(steps=6), cut)
    assert json.loads((cut / 'config.json').read_text())['steps'] == 8


@pytest.mark.parametrize(('best', 'last'), [('', [8]), ('AR@100', [4, 8])])
def test_a_signal_in_an_evaluation_ends_it_and_the_checkpoint_is_kept(tmp_path, best, last):
    """Its figures are made up, and the checkpoint is the best from then on."""
    changes = {'checkpoint__every': 3, 'checkpoint__keep': 1, 'checkpoint__best': best}
    config, calls = tiny_config(**changes), []

    def figure(step):
        if calls[-1] in ((4, True), (8, False)) and calls.count(calls[-1]) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1 - step / 10

    for step, kept in ((4, [4]), (8, last), (None, last)):
        ends = pytest.raises(Interrupted, match=f'^interrupted at step {step};')
        with ends if step else contextlib.nullcontext():
            loop.train(config, tmp_path, evaluate_as(figure, calls))
        assert checkpoint.steps(tmp_path) == kept
    assert figures(tmp_path, 'AR@100') == {4: 0.6}


STEPPED = {'optim__schedule': 'step', 'optim__decay_at': (0.75,)}


@pytest.mark.parametrize(
    ('changes', 'before', 'note'),
    [
        ({'steps': 16}, {}, 'rises from 0 to 0.01: the schedule'),
        ({'steps': 16}, {'steps': 32}, 'falls from 0.0171 to 0.01: '),
        ({'steps': 16, 'optim__schedule_steps': 8}, {}, ''),
        ({'steps': 16, 'optim__schedule': 'constant'}, {}, ''),
        ({'steps': 40, **STEPPED}, {'steps': 20}, 'at step 15 rises from 0.002 to 0.02: '),
        ({'steps': 40_000, **STEPPED}, {'steps': 20_000}, 'at step 15000 rises from 0.002 to'),
        ({'steps': 8}, {'steps': 32}, ''),
        ({'steps': 16}, {'steps': 'x'}, ''),
    ],
)
def test_a_longer_schedule_is_noted_by_the_rates_before_and_now(caplog, changes, before, note):
    caplog.set_level(logging.INFO, logger='rpn_jax')
    config = tiny_config(optim__warmup_steps=0, **changes)
    loop._describe_rate(config, tiny_config().to_dict() | before, loop.build(config)[2], 8)
    assert len(caplog.messages) == bool(note) and note in caplog.text


class Late:
    """The response of a save that is done when it is waited for."""

    def __init__(self, save):
        self.save = save

    def result(self, timeout):
        if timeout == 0:
            raise TimeoutError
        self.save().result()


def test_a_slow_save_keeps_the_metrics_that_are_in_no_line_yet(tmp_path, monkeypatch):
    save_async = checkpoint.ocp.training.Checkpointer.save_async

    def save_late(self, step, state, **keywords):
        return Late(functools.partial(save_async, self, step, jax.device_get(state), **keywords))

    monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, 'save_async', save_late)
    loop.train(tiny_config(log_every=3), tmp_path)
    assert checkpoint.steps(tmp_path) == [4, 6, 8]
    assert [len(workdir.read_unlogged(tmp_path, step)) for step in (2, 4, 6, 8)] == [2, 1, 0, 0]


def test_a_run_compiles_its_update_and_its_prediction_once():
    run = finished_run()
    assert [line['step'] for line in read_history(run.folder) if 'AR@10' in line] == [4]
    # Both are called _fun by pmap; two evaluations and eight steps made two of them.
    assert run.compiled.count('jit(_fun)') == 2
    assert run.compiled.count('jit(init)') == 1


def test_a_run_that_is_done_only_evaluates_again(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger='rpn_jax')
    shutil.copytree(finished_run().folder, tmp_path / 'tiny')
    calls = []
    make = evaluate_as(lambda step: 0.5, calls)
    state, evaluation = loop.train(tiny_config(), tmp_path / 'tiny', make)
    assert state.step == 8 and any(x.endswith(loop.DONE) for x in caplog.messages)
    assert calls == [(8, False)] and evaluation.summary['proposals']['AR@100'] == 0.5
    assert read_history(tmp_path / 'tiny') == read_history(finished_run().folder)


def test_the_checkpoint_of_the_best_evaluation_survives(tmp_path, caplog):
    """It is saved although no checkpoint was due, and its figure once."""
    caplog.set_level(logging.INFO, logger='rpn_jax')
    figures, calls = {1: 0.2, 3: 0.9, 5: 0.5, 7: 0.6}, []
    make = evaluate_as(lambda step: figures.get(step, 0.1), calls)
    changes = {'evaluation__every': 1, 'checkpoint__keep': 1, 'checkpoint__every': 6}
    config = tiny_config(checkpoint__best='AR@100', **changes)
    loop.train(config, tmp_path, make)
    assert checkpoint.steps(tmp_path) == [3, 8]
    assert calls == [*((step, True) for step in range(1, 9)), (8, False)]
    assert 'step 3:  AR@100 0.900' in caplog.messages
    lines = [x for x in read_history(tmp_path) if 'AR@100' in x]
    assert [x['step'] for x in lines] == list(range(1, 8))
