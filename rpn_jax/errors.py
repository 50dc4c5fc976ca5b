"""Exceptions that the command line turns into one line without a traceback."""

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
