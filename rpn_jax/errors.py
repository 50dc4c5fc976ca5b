"""The one exception for what a user can cause: main prints it as a line, without traceback."""

LONGEST = 20_000  # characters of a message


class InputError(ValueError):
    """Says in a line what is wrong, where (file, image id, config key) and what to do.

    Files may call themselves and their parts anything, so what does not print is escaped.
    """

    def __init__(self, message):
        shown = message if len(message) <= LONGEST else f'{message[:LONGEST]} ..'
        super().__init__(''.join(c if c.isprintable() else ascii(c)[1:-1] for c in shown))
