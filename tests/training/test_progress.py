"""What a run says while it goes, when it stops, and how it listens to signals."""

import json
import logging
import os
import signal
import threading

import numpy as np
import pytest

from rpn_jax.data.records import Record
from rpn_jax.errors import InputError, Interrupted
from rpn_jax.ops.anchor_statistics import IOUS, LOSSES
from rpn_jax.training.progress import Progress, Signals, anchors_line, duration

RECORDS = [Record(f'image {i}', (8, 8), np.zeros((0, 4)), np.zeros(0)) for i in range(6)]


class Log(list):
    """Stands for workdir.History."""

    def log(self, step, scalars):
        self.append((step, scalars))


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


def make(log_every=2, steps=5, schedule=lambda step: 0.5):
    """Returns a Progress and its log."""
    log, lengths = Log(), dict(steps=steps, log_every=log_every, batch_size=4)
    return Progress(log, RECORDS, schedule=schedule, **lengths), log


def test_a_line_is_the_mean_of_its_steps_and_the_last_step_has_one(caplog):
    caplog.set_level(logging.INFO)
    progress, log = make()
    for step in range(1, 6):
        progress.read(step, metrics(float(step)), np.arange(4), None)
    progress.flush()
    assert [step for step, _ in log] == [2, 4, 5]
    assert [scalars['loss'] for _, scalars in log] == [1.5, 3.5, 5]
    assert [scalars['loss_box'] for _, scalars in log] == [1.125, 2.625, 3.75]
    for _, scalars in log:
        assert scalars['positives'] == 2 and scalars['learning_rate'] == 0.5
        assert scalars['images_per_second'] > 0 and 'image_loss' not in scalars
    first, _, last = caplog.messages
    assert first.startswith('step 2/5  loss 1.5000  objectness 0.3750  box 1.1250 ')
    assert last.endswith(' 0:00 left')


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
    progress, log = make(log_every=1)
    progress.read(1, metrics(2.0), np.arange(4), None)
    progress.flush()
    assert log[0][1]['anchors']['iou_after'] == [2, None]
    assert json.loads(json.dumps(log[0][1], allow_nan=False)) == log[0][1]


def test_the_logged_learning_rate_is_the_one_the_step_was_taken_with():
    progress, log = make(log_every=1, steps=4, schedule=lambda step: step / 4)
    for step in (1, 2, 3):
        progress.read(step, metrics(1), np.arange(4), None)
    progress.flush()
    assert [scalars['learning_rate'] for _, scalars in log] == [0, 0.25, 0.5]


def test_metrics_are_read_a_step_late():
    progress, log = make(log_every=1)
    progress.read(1, metrics(1), np.arange(4), None)
    assert log == []
    progress.read(2, metrics(1, positives=Unread()), np.arange(4), None)
    assert [step for step, _ in log] == [1]
    with pytest.raises(AssertionError, match='waits'):
        progress.flush()
    progress.flush()  # there is nothing left


def test_the_images_whose_loss_is_not_finite_are_named():
    progress, log = make(log_every=1)
    image_loss = np.array([1, np.nan, 2, np.inf], np.float32)
    bad = metrics(np.nan, finite=np.bool_(False), image_loss=image_loss)
    progress.read(3, bad, np.array([5, 2, 1, 4]), 2)
    with pytest.raises(InputError) as caught:
        progress.read(4, metrics(1), np.array([0, 1, 2, 3]), 2)
    message = str(caught.value)
    assert 'at step 3, images image 2, image 4; the last good checkpoint is of step 2;' in message
    assert log == []


def test_all_images_are_named_where_only_the_gradient_is_not_finite():
    progress, _ = make()
    progress.read(1, metrics(1, finite=np.bool_(False)), np.array([5, 2, 1, 4]), None)
    with pytest.raises(InputError, match='image 5, image 2, image 1, image 4; there is no check'):
        progress.flush()


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
    seen = []

    def work():
        with Signals() as signals:
            seen.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_an_interruption_says_how_to_go_on():
    interruption = Interrupted(12, signal.SIGTERM)
    assert interruption.code == 143 and Interrupted(1, signal.SIGINT).code == 130
    assert str(interruption) == 'interrupted at step 12; the same command goes on from there'


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.4, '0:00'), (65, '1:05'), (3599, '59:59'), (3723.9, '1:02:03')]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text
