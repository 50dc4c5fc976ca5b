"""The table of the benchmark, and the rates of this machine that it compares with."""

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench.costs import Costs
from experiments.bench.ours import Case, timed

LOOPS = 'nms', 'match'  # XLA counts a loop once: no floor
MATRIX, COPY = {'cpu': 2048, 'gpu': 8192}, 2**26  # rows of a square matrix; numbers copied
CALLS = {'cpu': 1, 'gpu': 20}  # of a product or a copy at a time: a GPU's begin late
HEAD = 'case', 'ours, s', 'other, s', 'ours / other', 'ours / floor', 'GFLOP', 'GB', 'MiB'
HEAD += 'other, MiB', 'compile, s'


class Row(NamedTuple):
    """The measurements of a case, of ours alone or beside one other side."""

    case: Case
    ours: list[float]  # seconds of a call, one number a pair
    costs: Costs | None
    note: str = ''  # on the other side
    theirs: list[float] = []
    memory: int | None = None  # bytes of the other side


def rates(dtype):
    """Measures this machine: (flops per second of a matrix product, bytes per second of a copy).

    Each is the best of several, for a floor must not be too high.
    """
    platform = jax.local_devices()[0].platform
    rows = MATRIX[platform]
    # Of ones, or zeros, a GPU makes products faster than of what a network holds.
    matrix = jax.random.normal(jax.random.key(0), (rows, rows), dtype)
    product = jax.jit(jnp.matmul)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: no new pages of memory
    numbers = [jnp.zeros(COPY, jnp.float32)]

    def copy():
        numbers[0] = add(numbers[0])
        return numbers[0]

    def fastest(call):
        return min(timed(call, CALLS[platform]) for _ in range(8))  # the first ones compile

    multiplied = fastest(lambda: product(matrix, matrix))
    return 2 * rows**3 / multiplied, 2 * 4 * COPY / fastest(copy)  # it reads and writes


def table(rows, speed, markdown=False):
    """Returns the table, aligned or as Markdown; '-' stands for what there is not."""
    lines = [HEAD, *(cells(row, speed) for row in rows)]
    if markdown:
        lines.insert(1, ['---'] * len(HEAD))
        return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def cells(row, speed):
    """Returns the cells of a row."""
    ours, costs = statistics.median(row.ours), row.costs
    made = [row.case.name + row.note, f'{ours:.4g}'] + ['-'] * (len(HEAD) - 2)
    if row.theirs:
        made[2] = f'{statistics.median(row.theirs):.4g}'
        ratios = [a / b for a, b in zip(row.ours, row.theirs, strict=True)]
        made[3] = f'{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})'
    if costs and row.case.kind not in LOOPS:
        floor = max(costs.flops / speed[0], costs.bytes / speed[1])  # seconds
        made[4] = f'{ours / floor:.2f}'
        made[5:7] = f'{costs.flops / 1e9:.4g}', f'{costs.bytes / 1e9:.3g}'
    if costs:
        made[7], made[9] = f'{costs.planned / 2**20:.0f}', f'{costs.compilation:.1f}'
    if row.memory is not None:
        made[8] = f'{row.memory / 2**20:.0f}'
    return made
