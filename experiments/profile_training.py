"""Says how busy a GPU is while main.py trains from its own input pipeline, and with what.

The run is thrown away afterwards. First, in turns, come steps that the pipeline feeds and steps of
one batch again and again: what pipeline and loop cost. (The run's own images/s then count steps of
which it does not know.) Then some steps are traced. Idle is the share of the time between the first
and the last kernel in which none runs; long gaps are those in which it presumably waits for the
host. Copies to the host on the stream of the kernels would be the host looking into a step; the
metrics, on a stream of their own, it reads a step later. A canvas that is first met in one of these
steps is compiled in it: take square images.

    python experiments/profile_training.py --config=configs/voc_c4.py [--config.key=value ..]
"""

import collections
import functools
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # main.py and configs/ are not installed

import main as program  # noqa: E402
from experiments.bench_ours import spread  # noqa: E402
from rpn_jax.training import loop, workdir  # noqa: E402

TURNS, STEPS = 3, 60  # turns; steps of each, and of the trace
SETTLE = 20  # steps before those that are timed: more than the batches that lie ready
LONG = 100_000  # nanoseconds of a gap between kernels that is long
KERNELS = 12  # named


class Enough(Exception):
    """Ends the run once the steps are traced."""


class Use(NamedTuple):
    """What a trace says of a device."""

    seconds: float  # from the first kernel to the last
    idle: float  # share of them
    waiting: float  # share of them in long gaps
    host_copies: int  # between kernels: the host looks into a step
    kernels: list  # (name, seconds, count), the longest first


def main(argv=None):
    words = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(loop.make_update, f'{folder}/trace')
        steps = (TURNS + 1) * (SETTLE + STEPS) + 1
        words += [f'--workdir={folder}/run', f'--config.steps={steps}']
        words += ['--config.evaluation.every=0', f'--config.checkpoint.every={steps}']
        try:
            with mock.patch.object(loop, 'make_update', traced):
                return program.main(words)
        except Enough:
            found = list(uses(jax.profiler.ProfileData.from_file(traced.file())))
    print(traced.summary())
    if not found:
        print('error: there is no GPU in the trace; on CPUs use bench.py', file=sys.stderr)
        return 1
    for name, use in found:
        print('\n'.join(lines(name, use)))
    return 0


class Traced:
    """Makes updates that time and trace themselves; after the last traced one they raise Enough."""

    def __init__(self, make, folder):
        self._make, self._folder, self._count = make, folder, 0
        self._fed, self._held, self._images, self._began = [], [], 0, 0

    def __call__(self, *arguments):
        return functools.partial(self._update, self._make(*arguments))

    def file(self):
        """Returns the trace's path."""
        return str(next(Path(self._folder).rglob('*.xplane.pb')))

    def summary(self):
        """Returns the line on the steps that were not traced."""
        ratio = '{:.3f} ({:.3f} to {:.3f})'.format(*spread(self._fed, self._held))
        return (
            f'{statistics.median(self._fed) / STEPS * 1e3:.2f} ms a step of {self._images} images, '
            f'{ratio} of the time of one batch again and again'
        )

    def _update(self, update, state, batch):
        self._count += 1
        turn, place = divmod(self._count, SETTLE + STEPS)
        if place == SETTLE + 1:
            jax.block_until_ready(state)
            if turn == TURNS:
                jax.profiler.start_trace(self._folder, profiler_options=options())
            self._began = time.perf_counter()
        found = update(state, batch)
        if place == 0 and 0 < turn:
            jax.block_until_ready(found)
            if turn > TURNS:
                jax.profiler.stop_trace()
                raise Enough
            self._fed.append(time.perf_counter() - self._began)
            self._images = batch['index'].size
            began = time.perf_counter()
            for _ in range(STEPS):
                found = update(found[0], batch)
            jax.block_until_ready(found)
            self._held.append(time.perf_counter() - began)
        return found


def options():
    """Returns the profiler's options: what the host does is not traced, for that would slow it."""
    found = jax.profiler.ProfileOptions()
    found.python_tracer_level = found.host_tracer_level = 0
    return found


def uses(profile):
    """Yields (name, Use) of each GPU in a jax.profiler.ProfileData."""
    for plane in profile.planes:
        streams = [line for line in plane.lines if line.name.startswith('Stream')]
        if plane.name.startswith('/device:') and streams:
            yield plane.name.removeprefix('/device:'), use_of([list(s.events) for s in streams])


def use_of(streams):
    """Returns the Use of the events of each stream: name, start_ns and duration_ns."""
    kernels = [e for events in streams for e in events if not is_copy(e)]
    if not kernels:
        return Use(0, 1, 1, 0, [])
    spans = sorted((e.start_ns, e.start_ns + e.duration_ns) for e in kernels)
    first, end, gaps = spans[0][0], spans[0][0], []
    for start, stop in spans:
        gaps.append(max(start - end, 0))
        end = max(end, stop)
    idle, waiting = sum(gaps), sum(gap for gap in gaps if gap >= LONG)
    host_copies = sum(host_copies_of(events) for events in streams)
    totals = collections.defaultdict(lambda: [0, 0])
    for event in kernels:
        total = totals[kind(event.name)]
        total[0] += event.duration_ns / 1e9
        total[1] += 1
    ranked = sorted(totals.items(), key=lambda item: -item[1][0])
    longest = [(name, *total) for name, total in ranked]
    shares = idle / (end - first), waiting / (end - first)
    return Use((end - first) / 1e9, *shares, host_copies, longest)


def host_copies_of(events):
    """Returns the copies to the host of a stream that has kernels too."""
    has_kernels = not all(map(is_copy, events))
    return sum('d2h' in event.name.lower() for event in events) if has_kernels else 0


def is_copy(event):
    return 'memcpy' in event.name.lower() or 'memset' in event.name.lower()


def kind(name):
    """Returns a kernel's name without the numbers that tell it from others of its kind."""
    return re.sub(r'(_\d+)+$', '', name)[:70]


def lines(name, use):
    """Returns what is printed of a device."""
    yield (
        f'{name}: idle {use.idle:.1%}, {use.waiting:.1%} in gaps of {LONG / 1e6:g} ms and more; '
        f'copies to the host between kernels: {use.host_copies}'
    )
    for kernel, seconds, count in use.kernels[:KERNELS]:
        share = f'{seconds / use.seconds:5.1%}'
        yield f'  {share}  {count / STEPS:7.1f} a step  {kernel}'


if __name__ == '__main__':
    workdir.keep_compilations()
    sys.exit(main())
