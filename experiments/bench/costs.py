"""What XLA says that a program costs: compilation, FLOPs, bytes, memory."""

import time
from typing import NamedTuple

import jax


class Costs(NamedTuple):
    """What XLA says of a compiled program. A loop counts once, however often it turns.

    On GPUs XLA counts nothing of what libraries do: there the flops are those of the program before
    it is compiled, and the bytes 0.
    """

    compilation: float  # seconds to trace and compile
    flops: float
    bytes: float  # that its operations read and write
    planned: int  # bytes of arguments, results and temporaries


def costs(lower):
    """Compiles a program and returns its Costs; a later call finds it compiled."""
    began = time.perf_counter()
    lowered = lower()
    compiled = lowered.compile()
    return costs_of(lowered, compiled, time.perf_counter() - began)


def costs_of(lowered, compiled, seconds=0.0):
    """Returns the Costs of a program that was compiled in so many seconds."""
    counted, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    flops, moved = counted.get('flops', 0), counted.get('bytes accessed', 0)
    if jax.local_devices()[0].platform != 'cpu':
        flops, moved = flops_of(lowered), 0
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes
    planned += memory.temp_size_in_bytes - memory.alias_size_in_bytes  # donated ones are results
    return Costs(seconds, flops, moved, planned)


def flops_of(lowered):
    """Returns the flops of a program before it is compiled.

    The clients of GPUs count none; that of the CPU does of any program, but not by a public name.
    """
    from jax._src.lib import _jax  # here, so that nothing else depends on it

    client = jax.local_devices(backend='cpu')[0].client
    counted = _jax.hlo_module_cost_analysis(client, lowered.compiler_ir('hlo').as_hlo_module())
    return counted.get('flops', 0)
