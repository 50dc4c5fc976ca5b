"""Times this project and torchvision's RPN side by side: training, prediction, matching, NMS, ..

Both do the same work on the same shapes in the same run, in turns, so that a slow moment of the
machine strikes both alike; what counts are the ratios. torchvision runs in another Python, which is
told by --peer; without it this project is measured alone. FLOPs and bytes are XLA's; the floor is
the time that they take at the rates of a matrix product and of a copy, measured here. --compile
adds a second torchvision, whose backbone is under torch.compile.

    python experiments/bench.py --peer /path/to/python [--only train,nms] [--batch 1 2] [--markdown]
    python experiments/bench.py --only train --json      # one line: {"seconds": MEDIAN, ..}
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from experiments.bench_costs import Costs  # noqa: E402
from experiments.bench_ours import (  # noqa: E402
    KINDS,
    MATCHED,
    Case,
    Ours,
    alternate,
    config_of,
    spread,
    take_device,
    timed,
)
from experiments.bench_peer import Peer, Refused  # noqa: E402
from rpn_jax.errors import InputError  # noqa: E402
from rpn_jax.models import rpn  # noqa: E402

LEAST = {'cpu': 0.1, 'gpu': 0.5}  # seconds of a measurement: what is shorter is called again
ALONE = ('metrics',)  # torchvision has no such thing
LOOPS = 'nms', 'match'  # XLA counts a loop once: no floor
MATRIX, COPY = {'cpu': 2048, 'gpu': 8192}, 2**26  # rows of a square matrix; numbers copied
CALLS = {'cpu': 1, 'gpu': 20}  # of a product or a copy at a time: a GPU's begin late


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f'{message}; see {self.prog} --help')


class Row(NamedTuple):
    """What was measured of a case beside one other side, or alone."""

    case: Case
    note: str  # on the other side
    ours: list[float]  # seconds of a call, one number a pair
    theirs: list[float]
    costs: Costs | None
    memory: tuple[int, int | None]  # bytes of ours, and of the other side


def main(argv=None):
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        return alone(arguments) if arguments.json else side_by_side(arguments)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(argv):
    """Returns the arguments; sets up JAX's device. What is not given is () and means all there is.

    Raises InputError.
    """
    parser = _Parser(prog='bench.py', description=__doc__.splitlines()[0])
    whole = dict(type=int, nargs='+', default=())
    parser.add_argument('--only', default=','.join(KINDS), help='of %(default)s')
    parser.add_argument('--repeats', type=int, default=7, help='pairs of measurements')
    parser.add_argument('--size', **(whole | {'default': [608]}), help='height [width] (608)')
    parser.add_argument('--depth', type=int, default=101, choices=(26, 50, 101, 152))
    parser.add_argument('--batch', **whole, help='1 2, on a GPU also 8 16')
    parser.add_argument('--stage', nargs='+', default=(), choices=('c4', 'dc5'), help='c4 dc5')
    parser.add_argument('--frozen-stages', **whole, help='of training: 3 0')
    parser.add_argument('--boxes', **whole, help='that NMS sees: 6000 1000 2000 12000')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--device', default='cpu', choices=('cpu', 'gpu'))
    parser.add_argument('--image', default='', help='whose boxes NMS sees; default: a drawn scene')
    parser.add_argument('--peer', default='', help='a Python with torchvision, or one and a script')
    parser.add_argument('--channels-last', action='store_true', help='of torch')
    parser.add_argument('--compile', action='store_true', help='also beside torch.compile')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--markdown', action='store_true', help='tables for a README')
    form.add_argument('--json', action='store_true', help='one case of ours alone, as one line')
    arguments = parser.parse_args(argv)
    arguments.only = arguments.only.split(',')
    check(arguments)
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # a GPU is shared with torch
    take_device(arguments.device)
    return arguments


def check(arguments):
    """Raises InputError where the arguments contradict each other."""
    if unknown := [kind for kind in arguments.only if kind not in KINDS]:
        raise InputError(f'--only: no {unknown[0]!r}; there are {", ".join(KINDS)}')
    if len(arguments.size) > 2 or min(arguments.size) < 32:
        raise InputError('--size: a height, or height and width, of at least 32 pixels')
    least = {'--repeats': [arguments.repeats], '--batch': arguments.batch}
    for flag, values in (least | {'--boxes': arguments.boxes}).items():
        if min(values, default=1) < 1:
            raise InputError(f'{flag}: {min(values)} is not at least 1')
    if not set(arguments.frozen_stages) <= set(range(6)):
        raise InputError('--frozen-stages: 0 none, 1 the stem, 2 up to conv2, .. 5 all')
    if arguments.json and len(arguments.only) > 1:
        raise InputError('--json: for one case; name it, as in --only train')
    if arguments.json and arguments.peer:
        raise InputError('--json is ours alone; leave out --peer')
    if arguments.compile and not arguments.peer:
        raise InputError('--compile is of torch; name a --peer')
    if arguments.peer and arguments.depth == 26:
        raise InputError('--peer: torchvision has no ResNet-26; take --depth 50, 101 or 152')


def cases(arguments):
    """Returns the Cases, in order; those of a kind begin with the default config's."""
    stages = arguments.stage or ('c4', 'dc5')
    batches = arguments.batch or ((1, 2) if arguments.device == 'cpu' else (1, 2, 8, 16))
    size = tuple((arguments.size * 2)[:2])
    made = []
    for kind in arguments.only:
        case = Case(kind, arguments.depth, stages[0], 3, 1, size, arguments.dtype)
        if kind in ('train', 'predict', 'backbone'):
            frozen = (arguments.frozen_stages or (3, 0)) if kind == 'train' else (3,)
            for stage, fixed, batch in itertools.product(stages, frozen, batches):
                made.append(case._replace(stage=stage, frozen_stages=fixed, batch=batch))
        elif kind == 'nms':
            h, w = rpn.feature_shape(rpn.build(config_of(case)), size)
            for boxes in arguments.boxes or (6000, 1000, 2000, 12000):
                boxes = min(boxes, 15 * h * w)  # a small canvas has no more
                limits = dict.fromkeys((min(1000, boxes), boxes))
                made += [case._replace(boxes=boxes, limit=limit) for limit in limits]
        elif kind == 'match':
            canvas, count = MATCHED
            made.append(case._replace(size=canvas, boxes=count))
        else:
            made.append(case)
    return list(dict.fromkeys(made))


def alone(arguments):
    """Prints one line of JSON: the first case, ours alone."""
    case = cases(arguments)[0]
    (row,) = measure(case, Ours(arguments.image), [], arguments.repeats)
    line = {'seconds': statistics.median(row.ours), 'least': min(row.ours), 'most': max(row.ours)}
    line |= {'repeats': arguments.repeats, 'device': jax.local_devices()[0].device_kind}
    line |= case._asdict() | {'memory': row.memory[0], 'jax': jax.__version__}
    line |= {'costs': row.costs and row.costs._asdict()}
    print(json.dumps(line))
    return 0


def side_by_side(arguments):
    """Prints the tables; where something stops it, of the cases that were measured until then."""
    todo, rows, speed = cases(arguments), [], None
    with contextlib.ExitStack() as stack:
        peers = []
        for compiled in (False, True)[: bool(arguments.peer) * (1 + arguments.compile)]:
            peer = Peer(arguments.peer, arguments, compiled)
            peers.append(stack.enter_context(contextlib.closing(peer)))
        ours = Ours(arguments.image)
        speed = rates(arguments.dtype)
        print(machine(speed, arguments.dtype, peers))
        stack.callback(lambda: rows and print(tables(rows, speed, arguments.markdown)))
        for number, case in enumerate(todo, start=1):
            say(f'[{number}/{len(todo)}] {case.name}')
            others = [peer for peer in peers if case.kind not in ALONE and peer.takes(case)]
            try:
                rows += measure(case, ours, others, arguments.repeats)
            except (jax.errors.JaxRuntimeError, MemoryError, Refused) as error:
                say(f'  cannot be measured: {str(error).splitlines()[0]}')
    return int(len({row.case for row in rows}) < len(todo))


def measure(case, ours, peers, repeats):
    """Returns the Rows of a case; a peer that refuses it is left out, and that is said."""
    arrays, sides = ours.arrays(case), [ours]
    warm = {ours: ours.prepare(case, arrays)}
    for peer in peers:
        try:
            warm[peer] = peer.prepare(case, arrays)
            sides.append(peer)
        except Refused as error:
            say(f'  torchvision{peer.note}: {error}')
    runs = [functools.partial(side.run, calls_of(warm[side])) for side in sides]
    times = alternate(runs, repeats)
    first, *others = (side.report() for side in sides)
    rows = []
    for peer, theirs, report in zip(sides[1:], times[1:], others, strict=True):
        if difference := compare(first['answer'], report['answer']):
            say(f'  warning: the answers differ: {difference}')
        memory = first['memory'], report['memory']
        rows.append(Row(case, peer.note, times[0], theirs, ours.costs, memory))
    return rows or [Row(case, '', times[0], [], ours.costs, (first['memory'], None))]


def calls_of(seconds):
    """Returns how many calls make a measurement."""
    return max(1, math.ceil(LEAST[jax.local_devices()[0].platform] / max(seconds, 1e-6)))


def compare(ours, theirs):
    """Returns in words how two answers differ, '' where they do not."""
    if ours == theirs or ours is None or theirs is None:
        return ''
    if len(ours) != len(theirs):
        return f'{len(ours)} and {len(theirs)} numbers'
    unequal = np.flatnonzero(np.array(ours) != np.array(theirs))
    first = unequal[0]
    return f'{len(unequal)} of {len(ours)}, first {ours[first]} and {theirs[first]}'


def machine(speed, dtype, peers):
    """Returns the line on what measures what."""
    device = jax.local_devices()[0]
    return (
        f'{device.device_kind}, {os.cpu_count()} cores; {dtype} products {speed[0] / 1e9:.4g} '
        f'GFLOP/s, copies {speed[1] / 1e9:.3g} GB/s; jax {jax.__version__}'
        + ''.join(f'; {peer.ready}' for peer in peers[:1])
    )


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

    calls = CALLS[platform]
    multiplied = fastest(lambda: product(matrix, matrix), calls)
    return 2 * rows**3 / multiplied, 2 * 4 * COPY / fastest(copy, calls)  # it reads and writes


def fastest(call, calls, times=8):
    """Returns the fewest seconds of a call, the mean of so many; the first ones compile."""
    return min(timed(call, calls) for _ in range(times))


def floor(costs, rates):
    """Returns the seconds that a program takes at least at these rates (flops/s, bytes/s)."""
    return max(costs.flops / rates[0], costs.bytes / rates[1])


def ratio(row):
    """Returns the median, least and most of ours / torchvision over the pairs; None without."""
    return spread(row.ours, row.theirs) if row.theirs else None


def tables(rows, speed, markdown=False):
    """Returns two tables, of times and of costs."""
    times, costs = [], []
    for row in rows:
        median = statistics.median(row.ours)
        theirs = f'{statistics.median(row.theirs):.4g}' if row.theirs else '-'
        found = ratio(row)
        cell = '{:.3f} ({:.3f} to {:.3f})'.format(*found) if found else '-'
        counted = row.costs and row.case.kind not in LOOPS
        over = f'{median / floor(row.costs, speed):.2f}' if counted else '-'
        name = row.case.name + row.note
        times.append([name, f'{median:.4g}', theirs, cell, over])
        memory = ['-' if held is None else f'{held / 2**20:.0f}' for held in (*row.memory, None)]
        work = [f'{row.costs.flops / 1e9:.4g}', f'{row.costs.bytes / 1e9:.3g}'] if counted else '--'
        planned = f'{row.costs.planned / 2**20:.0f}' if row.costs else '-'
        compiling = [f'{s:.1f}' for s in row.costs[:2]] if row.costs else '--'
        costs.append([name, *compiling, *work, planned, *memory[:2]])
    names = 'case', 'ours, s', 'torchvision, s', 'ours / torchvision', 'ours / floor'
    first = render([names, *times], markdown)
    names = 'compile, s', '.. again', 'GFLOP', 'GB', 'planned, MiB', 'ours, MiB', 'torchvision, MiB'
    return f'{first}\n\n{render([("case", *names), *costs], markdown)}'


def render(lines, markdown):
    """Returns cells as an aligned table, or as Markdown."""
    if markdown:
        lines = [lines[0], ['---'] * len(lines[0]), *lines[1:]]
        return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def say(line):
    """Prints progress, beside the results."""
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
