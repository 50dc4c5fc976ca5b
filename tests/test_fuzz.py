"""No file from outside crashes a parser, hangs it, or makes it write something."""

import faulthandler
import random
import sys
import time

import pytest
from fuzz import targets

MUTATED = 10  # seconds of each parser
LONGEST = 90  # seconds that no test takes


@pytest.fixture(autouse=True)
def watchdog():
    """Ends the process, with a traceback, where a parser does not end."""
    faulthandler.dump_traceback_later(LONGEST, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


def known(name):
    """Returns the contents to begin with, and those that were found."""
    target, folder = targets.TARGETS[name], targets.CORPUS / name
    found = sorted(folder.iterdir()) if folder.exists() else []
    return [*target.begin(), *(path.read_bytes() for path in found)]


@pytest.mark.parametrize('name', targets.TARGETS)
def test_files_that_were_found_are_read_or_refused(name):
    for content in known(name):
        targets.check(targets.TARGETS[name], content)


@pytest.mark.parametrize('name', targets.TARGETS)
def test_the_first_file_of_each_parser_is_one_that_it_reads(name, tmp_path):
    target = targets.TARGETS[name]
    path = tmp_path / target.name
    path.write_bytes(target.begin()[0])
    target.read(path)


def test_what_is_wrong_is_seen(monkeypatch):
    def crash(path):
        raise KeyError('x')

    def leave(path):
        (path.parent / 'other').touch()

    def say_nothing(path):
        raise targets.InputError(' ')

    def take_memory(path):
        bytearray(9 * targets.MEMORY // 8)

    def be_slow(path):
        time.sleep(0.2)

    monkeypatch.setattr(targets, 'SECONDS', 0.1)
    with pytest.raises(AssertionError):
        targets.check(targets.Target(be_slow, 'x', None), b'')
    monkeypatch.undo()
    wrong = {crash: KeyError, leave: AssertionError, say_nothing: AssertionError}
    if sys.platform == 'linux':
        wrong[take_memory] = AssertionError
    for read, error in wrong.items():
        with pytest.raises(error):
            targets.check(targets.Target(read, 'x', None), b'')


@pytest.mark.slow
@pytest.mark.parametrize('name', targets.TARGETS)
def test_mutated_files_are_read_or_refused(name):
    contents, chance, end = known(name), random.Random(name), time.monotonic() + MUTATED
    while time.monotonic() < end:
        content = targets.mutated(chance, contents)
        try:
            targets.check(targets.TARGETS[name], content)
        except Exception as error:
            raise AssertionError(f'{name}: {content!r}') from error
