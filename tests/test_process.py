"""What a process keeps: compiled programs where it is told, and memory that was in use before."""

import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_end_to_end import ROOT

from rpn_jax import process

FAULTS = """
import resource
import numpy as np
from rpn_jax.process import keep_memory
if {keep}:
    print(keep_memory())
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**26, np.uint8).fill(1)  # and freed
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


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


def said(keep, **environment):
    """Returns the lines of a process that fills 64 MiB four times: last, the last one's faults."""
    command = [sys.executable, '-c', FAULTS.format(keep=keep)]
    environment = {'PYTHONPATH': str(ROOT)} | environment
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return found.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='a habit of glibc')
def test_freed_memory_is_used_again_without_a_word_to_the_system():
    (faults,) = said(keep=False)
    kept, fewer = said(keep=True)
    assert kept == 'True' and int(faults) > 20 and int(fewer) < int(faults) / 4
    assert said(keep=True, MALLOC_MMAP_THRESHOLD_='131072')[0] == 'False'  # the user's choice
