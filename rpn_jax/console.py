"""What people read in a terminal: lines, and the progress of long work.

Progress is a bar on a terminal, otherwise a log line every ten seconds.
"""

import contextlib
import logging
import sys
import time

from rpn_jax.errors import printable

logger = logging.getLogger(__name__)
SECONDS = 10  # between two log lines


def show(*lines, file=None):
    """Prints lines, on stdout by default; nothing in them reaches a terminal but what prints."""
    for line in lines:
        print(f'{printable(line)}\n', end='', file=file)  # one write: other processes print, too


def progress(iterable, total, what, unit='images'):
    """Yields the items of an iterable and shows how many of `total` are done, in the unit.

    `what` says what is done with them: 'evaluated'.
    """
    with counter(total, what, unit) as advance:
        for item in iterable:
            yield item
            advance()


@contextlib.contextmanager
def counter(total, what, unit='images'):
    """Shows progress like `progress`, but counted by the caller: yields advance(amount=1).

    total and amounts are in `unit`; a total of 0 is not known.
    """
    with _bar(total, what, unit) if sys.stderr.isatty() else _lines(total, what, unit) as advance:
        yield advance


def duration(seconds):
    """Writes a duration as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


@contextlib.contextmanager
def _lines(total, what, unit):
    shown, done, first = time.monotonic(), 0, None

    def advance(amount=1):
        nonlocal done, shown, first
        done, now = done + amount, time.monotonic()
        first = first or (done, now)  # it may have compiled: speed is measured from its end
        if now - shown > SECONDS and (done < total or not total):
            rate, shown = (done - first[0]) / max(now - first[1], 1e-9), now
            of = f'/{total:.0f}' if total else ''
            speed = f'  {rate:.1f} {unit}/s' if rate else ''
            left = f'  {duration((total - done) / rate)} left' if total and rate else ''
            logger.info(f'{what} {done:.0f}{of} {unit}{speed}{left}')

    yield advance


@contextlib.contextmanager
def _bar(total, what, unit):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn('{task.description}', markup=False),
        BarColumn(),
        TextColumn('{task.completed:.0f}/{task.fields[of]} {task.fields[unit]}'),
        TextColumn('{task.fields[rate]}'),
        TimeRemainingColumn(),
    )
    # Lines that are printed meanwhile appear above the bar, unless stdout goes elsewhere.
    terminal, above = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=terminal, transient=True, redirect_stdout=above) as bar:
        of = f'{total:.0f}' if total else '?'
        task = bar.add_task(printable(what), total=total or None, of=of, unit=unit, rate='')
        began = time.monotonic()

        def advance(amount=1):
            done = bar.tasks[0].completed + amount
            rate = f'{done / max(time.monotonic() - began, 1e-9):.1f} {unit}/s'
            bar.update(task, advance=amount, rate=rate)

        yield advance
