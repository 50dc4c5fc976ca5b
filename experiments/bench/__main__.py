"""Times this project and torchvision's RPN side by side: training, prediction, matching, NMS, ..

Both do the same work on the same shapes in the same run, in turns, so that a slow moment of the
machine strikes both alike; what counts are the ratios. torchvision runs in another Python, which
--peer names; without it this project is measured alone. `input` has a loader of PIL beside it.
FLOPs, bytes and memory are XLA's; the floor is the time that FLOPs and bytes take at the rates of a
matrix product and of a copy, measured here. --compile adds a torchvision with torch.compile.

    python -m experiments.bench --peer /path/to/python [--only train,nms] [--batch 1 2] [--markdown]
    python -m experiments.bench --only train --json      # one line: {"seconds": MEDIAN, ..}
"""

import contextlib
import functools
import itertools
import json
import os
import statistics
import sys

import jax

from experiments.bench import ours
from experiments.bench.costs import costs
from experiments.bench.peer import Peer, Refused
from experiments.bench.pipeline import reading
from experiments.bench.table import Row, rates, table
from experiments.program import Parser, at_least, run, some_of
from rpn_jax.errors import InputError

KINDS = {
    'train': ours.train,
    'predict': ours.predict,
    'backbone': ours.backbone,
    'match': ours.matching,
    'nms': ours.suppression,
    'metrics': ours.counting,
    'input': reading,
}
LEAST = {'cpu': 0.1, 'gpu': 0.5}  # seconds of a measurement: what is shorter is called again
MATCHED = (608, 1024), 100  # canvas (36,480 anchors at stride 16) and objects of matching


def main(argv):
    arguments = parse(argv)
    return ours_alone(arguments) if arguments.json else side_by_side(arguments)


def parse(argv):
    """Returns the arguments and sets up JAX's device. Raises InputError."""
    parser = Parser('experiments.bench', __doc__)
    several = dict(type=at_least(1), nargs='+', default=())
    frozen = dict(type=int, nargs='+', default=(), choices=range(6))
    kinds = dict(type=some_of(KINDS), default=','.join(KINDS))
    parser.add_argument('--only', **kinds, help=f'of {",".join(KINDS)}')
    parser.add_argument('--repeats', type=at_least(1), default=7, help='pairs of measurements')
    parser.add_argument('--size', type=at_least(32), nargs='+', default=[608], help='height, width')
    parser.add_argument('--depth', type=int, default=101, choices=(26, 50, 101, 152))
    parser.add_argument('--batch', **several, help='1 2, on a GPU also 8 16; of input 8')
    parser.add_argument('--stage', nargs='+', default=('c4', 'dc5'), choices=('c4', 'dc5', 'fpn'))
    parser.add_argument('--frozen-stages', **frozen, help='of training: 3 0')
    parser.add_argument('--boxes', **several, help='that NMS sees: 6000 1000 2000 12000')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--device', default='cpu', choices=('cpu', 'gpu'))
    parser.add_argument('--image', default='', help='whose boxes NMS sees; default: a drawn scene')
    parser.add_argument('--photographs', default='', help='a folder: adds the case input')
    parser.add_argument('--peer', default='', help='a Python with torchvision, or one and a script')
    parser.add_argument('--channels-last', action='store_true', help='of torch')
    parser.add_argument('--compile', action='store_true', help='also beside torch.compile')
    parser.add_argument('--markdown', action='store_true', help='a table for a README')
    parser.add_argument('--json', action='store_true', help='one case of ours alone, as one line')
    arguments = parser.parse_args(argv)
    if arguments.json and (len(arguments.only) > 1 or arguments.peer):
        parser.error('--json is for one case of ours alone, as in --only train, without --peer')
    if not arguments.photographs and 'input' in arguments.only:
        arguments.only.remove('input')
    if not arguments.only:
        parser.error('--only input needs --photographs, a folder of them')
    if arguments.compile and not arguments.peer:
        parser.error('--compile is of torch; name a --peer')
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # a GPU is shared with torch
    take_device(arguments.device)
    return arguments


def take_device(name):
    """Makes JAX run on 'cpu' or 'gpu'; raises InputError where it cannot."""
    # On a GPU's machine the CPU's client is there too, for costs.flops_of.
    before = jax.config.jax_platforms
    jax.config.update('jax_platforms', {'cpu': 'cpu', 'gpu': 'cuda,cpu'}[name])
    try:
        jax.local_devices(backend=name)
    except RuntimeError as error:
        jax.config.update('jax_platforms', before)
        raise InputError(f'--device {name}: JAX cannot use it ({error})') from error


def cases(arguments):
    """Returns the Cases, in order; those of a kind begin with the default config's."""
    batch = arguments.batch or ((1, 2) if arguments.device == 'cpu' else (1, 2, 8, 16))
    frozen = {'frozen_stages': arguments.frozen_stages or (3, 0)}
    stage, batch = {'stage': arguments.stage}, {'batch': batch}
    boxes = arguments.boxes or (6000, 1000, 2000, 12000)
    fields = {
        'train': stage | frozen | batch,
        'predict': stage | batch,
        'backbone': stage | batch,
        'match': {'size': MATCHED[:1], 'boxes': MATCHED[1:]},
        'nms': {'boxes': boxes, 'limit': (1000, max(boxes))},
        'input': {'batch': arguments.batch or (8,)},
    }
    size, made = tuple((arguments.size * 2)[:2]), []
    for kind in arguments.only:
        names = fields.get(kind, {})
        first = ours.Case(kind, arguments.depth, arguments.stage[0], 3, 1, size, arguments.dtype)
        for values in itertools.product(*names.values()):
            case = first._replace(**dict(zip(names, values, strict=True)))
            if kind == 'nms':  # a small canvas has no more
                case = case._replace(boxes=min(case.boxes, len(ours.anchors_of(first))))
                case = case._replace(limit=min(case.limit, case.boxes))
            made.append(case)
    return list(dict.fromkeys(made))


def ours_alone(arguments):
    """Prints one line of JSON: the first case, ours alone."""
    row = measure(cases(arguments)[0], arguments)[0]
    line = {'seconds': statistics.median(row.ours), 'least': min(row.ours), 'most': max(row.ours)}
    line |= {'repeats': arguments.repeats, 'device': jax.local_devices()[0].device_kind}
    line |= {**row.case._asdict(), 'jax': jax.__version__}
    print(json.dumps(line | {'costs': row.costs and row.costs._asdict()}))
    return 0


def side_by_side(arguments):
    """Prints the table; where something stops it, of the cases that were measured until then."""
    todo, rows = cases(arguments), []
    with contextlib.ExitStack() as stack:
        sides = (False, True)[: 1 + arguments.compile] if arguments.peer else ()
        peers = [Peer(arguments.peer, arguments, compiled, stack) for compiled in sides]
        speed = rates(arguments.dtype)
        print(
            f'{jax.local_devices()[0].device_kind}, {os.cpu_count()} cores; {arguments.dtype} '
            f'products {speed[0] / 1e9:.4g} GFLOP/s, copies {speed[1] / 1e9:.3g} GB/s; '
            + '; '.join([f'jax {jax.__version__}', *(peer.ready for peer in peers[:1])])
        )
        stack.callback(lambda: rows and print(table(rows, speed, arguments.markdown)))
        for number, case in enumerate(todo, start=1):
            say(f'[{number}/{len(todo)}] {case.name}')
            try:
                rows += measure(case, arguments, peers)
            except (jax.errors.JaxRuntimeError, MemoryError, Refused) as error:
                say(f'  cannot be measured: {str(error).splitlines()[0]}')
    return int(len({row.case for row in rows}) < len(todo))


def measure(case, arguments, peers=()):
    """Returns the Rows of a case; a peer that refuses it is left out, with a line that says so."""
    path = {'nms': arguments.image, 'input': arguments.photographs}.get(case.kind, '')
    program = KINDS[case.kind](case, path)
    calls = {None: program.call} | program.beside
    runs = {note: functools.partial(ours.timed, call) for note, call in calls.items()}
    cost, reports = program.lower and costs(program.lower), {}
    for peer in peers:
        try:
            if peer.takes(case):
                peer.prepare(case, program.arrays)
                runs[peer.note], reports[peer.note] = peer.run, peer.report
        except Refused as error:
            say(f'  torchvision{peer.note}: {error}')
    least = LEAST[arguments.device]
    times = ours.alternate([ours.warmed(run, least) for run in runs.values()], arguments.repeats)
    times = dict(zip(runs, times, strict=True))
    own, rows = times.pop(None), []
    for note, theirs in times.items():
        report = reports[note]() if note in reports else {}
        if program.answer and program.answer(program.call()) != report.get('answer'):
            say('  warning: the answers differ')
        rows.append(Row(case, own, cost, note, theirs, report.get('memory')))
    return rows or [Row(case, own, cost)]


def say(line):
    """Prints progress, beside the results."""
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(run(main, None))
