"""Progress: a bar on a terminal that leaves stdout alone, otherwise lines every ten seconds."""

import io
import logging
import sys

import pytest

from rpn_jax import console


@pytest.fixture
def clock(monkeypatch):
    """Lets three seconds pass between any two glances at the clock."""
    times = iter(range(0, 10_000, 3))
    monkeypatch.setattr(console.time, 'monotonic', lambda: next(times))


def test_a_line_is_logged_every_ten_seconds(clock, caplog):
    caplog.set_level(logging.INFO)
    assert list(console.progress(range(12), 12, 'voc: checked')) == list(range(12))
    assert caplog.messages == [
        'voc: checked 4/12 images  0.3 images/s  0:24 left',
        'voc: checked 8/12 images  0.3 images/s  0:12 left',
    ]


def test_bytes_of_an_unknown_length_are_counted(clock, caplog):
    caplog.set_level(logging.INFO)
    with console.counter(0, 'fetched', 'MiB') as advance:
        for _ in range(4):
            advance(0.75)
    assert caplog.messages == ['fetched 3 MiB  0.2 MiB/s']


def test_the_speed_is_that_after_the_first(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    times = iter([0, 100, 101, 112])  # the first took long, as it was compiled
    monkeypatch.setattr(console.time, 'monotonic', lambda: next(times))
    with console.counter(41, 'evaluated') as advance:
        for amount in (1, 2, 10):
            advance(amount)
    assert caplog.messages == [
        'evaluated 1/41 images',
        'evaluated 13/41 images  1.0 images/s  0:28 left',
    ]


def test_what_took_long_and_counts_nothing_has_no_rate_to_go_by(clock, caplog):
    caplog.set_level(logging.INFO)
    with console.counter(5, 'unpacked', 'MiB') as advance:
        for _ in range(4):
            advance(0)
    assert caplog.messages == ['unpacked 0/5 MiB']


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True


@pytest.mark.parametrize('is_piped', [True, False])
@pytest.mark.parametrize('total', [3, 0])
def test_a_terminal_gets_a_bar_and_stdout_what_was_printed(monkeypatch, is_piped, total):
    monkeypatch.setenv('TERM', 'xterm')
    out, error = io.StringIO() if is_piped else Terminal(), Terminal()
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(sys, 'stderr', error)
    for item in console.progress('abc', total, '[red]read'):
        print(f'item {item}')
    assert '[red]read' in error.getvalue() and f'3/{total or "?"} images' in error.getvalue()
    if is_piped:
        assert out.getvalue() == 'item a\nitem b\nitem c\n'
    assert sys.stderr is error and sys.stdout is out


def test_a_bar_ends_with_the_loop_that_leaves_it(monkeypatch):
    error = Terminal()
    monkeypatch.setattr(sys, 'stderr', error)
    items = console.progress(range(3), 3, 'read')
    next(items)
    items.close()
    assert sys.stderr is error
