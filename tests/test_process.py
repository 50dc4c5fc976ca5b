"""What a process keeps: compiled programs, where it is told."""

from pathlib import Path

import jax
import pytest

from rpn_jax import process


@pytest.mark.parametrize('own', ['', 'elsewhere'])
def test_compilations_are_kept_where_jax_is_told_or_in_the_cache_folder(monkeypatch, own):
    monkeypatch.setenv('RPN_JAX_CACHE', 'kept')
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update('jax_compilation_cache_dir', own or None)
        process.keep_compilations()
        expected = own or str(Path('kept') / 'compiled')
        assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
