"""Says how busy a GPU is while main.py trains from its own input pipeline, and with what.

Traces some steps of a run that is thrown away afterwards. Idle is the share of the time between the
first and the last kernel in which none runs. Copies to the host on the stream of the kernels would
be the host looking into a step; the metrics, on a stream of their own, it reads a step later. A
canvas that is first met in a traced step is compiled in it: take square images.

    python experiments/profile_training.py --config=configs/voc_c4.py [--config.key=value ..]
"""

import collections
import functools
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # main.py and configs/ are not installed

import main as program  # noqa: E402
from rpn_jax import train, workdir  # noqa: E402

FIRST, STEPS, KERNELS = 100, 40, 12  # steps before those traced, so many, kernels named


class Enough(Exception):
    """Ends the run once the steps are traced."""


class Use(NamedTuple):
    """What a trace says of a device."""

    seconds: float  # from the first kernel to the last
    idle: float  # share of them
    host_copies: int  # between kernels: the host looks into a step
    kernels: list  # (name, seconds, count), the longest first


def main(argv=None):
    words = sys.argv[1:] if argv is None else list(argv)
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(train.make_update, f'{folder}/trace')
        words += [f'--workdir={folder}/run', f'--config.steps={FIRST + STEPS + 1}']
        words += ['--config.evaluation.every=0']  # it is no training
        try:
            with mock.patch.object(train, 'make_update', traced):
                return program.main(words)
        except Enough:
            found = list(uses(jax.profiler.ProfileData.from_file(traced.file())))
    if not found:
        print('error: there is no GPU in the trace; on CPUs use bench.py', file=sys.stderr)
        return 1
    print(f'{traced.seconds / STEPS * 1e3:.2f} ms a step of {traced.images} images')
    for name, use in found:
        print('\n'.join(lines(name, use)))
    return 0


class Traced:
    """Makes updates of which some are traced; after the last one of them it raises Enough."""

    def __init__(self, make, folder):
        self._make, self._folder, self._count = make, folder, 0
        self.seconds = self.images = 0

    def __call__(self, *arguments):
        return functools.partial(self._update, self._make(*arguments))

    def file(self):
        """Returns the trace's path."""
        return str(next(Path(self._folder).rglob('*.xplane.pb')))

    def _update(self, update, state, batch):
        self._count += 1
        if self._count == FIRST + 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._began = time.perf_counter()
        found = update(state, batch)
        if self._count == FIRST + STEPS:
            jax.block_until_ready(found)
            self.seconds = time.perf_counter() - self._began
            self.images = batch['index'].size
            jax.profiler.stop_trace()
            raise Enough
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
        return Use(0, 1, 0, [])
    spans = sorted((e.start_ns, e.start_ns + e.duration_ns) for e in kernels)
    first, busy, end = spans[0][0], 0, spans[0][0]
    for start, stop in spans:
        busy += max(stop, end) - max(start, end)
        end = max(end, stop)
    host_copies = sum(host_copies_of(events) for events in streams)
    totals = collections.defaultdict(lambda: [0, 0])
    for event in kernels:
        total = totals[kind(event.name)]
        total[0] += event.duration_ns / 1e9
        total[1] += 1
    ranked = sorted(totals.items(), key=lambda item: -item[1][0])
    longest = [(name, *total) for name, total in ranked]
    return Use((end - first) / 1e9, 1 - busy / (end - first), host_copies, longest)


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
    yield f'{name}: idle {use.idle:.1%}; copies to the host between kernels: {use.host_copies}'
    for kernel, seconds, count in use.kernels[:KERNELS]:
        share = f'{seconds / use.seconds:5.1%}'
        yield f'  {share}  {count / STEPS:7.1f} a step  {kernel}'


if __name__ == '__main__':
    workdir.keep_compilations()
    sys.exit(main())
