"""Files on disk: atomic writes, folders, and the cache folder for what outlives a run."""

import os
from pathlib import Path

import platformdirs

from rpn_jax.errors import InputError


def write_atomically(path, content):
    """Writes text or bytes to a temporary file beside path, then renames it.

    So path is never half-written.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder, option='--workdir'):
    """Makes a folder where there is none; raises InputError, naming its option, where it cannot."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'{option[2:]} {folder}: cannot be made ({error.strerror}); name another {option}'
        ) from error


def cache_folder():
    """Returns the folder for downloads and caches: RPN_JAX_CACHE, or the platform's."""
    own = os.environ.get('RPN_JAX_CACHE')
    return Path(os.path.expanduser(own)) if own else platformdirs.user_cache_path('rpn_jax')
