"""Times training, matching and NMS as their sizes grow, and draws it beside what it should cost.

Each sweep lets one number grow: the area of the image, images of a batch, anchors, objects, boxes.
The points of a sweep take turns, so that a slow moment of the machine strikes all alike. What
should be is XLA's count of FLOPs for the training step and a count of comparisons for matching and
NMS; its line is put through the points, so that only growth is compared, not speed. The exponent
says how: 1 grows with the cost, less has a fixed part, more is a fault.

    python experiments/sweep.py [--only area,objects] [--depth 50] [--output sweep.svg]
"""

import argparse
import functools
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.figure
import matplotlib.ticker as ticker
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from experiments.bench_ours import KINDS, Case, Ours, alternate, config_of, timed  # noqa: E402
from rpn_jax.errors import InputError  # noqa: E402
from rpn_jax.files import write_atomically  # noqa: E402
from rpn_jax.models import rpn  # noqa: E402
from rpn_jax.ops import matching, nms

FAULT = 1.15  # an exponent from here on is one
COLOURS = {'time': '#0072B2', 'cost': '#E69F00'}
LEAST = 0.05  # seconds of one measurement: what is shorter is called several times


class Sweep(NamedTuple):
    """What grows, on which cases, and what they should cost."""

    axis: str
    cases: list[Case]
    amount: Callable  # case -> number on the axis
    work: Callable  # case, program -> what it should cost, in any unit


class Point(NamedTuple):
    """One case of a sweep."""

    amount: float
    work: float
    seconds: float  # of a call, the median


def main(argv=None):
    parser = argparse.ArgumentParser(prog='sweep.py', description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help=f'of {",".join(sweeps(50))}')
    parser.add_argument('--depth', type=int, default=50, choices=(26, 50, 101, 152))
    parser.add_argument('--repeats', type=int, default=5, help='measurements of each point')
    parser.add_argument('--output', default='sweep.svg', help='the picture: .svg or .png')
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(arguments):
    """Measures, prints and draws; returns 1 where something grows faster than it should."""
    known, output = sweeps(arguments.depth), Path(arguments.output)
    names = arguments.only.split(',') if arguments.only else list(known)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f'--only: no {unknown[0]!r}; there are {", ".join(known)}')
    if output.suffix not in ('.svg', '.png') or not output.parent.is_dir():
        raise InputError(f'--output={output}: not the name of an .svg or .png file in a folder')
    print(f'{jax.local_devices()[0].device_kind}; jax {jax.__version__}')
    found = {}
    for name in names:
        found[known[name].axis] = points = measure(known[name], arguments.repeats)
        print(*lines(known[name].axis, points), sep='\n', flush=True)
    draw(found, output)
    print(f'{output} shows them')
    return int(any(exponent(points) > FAULT for points in found.values()))


def sweeps(depth):
    """Returns the Sweeps by name."""
    step = Case('train', depth, 'c4', 3, 1, (608, 608), 'float32')
    match = step._replace(kind='match', size=(608, 1024), boxes=100)
    boxes = [1000, 2000, 4000, 8000, 16000]
    sides = {'area': (256, 384, 512, 608, 768, 896), 'anchors': (256, 512, 1024, 2080)}
    objects = (8, 32, 128, 500)
    return {
        'area': Sweep(
            'training step: side of the image, pixels',
            [step._replace(size=(side, side)) for side in sides['area']],
            lambda case: case.size[0],
            flops,
        ),
        'batch': Sweep(
            'training step: images of 320 x 320',
            [step._replace(size=(320, 320), batch=batch) for batch in (1, 2, 4, 8)],
            lambda case: case.batch,
            flops,
        ),
        'anchors': Sweep(
            'matching with 100 objects: anchors',
            [match._replace(size=(side, side)) for side in sides['anchors']],
            anchors,
            comparisons,
        ),
        'objects': Sweep(
            f'matching of {anchors(match):,} anchors: objects',
            [match._replace(boxes=count) for count in objects],
            lambda case: case.boxes,
            comparisons,
        ),
        'nms': Sweep(
            'NMS that keeps all it can: boxes',
            [step._replace(kind='nms', boxes=count, limit=count) for count in boxes],
            lambda case: case.boxes,
            rivals,
        ),
    }


def anchors(case):
    """Returns how many anchors a canvas of the default config has."""
    model = rpn.build(config_of(case))
    return model.head.anchors_per_cell * math.prod(rpn.feature_shape(model, case.size))


def flops(case, program):
    """Returns XLA's count, before it optimises."""
    return program.lower().cost_analysis()['flops']


def comparisons(case, program):
    """Returns the IoUs that matching looks at: whole blocks of objects with all anchors."""
    return anchors(case) * -(-case.boxes // matching.BLOCK) * matching.BLOCK


def rivals(case, program):
    """Returns the IoUs that NMS looks at: with those kept so far, in chunks, and in the block."""
    kept = len(program.answer(program.call()))
    return case.boxes * (kept / 2 + nms.CHUNK / 2 + nms.BLOCK)


def measure(sweep, repeats):
    """Returns the Points of a sweep; its cases take turns."""
    ours, runs, work = Ours(), [], []
    for case in sweep.cases:
        program = KINDS[case.kind](case, ours.arrays(case))
        timed(program.call)
        calls = max(1, math.ceil(LEAST / timed(program.call)))
        runs.append(functools.partial(timed, program.call, calls))
        work.append(sweep.work(case, program))
        print(f'  {sweep.axis} {sweep.amount(case):,}: ready', file=sys.stderr, flush=True)
    return [
        Point(sweep.amount(case), cost, float(np.median(times)))
        for case, cost, times in zip(sweep.cases, work, alternate(runs, repeats), strict=True)
    ]


def exponent(points):
    """Returns the slope of log time over log cost."""
    work, seconds = (np.log([getattr(p, name) for p in points]) for name in ('work', 'seconds'))
    return float(np.polyfit(work, seconds, 1)[0])


def lines(axis, points):
    """Returns a table of a sweep: growth of time and of cost over the first point."""
    first, verdict = points[0], 'a fault' if exponent(points) > FAULT else 'as it should'
    yield f'{axis}: exponent {exponent(points):.2f}, {verdict}'
    yield f'  {"":>10}  {"seconds":>9}  {"time":>7}  {"cost":>7}'
    for p in points:
        growth = p.seconds / first.seconds, p.work / first.work
        yield f'  {p.amount:>10,}  {p.seconds:>9.4g}  {growth[0]:>6.2f}x  {growth[1]:>6.2f}x'


def draw(found, path):
    """Writes the picture: a panel for each sweep."""
    figure = matplotlib.figure.Figure(figsize=(3.4 * len(found), 3.2), layout='constrained')
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, points) in zip(panels, found.items(), strict=True):
        amount, work, seconds = np.array(points).T
        scale = math.exp(np.mean(np.log(seconds / work)))
        axes.loglog(amount, work * scale, color=COLOURS['cost'], label='what it should cost')
        axes.loglog(amount, seconds, 'o', color=COLOURS['time'], label='seconds')
        what, _, x = name.partition(': ')
        axes.set_title(f'{what}, exponent {exponent(points):.2f}', fontsize=9)
        axes.set_xlabel(x)
        axes.set_xticks(amount, [f'{n:,.0f}' for n in amount], fontsize=8)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.minorticks_off()
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    content = io.BytesIO()
    form = path.suffix[1:]
    figure.savefig(content, format=form, metadata={'Date': None} if form == 'svg' else None)
    write_atomically(path, content.getvalue())


if __name__ == '__main__':
    sys.exit(main())
