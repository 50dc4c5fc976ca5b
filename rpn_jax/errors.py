"""Exceptions that the command line turns into one line without a traceback, and its last line."""

import os

LONGEST = 20_000  # characters of a message


class InputError(ValueError):
    """Says in a line what is wrong, where (file, image id, option) and what to do.

    Files may call themselves and their parts anything, so what does not print is escaped.
    """

    def __init__(self, message):
        shown = message if len(message) <= LONGEST else f'{message[:LONGEST]} ..'
        super().__init__(''.join(c if c.isprintable() else ascii(c)[1:-1] for c in shown))


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint; code is the exit code of the process."""

    def __init__(self, step, number):
        super().__init__(f'interrupted at step {step}; the same command goes on from there')
        self.code = 128 + number


def leave(number, _):
    """Ends the process at a signal: in imports an exception gets lost, or is a crash."""
    os.write(2, b'interrupted\n')
    os._exit(128 + number)
