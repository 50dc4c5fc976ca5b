"""Progress of a run: its log lines and scalars, signals, and the stop at a non-finite loss."""

import logging
import signal
import time

import jax
import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.ops.anchor_statistics import IOUS

logger = logging.getLogger(__name__)


class Progress:
    """Logs the means of the steps' metrics every log_every steps, and writes them to the history.

    A step's metrics are read only after the next step is dispatched, so that the host never waits
    for the device between two steps. schedule is the function step -> learning rate.
    """

    def __init__(self, history, records, *, schedule, steps, log_every, batch_size):
        self._history, self._records, self._schedule = history, records, schedule
        self._steps, self._log_every, self._batch_size = steps, log_every, batch_size
        self._pending, self._window, self._began = None, [], None

    def read(self, step, metrics, index, checkpoint):
        """Takes a dispatched step's metrics, and handles those of the step before.

        index [N] are its images, checkpoint is the newest one's step or None. Raises InputError
        where the step before was not finite.
        """
        self.flush()
        self._pending = step, metrics, index, checkpoint

    def flush(self):
        """Waits for the pending step; raises InputError if it was not finite."""
        if self._pending is None:
            return
        (step, metrics, index, checkpoint), self._pending = self._pending, None
        metrics = jax.device_get(metrics)  # all at once, not one after the other
        if not metrics.pop('finite'):
            raise InputError(self._not_finite(step, metrics['image_loss'], index, checkpoint))
        del metrics['image_loss']
        self._window.append(metrics)
        # The first step is mostly compilation: speed is measured from its end.
        self._began = self._began or (step, time.monotonic())
        if step % self._log_every == 0 or step == self._steps:
            self._write(step)

    def _write(self, step):
        steps = self._steps
        types = anchors_line([m.pop('anchors') for m in self._window])
        line = {k: float(np.mean([m[k] for m in self._window])) for k in self._window[0]}
        self._window = []
        first, began = self._began
        rate = (step - first) / max(time.monotonic() - began, 1e-9)
        line |= {
            'learning_rate': float(self._schedule(step - 1)),
            'images_per_second': rate * self._batch_size,
            'anchors': types,
        }
        self._history.log(step, line)
        left = duration((steps - step) / rate) if rate else '?'
        logger.info(
            f'step {step:>{len(str(steps))}}/{steps}  loss {line["loss"]:.4f}  '
            f'objectness {line["loss_objectness"]:.4f}  box {line["loss_box"]:.4f}  '
            f'positives {line["positives"]:5.1f}  lr {line["learning_rate"]:.2e}  '
            f'{line["images_per_second"]:.2f} images/s  {left} left'
        )

    def _not_finite(self, step, image_loss, index, checkpoint):
        bad = np.flatnonzero(~np.isfinite(image_loss))
        rows = index[bad] if len(bad) else index
        images = ', '.join(self._records[i].image_id for i in rows)
        saved = (
            'there is no checkpoint yet'
            if checkpoint is None
            else f'the last good checkpoint is of step {checkpoint}'
        )
        return (
            f'loss or gradient is not finite at step {step}, images {images}; {saved}; '
            'lower optim.learning_rate, or look at these images with --mode=inspect'
        )


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
    """Remembers the first SIGINT or SIGTERM, so that a step can end; a second one kills."""

    def __init__(self):
        self.received = 0
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:  # not the main thread: signals are somebody else's business
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number, _):
        self.received = number
        for caught, handler in self._previous.items():
            signal.signal(caught, handler)


def duration(seconds):
    """Writes a duration as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


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
    """Yields a line where images of one source are in another one, which is evaluated, too."""
    if source.files and other.files:
        names = set(source.files.names) & set(other.files.names)
        if names:
            yield (
                f'{len(names)} of the {len(other.files.names)} images of the evaluation are '
                f'trained on ({min(names)}, ..): it is not a held-out measurement'
            )
