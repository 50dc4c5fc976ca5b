"""Times training, matching and NMS as their sizes grow, and draws it beside the expected cost.

Each sweep lets one number grow: the area of the image, images of a batch, anchors, objects, boxes.
The points of a sweep take turns, so that a slow moment of the machine strikes all alike. Expected
are XLA's FLOPs for the training step and the number of comparisons for matching and NMS; their line
is put through the points, so that only growth is compared, not speed. The exponent is the slope of
log time over log cost: 1 grows with the cost, less has a fixed part, more is a fault.

    python -m experiments.sweep [--only area,objects] [--depth 50] [--output sweep.svg]
"""

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

from experiments.bench import ours
from experiments.program import Parser, at_least, run, some_of
from rpn_jax.files import write_atomically
from rpn_jax.ops import matching, nms

FAULT = 1.15  # an exponent from here on is one
LEAST = 0.05  # seconds of one measurement: what is shorter is called several times


class Sweep(NamedTuple):
    """Cases of which one number grows, and their expected cost."""

    axis: str
    program: Callable  # case -> Program
    work: Callable  # case, program -> its cost, in any unit
    cases: dict  # number -> Case


def main(argv):
    """Measures, prints and draws; returns 1 where something grows faster than expected."""
    parser, known = Parser('experiments.sweep', __doc__), sweeps(50)
    parser.add_argument('--only', type=some_of(known), default=list(known), help='of %(default)s')
    parser.add_argument('--depth', type=int, default=50, choices=(26, 50, 101, 152))
    parser.add_argument('--repeats', type=at_least(1), default=5, help='measurements of each point')
    parser.add_argument('--output', type=Path, default='sweep.svg', help='picture: .svg or .png')
    arguments = parser.parse_args(argv)
    output, measured = arguments.output, {}
    if output.suffix not in ('.svg', '.png') or not output.parent.is_dir():
        parser.error(f'--output={output}: not the name of an .svg or .png file in a folder')
    print(f'{jax.local_devices()[0].device_kind}; jax {jax.__version__}')
    for sweep in map(sweeps(arguments.depth).get, arguments.only):
        measured[sweep.axis] = points = measure(sweep, arguments.repeats)
        print(*lines(sweep.axis, points), sep='\n', flush=True)
    draw(measured, output)
    print(f'wrote {output}')
    return int(any(exponent(points) > FAULT for points in measured.values()))


def sweeps(depth):
    """Returns the Sweeps by name."""
    step = ours.Case('train', depth, 'c4', 3, 1, (608, 608), 'float32')
    match = step._replace(kind='match', size=(608, 1024), boxes=100)
    suppress = step._replace(kind='nms')
    areas = {side: step._replace(size=(side, side)) for side in (256, 384, 512, 608, 768, 896)}
    small = {n: step._replace(size=(320, 320), batch=n) for n in (1, 2, 4, 8)}
    grids = [match._replace(size=(side, side)) for side in (256, 512, 1024, 2080)]
    grids = {len(ours.anchors_of(case)): case for case in grids}
    boxes = {n: suppress._replace(boxes=n, limit=n) for n in (1000, 2000, 4000, 8000, 16000)}
    objects = {n: match._replace(boxes=n) for n in (8, 32, 128, 500)}
    matched = f'matching of {len(ours.anchors_of(match)):,} anchors: objects'
    return {
        'area': Sweep('training step: side of the image, pixels', ours.train, flops, areas),
        'batch': Sweep('training step: images of 320 x 320', ours.train, flops, small),
        'anchors': Sweep('matching with 100 objects: anchors', ours.matching, comparisons, grids),
        'objects': Sweep(matched, ours.matching, comparisons, objects),
        'nms': Sweep('NMS that keeps all it can: boxes', ours.suppression, overlaps, boxes),
    }


def flops(case, program):
    """Returns XLA's count, before it optimises."""
    return program.lower().cost_analysis()['flops']


def comparisons(case, program):
    """Returns the IoUs that matching computes: whole blocks of objects with all anchors."""
    return len(ours.anchors_of(case)) * -(-case.boxes // matching.BLOCK) * matching.BLOCK


def overlaps(case, program):
    """Returns the IoUs that NMS computes: with those kept so far, in chunks, and in the block."""
    kept = len(program.answer(program.call()))
    return case.boxes * (kept / 2 + nms.CHUNK / 2 + nms.BLOCK)


def measure(sweep, repeats):
    """Returns (amount, work, seconds) of each case of a sweep; they take turns."""
    runs, work = [], []
    for amount, case in sweep.cases.items():
        program = sweep.program(case)
        runs.append(ours.warmed(functools.partial(ours.timed, program.call), LEAST))
        work.append(sweep.work(case, program))
        print(f'  {sweep.axis} {amount:,}: ready', file=sys.stderr, flush=True)
    seconds = np.median(ours.alternate(runs, repeats), axis=1).tolist()
    return list(zip(sweep.cases, work, seconds, strict=True))


def exponent(points):
    """Returns the slope of log time over log cost."""
    _, work, seconds = np.log(points).T
    return float(np.polyfit(work, seconds, 1)[0])


def lines(axis, points):
    """Yields a table of a sweep: growth of time and of cost over the first point."""
    verdict = 'a fault' if exponent(points) > FAULT else 'as expected'
    yield f'{axis}: exponent {exponent(points):.2f}, {verdict}'
    yield f'  {"":>10}  {"seconds":>9}  {"time":>7}  {"cost":>7}'
    for amount, work, seconds in points:
        time, cost = seconds / points[0][2], work / points[0][1]
        yield f'  {amount:>10,}  {seconds:>9.4g}  {time:>6.2f}x  {cost:>6.2f}x'


def draw(measured, path):
    """Writes the picture: a panel for each sweep."""
    figure = matplotlib.figure.Figure(figsize=(3.4 * len(measured), 3.2), layout='constrained')
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (name, points) in zip(panels, measured.items(), strict=True):
        amount, work, seconds = np.array(points).T
        scale = math.exp(np.mean(np.log(seconds / work)))
        axes.loglog(amount, work * scale, color='#E69F00', label='expected')
        axes.loglog(amount, seconds, 'o', color='#0072B2', label='seconds')
        what, _, x = name.partition(': ')
        axes.set_title(f'{what}, exponent {exponent(points):.2f}', fontsize=9)
        axes.set_xlabel(x)
        axes.set_xticks(amount, [f'{n:,.0f}' for n in amount], fontsize=8)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.minorticks_off()
    panels[0].legend(frameon=False, fontsize=9)
    content, form = io.BytesIO(), path.suffix[1:]
    figure.savefig(content, format=form, metadata={'Date': None} if form == 'svg' else None)
    write_atomically(path, content.getvalue())


if __name__ == '__main__':
    sys.exit(run(main, None))
