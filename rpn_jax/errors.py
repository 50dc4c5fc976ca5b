"""The one exception for what a user can cause: main prints it as a single line, without a traceback."""


class InputError(ValueError):
    """Says in one line what is wrong, where (file, image id, config key) and what to do about it."""
