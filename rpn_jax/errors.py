"""The one exception for what a user can cause: main prints it as a line, without traceback."""


class InputError(ValueError):
    """Says in a line what is wrong, where (file, image id, config key) and what to do."""
