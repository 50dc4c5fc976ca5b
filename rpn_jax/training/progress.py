"""Progress of a run: its log lines and scalars, signals, and the stop at a non-finite loss."""

import logging
import signal
import threading
import time

import jax
import numpy as np

from rpn_jax.console import duration
from rpn_jax.errors import InputError, Interrupted
from rpn_jax.ops.anchor_statistics import IOUS
from rpn_jax.training import hosts

logger = logging.getLogger(__name__)


class Progress:
    """Prints the means of the steps' metrics every log_every steps, and calls log(step, scalars).

    A step's metrics are read only after the next step is dispatched, so that the host never waits
    for the device between two steps; window holds those of the steps since the last line, signal is
    the number of a signal that a process had got by then, 0 for none. schedule is the function
    step -> learning rate, weights are those {name: number} of the losses. Of steps that are not
    finite at most skip_nonfinite in a row are skipped, and counted; examine(step, image_loss, rows)
    returns what is found at these rows of such a step.
    """

    def __init__(
        self,
        log,
        records,
        schedule,
        *,
        steps,
        log_every,
        weights=None,
        skip_nonfinite=0,
        examine=None,
    ):
        self._log, self._records, self._schedule = log, records, schedule
        self._steps, self._log_every = steps, log_every
        self._factors = {
            name: f' x {weight:g}' for name, weight in (weights or {}).items() if weight != 1
        }
        self._most, self._in_a_row, self._examine = skip_nonfinite, 0, examine
        self._pending, self.window, self.signal = None, [], 0
        self._began = self._last = None  # (step, time) of the first step, and of the last line

    def read(self, step, metrics, index, checkpoint):
        """Takes a dispatched step's metrics, and handles those of the step before.

        index [N] are its images, checkpoint is the newest one's step or None. Raises InputError
        where the step before was not finite and is not to be skipped.
        """
        self.flush()
        self._pending = step, metrics, index, checkpoint

    def flush(self):
        """Waits for the pending step; raises InputError as read does."""
        if self._pending is None:
            return
        (step, metrics, index, checkpoint), self._pending = self._pending, None
        metrics = jax.device_get(metrics)  # all at once, not one after the other
        finite, image_loss = metrics.pop('finite'), metrics.pop('image_loss')
        self.signal = int(metrics.pop('signal', 0))
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if not finite:
            self._skip(step, image_loss, index, checkpoint)
            metrics = {'skipped': np.float32(1)}
        self.window.append(metrics)
        # The first step is mostly compilation: speed is measured from its end.
        now = step, time.monotonic()
        self._began, self._last = self._began or now, self._last or now
        if step % self._log_every == 0 or step == self._steps:
            self._write(step, len(index), now[1])

    def restart(self):
        """Measures the speed from the end of the next step: what came before was no training."""
        self._last = None

    def _write(self, step, batch_size, now):
        window = [metrics for metrics in self.window if 'skipped' not in metrics]
        skipped, self.window = len(self.window) - len(window), []
        overall, recent = (
            (step - first) / max(now - began, 1e-9) for first, began in (self._began, self._last)
        )
        rate, self._last = recent or overall, (step, now)
        line = {}
        if window:
            types = anchors_line([metrics.pop('anchors') for metrics in window])
            line = {k: float(np.mean([metrics[k] for metrics in window])) for k in window[0]}
            line['anchors'] = types
        line |= {'skipped': skipped} if skipped else {}
        line |= {
            'learning_rate': float(self._schedule(step - 1)),
            'images_per_second': rate * batch_size,
        }
        self._log(step, line)
        left = duration((self._steps - step) / overall) if overall else '?'
        means = 'all steps since the last line were skipped  '
        if window:
            means = (
                f'loss {line["loss"]:.4f}  objectness {line["loss_objectness"]:.4f}'
                f'{self._factors.get("objectness", "")}  box {line["loss_box"]:.4f}'
                f'{self._factors.get("box", "")}  positives {line["positives"]:5.1f}  '
            )
        logger.info(
            f'step {step:>{len(str(self._steps))}}/{self._steps}  {means}'
            f'lr {line["learning_rate"]:.2e}  {line["images_per_second"]:.2f} images/s  {left} left'
        )

    def _skip(self, step, image_loss, index, checkpoint):
        """Skips a step that is not finite, or raises InputError where that is not wanted."""
        bad = np.flatnonzero(~np.isfinite(image_loss))
        rows = bad if len(bad) else np.arange(len(index))
        images = ', '.join(self._records[i].image_id for i in index[rows])
        found = self._examine(step, image_loss, rows) if self._examine else ''
        text = f'loss or gradient is not finite at step {step}, images {images}{found}'
        if self._in_a_row <= self._most:
            logger.warning(f'{text}; skipped: {self._in_a_row} in a row of at most {self._most}')
            return
        saved, checkpoint = 'there is no checkpoint yet', hosts.from_first(lambda: checkpoint)
        if checkpoint is not None:
            saved = f'the last good checkpoint is of step {checkpoint}'
        remedy = 'lower optim.learning_rate, or skip such steps with optim.skip_nonfinite'
        if self._most:
            remedy = f'{self._in_a_row} such steps in a row; lower optim.learning_rate'
        raise InputError(f'{text}; {saved}; {remedy}')


def anchors_line(window):
    """Returns the means of a window of steps for each anchor type: {name: list of K numbers}.

    window holds what anchor_statistics.means returns of each step. An IoU is the mean over the
    window's positives, None where a type had none. Six digits: a line holds 5 K numbers.
    """
    steps = {name: np.float64([figures[name] for figures in window]) for name in window[0]}
    positives = steps['positives'].sum(axis=0)
    means = {name: values.mean(axis=0) for name, values in steps.items()}
    for name in IOUS:
        total = (steps[name] * steps['positives']).sum(axis=0)
        means[name] = np.divide(total, positives, out=total * np.nan, where=positives > 0)
    return {
        name: [float(f'{value:.6g}') if np.isfinite(value) else None for value in values]
        for name, values in means.items()
    }


class Signals:
    """Remembers the first SIGINT or SIGTERM, so that a step can end; a second one kills.

    Several processes all end where one got a signal, at the same step.
    """

    def __enter__(self):
        self.received, self._previous = 0, {}
        if threading.current_thread() is threading.main_thread():  # else they are not ours
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def check(self, step, known=None):
        """Raises Interrupted, at this step, if there was a signal.

        Several processes ask each other, unless all of them know the number of a signal, or 0.
        """
        if hosts.several():
            number = hosts.largest(self.received) if known is None else known
        else:
            number = self.received
        if number:
            raise Interrupted(step, number)

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        self.received = number
        self.__exit__()


def canvases_line(canvases):
    """Returns a line on the static shapes of a run: one compilation of the update for each."""
    if len(canvases.shapes) == 1 and canvases.padding == 0:
        return 'compiling the update; the first step takes a while'
    shares = np.bincount(canvases.of) / len(canvases.of)
    named = ', '.join(
        f'{height} x {width} ({share:.0%} of the images)'
        for (height, width), share in zip(canvases.shapes, shares, strict=True)
    )
    return (
        f'canvases: {named}; {canvases.padding:.1%} of their pixels are padding; '
        f'compilations of the update: {len(canvases.shapes)}, each when its canvas is first met'
    )


def shared_images(source, other):
    """Returns a line on the images of a source that are in another, evaluated one, too."""
    both = source.files and other.files
    names = {*source.files.names} & {*other.files.names} if both else ()
    return names and (
        f'{len(names)} of the {len(other.files.names)} images of the evaluation are trained on '
        f'({min(names)}, ..): it is not a held-out measurement'
    )
