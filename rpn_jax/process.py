"""What a process sets up once, before it computes: what it keeps from one start to the next."""

import jax

from rpn_jax.workdir import cache_folder


def keep_compilations():
    """Keeps what is compiled in the cache folder for the next start; JAX's own setting wins."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled'))
