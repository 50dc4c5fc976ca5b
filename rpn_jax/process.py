"""What a process sets up once, before it computes: what it keeps from one start, or step, on."""

import ctypes
import os
import sys

import jax

from rpn_jax.workdir import cache_folder

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # as malloc.h numbers the parameters of mallopt


def keep_compilations():
    """Keeps what is compiled in the cache folder for the next start; JAX's own setting wins."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled'))


def keep_memory():
    """Lets the C library keep freed memory for the next step; returns whether it does.

    On CPUs XLA asks for a step's hundreds of megabytes anew each time, and glibc takes them from
    the system, which hands out zeroed pages one by one. That costs a busy machine a tenth of a
    training step, a quiet one nothing that was measured (experiments/README.md). Environment
    variables that set malloc up win; elsewhere than in glibc nothing changes.
    """
    if any(name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    return bool(mallopt and mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
