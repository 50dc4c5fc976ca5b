"""What a run says while it goes, when it stops, and how it listens to signals."""

import json
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rpn_jax.console import duration
from rpn_jax.data.canvases import Canvases
from rpn_jax.data.records import Files, Record, Source
from rpn_jax.errors import InputError
from rpn_jax.ops.anchor_statistics import IOUS, LOSSES
from rpn_jax.training.progress import (
    Progress,
    Signals,
    anchors_line,
    canvases_line,
    shared_images,
)

RECORDS = [Record(f'image {i}', (8, 8), np.zeros((0, 4)), np.zeros(0)) for i in range(6)]


class Unread:
    """A number that is still being computed: nobody may ask for it."""

    def __array__(self, *_, **__):
        raise AssertionError('the host waits for the device')


def metrics(loss, **changes):
    """Returns what the update returns for a step."""
    image_loss = np.array([1.0, 2, 3, 4], np.float32)
    figures = {'loss': loss, 'loss_objectness': loss / 4, 'loss_box': loss * 3 / 4}
    figures = {name: np.float32(value) for name, value in (figures | {'positives': 2}).items()}
    types = {name: np.float32([loss, 0]) for name in ('positives', *LOSSES, *IOUS)}
    figures |= {'anchors': types, 'finite': np.bool_(True), 'image_loss': image_loss}
    return figures | changes


def make(log_every=1, steps=5, schedule=lambda step: step / 4, **others):
    """Returns a Progress and the list of what it logs: (step, scalars)."""
    logged = []
    others |= {'steps': steps, 'log_every': log_every}
    return Progress(lambda *line: logged.append(line), RECORDS, schedule, **others), logged


def test_a_line_shows_the_weights_of_the_losses_that_are_not_1(caplog):
    caplog.set_level(logging.INFO)
    progress, _ = make(weights={'objectness': 1.0, 'box': 2.5})
    progress.read(1, metrics(1.0), np.arange(4), None)
    progress.flush()
    assert 'objectness 0.2500  box 0.7500 x 2.5  positives' in caplog.text


def test_a_line_is_the_mean_of_its_steps_and_the_last_step_has_one(caplog, monkeypatch):
    """The learning rate is the one that the step was taken with, the speed that since a line."""
    caplog.set_level(logging.INFO)
    clock = iter([10, 10.5, 11, 12, 14])  # as each step ends; the first is compilation
    monkeypatch.setattr('time.monotonic', lambda: next(clock))
    progress, log = make(log_every=2)
    for step in range(1, 6):
        progress.read(step, metrics(float(step)), np.arange(4), None)
    progress.flush()
    assert [step for step, _ in log] == [2, 4, 5]
    expected = {
        'loss': [1.5, 3.5, 5],
        'loss_box': [1.125, 2.625, 3.75],
        'positives': [2, 2, 2],
        'learning_rate': [0.25, 0.75, 1],
        'images_per_second': [8, 2 * 4 / 1.5, 2],
    }
    for name, values in expected.items():
        assert [scalars[name] for _, scalars in log] == values, name
    first, middle, last = caplog.messages
    assert middle.endswith(' 0:00 left')  # as 3 steps took 2 s
    assert first.startswith('step 2/5  loss 1.5000  objectness 0.3750  box 1.1250 ')
    assert last.endswith(' 0:00 left')


def test_the_speed_is_that_of_training_alone(monkeypatch):
    clock = iter([10, 11, 100, 101, 102])  # an evaluation after the second step
    monkeypatch.setattr('time.monotonic', lambda: next(clock))
    progress, log = make(log_every=2, steps=9)
    for step in range(1, 6):
        progress.read(step, metrics(float(step)), np.arange(4), None)
        if step == 3:
            progress.restart()
    progress.flush()
    assert [scalars['images_per_second'] for _, scalars in log] == [4, 4]


def test_a_line_whose_step_is_the_first_after_an_evaluation_has_the_mean_speed(monkeypatch):
    clock = iter([10, 11, 13])
    monkeypatch.setattr('time.monotonic', lambda: next(clock))
    progress, log = make(log_every=1, steps=9)
    for step in range(1, 4):
        progress.read(step, metrics(float(step)), np.arange(4), None)
        if step == 3:
            progress.restart()
    progress.flush()
    assert [scalars['images_per_second'] for _, scalars in log] == [0, 4, 4 * 2 / 3]


def test_anchor_types_have_means_over_their_positives_in_the_window():
    steps = [
        {'positives': np.float32([2, 0, 0]), 'loss_box': np.float32([1, 0, 0.5])}
        | {name: np.float32([0.5, 0, 0]) for name in IOUS},
        {'positives': np.float32([6, 0, 1]), 'loss_box': np.float32([2, 0, 1 / 3])}
        | {name: np.float32([0.9, 0, 0.7]) for name in IOUS},
    ]
    line = anchors_line(steps)
    assert line['positives'] == [4, 0, 0.5] and line['loss_box'] == [1.5, 0, 0.416667]
    assert line['iou_after'] == line['iou_before'] == [0.8, None, 0.7]
    progress, log = make()
    progress.read(1, metrics(2.0), np.arange(4), None)
    progress.flush()
    scalars = log[0][1]
    assert scalars['anchors']['iou_after'] == [2, None] and 'image_loss' not in scalars
    assert json.loads(json.dumps(scalars, allow_nan=False)) == scalars


def test_metrics_are_read_a_step_late():
    progress, log = make()
    progress.read(1, metrics(1), np.arange(4), None)
    assert log == []
    progress.read(2, metrics(1, positives=Unread()), np.arange(4), None)
    assert [step for step, _ in log] == [1]
    with pytest.raises(AssertionError, match='waits'):
        progress.flush()
    progress.flush()  # there is nothing left


@pytest.mark.parametrize(
    ('image_loss', 'saved', 'message'),
    [
        ([1, np.nan, 2, np.inf], 2, 'image 2, image 4; the last good checkpoint is of step 2;'),
        ([1, 2, 3, 4], None, 'image 5, image 2, image 1, image 4; there is no checkpoint yet;'),
    ],
)
def test_the_images_whose_loss_is_not_finite_are_named(image_loss, saved, message):
    """All of them where only the gradient is not finite."""
    progress, log = make()
    bad = metrics(np.nan, finite=np.bool_(False), image_loss=np.float32(image_loss))
    progress.read(3, bad, np.array([5, 2, 1, 4]), saved)
    with pytest.raises(InputError, match=f'not finite at step 3, images {message}'):
        progress.read(4, metrics(1), np.array([0, 1, 2, 3]), 2)
    assert log == []


def messages_with(caplog, text):
    return [message for message in caplog.messages if text in message]


def test_steps_that_are_not_finite_are_skipped_and_counted(caplog):
    """As many in a row as are allowed; means are of the other steps."""
    examined = []

    def examine(step, image_loss, rows):
        examined.append((step, rows.tolist()))
        return '; it was examined'

    progress, log = make(log_every=3, steps=12, skip_nonfinite=2, examine=examine)
    caplog.set_level(logging.INFO)
    bad = {1, 3, 4, 5 + 2, 5 + 3, 5 + 4}
    with pytest.raises(InputError) as caught:
        for step in range(1, 11):
            loss = np.float32([np.inf if step == 1 else 0, 0])
            changes = {'finite': np.bool_(step not in bad), 'image_loss': loss}
            progress.read(step, metrics(float(step), **changes), np.array([5, 2]), None)
    assert log[0][1].keys() == log[1][1].keys()
    assert [(step, line['loss'], line['skipped']) for step, line in log] == [(3, 2, 2), (6, 5.5, 1)]
    rows = {1: [0]}
    assert examined == [(step, rows.get(step, [0, 1])) for step in sorted(bad)]
    expected = (
        'loss or gradient is not finite at step 1, images image 5; it was examined; skipped: '
    )
    assert messages_with(caplog, 'skipped')[0] == f'{expected}1 in a row of at most 2'
    assert [line.partition('skipped: ')[2] for line in messages_with(caplog, 'skipped')[1:3]] == [
        '1 in a row of at most 2',
        '2 in a row of at most 2',
    ]
    message = 'not finite at step 9, images image 5, image 2; it was examined; there is no check'
    assert message in str(caught.value) and '; 3 such steps in a row; lower' in str(caught.value)


def test_a_line_of_steps_that_were_all_skipped_has_no_means(caplog):
    caplog.set_level(logging.INFO)
    progress, log = make(log_every=1, steps=2, skip_nonfinite=9)
    progress.read(1, metrics(np.nan, finite=np.bool_(False)), np.arange(4), None)
    progress.flush()
    ((step, line),) = log
    assert step == 1 and line.keys() == {'skipped', 'learning_rate', 'images_per_second'}
    assert messages_with(caplog, 'step 1/2')[0].startswith(
        'step 1/2  all steps since the last line were'
    )


def test_the_first_signal_is_remembered_and_the_second_has_its_usual_way():
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append('usual'))
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        with Signals() as signals:
            assert signals.received == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.received == signal.SIGTERM and caught == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert caught == ['usual']
            assert signal.getsignal(signal.SIGINT) is interrupt
        with Signals():
            assert signal.getsignal(signal.SIGINT) is not interrupt
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_are_left_alone_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(Signals().__enter__).result().received == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.4, '0:00'), (65, '1:05'), (3599, '59:59'), (3723.9, '1:02:03')]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def test_images_that_are_trained_on_and_evaluated_are_named():
    def source(*names):
        return Source('x', [], None, Files(names, None, None) if names else None)

    assert not shared_images(source('a', 'b'), source('c'))
    assert not shared_images(source(), source()) and not shared_images(source('a'), source())
    line = shared_images(source('a', 'c', 'b'), source('c', 'b', 'd'))
    assert line.startswith('2 of the 3 images of the evaluation are trained on (b, ..): ')


def test_canvases_are_named_with_their_shares_and_padding():
    sizes = [(25, 64), (64, 32), (64, 32), (64, 32)]
    canvases = Canvases(((32, 64), (64, 32)), np.array([0, 1, 1, 1]), np.int64(sizes))
    line = canvases_line(canvases)
    assert '32 x 64 (25% of the images), 64 x 32 (75% of the images); 5.5% of their' in line
