"""Every test of data has an empty cache folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Returns the cache folder, which does not exist yet."""
    monkeypatch.setenv('RPN_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'
