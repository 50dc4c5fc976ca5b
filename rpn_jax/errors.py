"""Exceptions that the command line turns into one line without a traceback, and its last line."""

import errno
import os

ROOM, RIGHTS = 'make room on the disk', 'set the rights of the folder, or name another'
OPEN = 'raise the limit of open files (ulimit -n 1024)'
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: 'raise the limit of the size of a file (ulimit -f)',
    errno.EROFS: RIGHTS,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.EMFILE: OPEN,
    errno.ENFILE: OPEN,
    errno.ENOENT: 'if it was deleted or renamed, put it back',
}
LONGEST = 20_000  # characters of a message


def printable(text):
    """Returns text as one line that is safe to show: what does not print is escaped.

    Files may call themselves and their parts anything: commands to a terminal, several lines,
    letters from right to left, bytes that are no text.
    """
    shown = text if len(text) <= LONGEST else f'{text[:LONGEST]} ..'
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


class InputError(ValueError):
    """Says in a printable line what is wrong, where (file, image id, option) and what to do."""

    def __init__(self, message):
        super().__init__(printable(message))


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint; code is the exit code of the process."""

    def __init__(self, step, number):
        super().__init__(f'interrupted at step {step}; the same command goes on from there')
        self.code = 128 + number


def leave(number, _):
    """Ends the process at a signal: in imports an exception gets lost, or is a crash."""
    os.write(2, b'interrupted\n')
    os._exit(128 + number)


def disk_line(error):
    """Returns what an OSError says, of which file, and what to do, in a line."""
    if error.filename is None or error.strerror is None:
        return f'{error} (--debug shows where)'
    remedy = REMEDIES.get(error.errno, '--debug shows where')
    return f'{error.filename}: {error.strerror}; {remedy}'
