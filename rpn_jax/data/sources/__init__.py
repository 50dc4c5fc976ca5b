"""Where annotated images come from: one function that opens a split for each kind of source."""

import contextlib

from rpn_jax.data.images import BadRecord

LONGEST = 10**6  # pixels of a side


@contextlib.contextmanager
def naming(where, corners=''):
    """Puts a file or an object before the message of a BadRecord, and its corners behind."""
    try:
        yield
    except BadRecord as error:
        raise BadRecord(error.kind, f'{where}{error}{corners}') from error
