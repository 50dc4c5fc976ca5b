"""Times training steps of a frozen network with kept feature maps beside steps without.

All of them in one process, in turns; what counts are the ratios. A step is the batch, made of drawn
scenes, and the update; of those with maps every map is known, as after the first epochs. Maps on
disk were written a moment ago, so that they are read from memory.

    python experiments/bench_features.py [--depth 101] [--stage c4] [--batch 1] [--repeats 7]
"""

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from experiments.bench_ours import (  # noqa: E402
    Case,
    alternate,
    config_of,
    spread,
    timed,
    variables_of,
)
from rpn_jax import data
from rpn_jax.training import loop  # noqa: E402
from rpn_jax.training.feature_cache import PLACES, Features  # noqa: E402
from rpn_jax.training.parallel import place
from rpn_jax.training.step import TrainState

SCENES = 8


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--depth', type=int, default=101, choices=(26, 50, 101, 152))
    parser.add_argument('--stage', default='c4', choices=('c4', 'dc5'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--size', type=int, default=608)
    parser.add_argument('--repeats', type=int, default=7, help='turns')
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.dict('os.environ', RPN_JAX_CACHE=folder):
            compare(arguments)


def compare(arguments):
    """Prints the ratios."""
    steps = [functools.partial(timed, stepper(arguments, keep)) for keep in ('', *PLACES)]
    for step in steps:
        step()
    without, *kept = alternate(steps, arguments.repeats)
    print(f'without maps: {statistics.median(without):.4g} s a step')
    for keep, times in zip(PLACES, kept, strict=True):
        found = '{:.3f} ({:.3f} to {:.3f})'.format(*spread(times, without))
        print(f'{keep:<12}  {found} of the time without maps')


def stepper(arguments, keep):
    """Returns a function that takes one step; the maps of all its images are kept already."""
    last = {'c4': 4, 'dc5': 5}[arguments.stage]
    size = arguments.size, arguments.size
    fields = arguments.depth, arguments.stage, last, arguments.batch, size, 'float32'
    config, devices = config_of(Case('train', *fields)), jax.local_devices()[:1]
    config.features.keep = keep
    config.data.update(source='shapes', train_split='train', scenes=(SCENES, 1), flip=False)
    config.data.image_size = arguments.size
    options, quiet = data.Options(**config.data), [].append
    source = data.open_split(options, 'train')
    model, optimizer, _ = loop.build(config)
    variables = variables_of(model)
    params = variables['params']
    state = TrainState(0, params, variables['batch_stats'], optimizer.init(params))
    held, number = [place(state, devices)], itertools.count()
    update = loop.update_of(config, model, optimizer, devices)
    arguments = config, model, variables, source, devices, quiet
    maps = Features(*arguments, **config.features) if keep else None
    known = maps.known if maps else None
    batch_of = data.train_batch(source, options, seed=0, known=known)
    for step in range(SCENES if maps else 0):
        jax.block_until_ready(maps(batch_of(step)))

    def take():
        batch = batch_of(next(number))
        held[0], _ = jax.block_until_ready(update(held[0], maps(batch) if maps else batch))

    return take


if __name__ == '__main__':
    sys.exit(main())
