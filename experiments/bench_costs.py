"""What XLA says that a program costs: compilation, FLOPs, bytes, memory."""

import contextlib
import tempfile
import time
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments import bench_bytes


class Costs(NamedTuple):
    """What XLA says of a compiled program. A loop counts once, however often it turns.

    On GPUs XLA counts nothing of what libraries do: there the flops are those of the program before
    it is compiled, and the bytes those of its operations' operands and results.
    """

    cold: float  # seconds to trace and compile
    warm: float  # the same, when the persistent cache knows it
    flops: float
    bytes: float  # that its operations read and write
    planned: int  # bytes of arguments, results and temporaries


def costs(lower):
    """Returns the Costs of a program; compiles it twice, the second time from fresh_cache."""
    seconds = []
    for _ in range(2):
        jax.clear_caches()
        began = time.perf_counter()
        lowered = lower()
        compiled = lowered.compile()
        seconds.append(time.perf_counter() - began)
    counted = compiled.cost_analysis() or {}
    flops, moved = counted.get('flops', 0), counted.get('bytes accessed', 0)
    if jax.local_devices()[0].platform != 'cpu':
        flops, moved = flops_of(lowered), bench_bytes.moved(compiled.as_text())
    return Costs(*seconds, flops, moved, planned(compiled))


def flops_of(lowered):
    """Returns the flops of a program before it is compiled.

    The clients of GPUs count none; that of the CPU does of any program, but not by a public name.
    """
    from jax._src.lib import _jax  # here, so that nothing else depends on it

    client = jax.local_devices(backend='cpu')[0].client
    counted = _jax.hlo_module_cost_analysis(client, lowered.compiler_ir('hlo').as_hlo_module())
    return counted.get('flops', 0)


def planned(compiled):
    """Returns the bytes of a program's arguments, results and temporaries; 0 if XLA is silent."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes  # donated arguments become results
    )


@contextlib.contextmanager
def fresh_cache():
    """Makes JAX keep every compilation in an empty folder, inside."""
    cache = 'jax_persistent_cache_min_'
    keys = 'jax_compilation_cache_dir', f'{cache}compile_time_secs', f'{cache}entry_size_bytes'
    before = [getattr(jax.config, key) for key in keys]
    with tempfile.TemporaryDirectory() as folder:
        for key, value in zip(keys, (folder, 0, -1), strict=True):
            jax.config.update(key, value)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            for key, value in zip(keys, before, strict=True):
                jax.config.update(key, value)
            compilation_cache.reset_cache()
