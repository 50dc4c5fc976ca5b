"""Times the training step with everything that makes it fast, beside steps that lack one thing.

All take turns in one process; what counts are the ratios, the whole step over the one without.
Two more are bounds of what is not in: frozen norms folded into convolutions cannot bring more than
norms that are not there.

    python experiments/bench_levers.py [--depth 101] [--stage c4] [--frozen-stages 3] [--repeats 7]
"""

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from experiments.bench_ours import KINDS, Case, Ours  # noqa: E402
from rpn_jax import optim, resnet, rpn, train  # noqa: E402


class PlainConv(resnet.Conv):
    """Convolves with every kernel, 1x1 too."""

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.zeros, shape, jnp.float32)
        margin = self.dilation * (self.kernel // 2)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=((margin, margin), (margin, margin)),
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )


def dense(self, features, index=None):
    """Runs the head everywhere and picks the sampled anchors."""
    logits, deltas = self.head(features)
    if index is None:
        return logits, deltas
    picked = jnp.take_along_axis(deltas, index[..., None], 1)
    return jnp.take_along_axis(logits, index, 1), picked


def pool(x):
    """Takes XLA's own maximum."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def select(finite, advance, *state):
    """Selects, element by element."""
    return train._select(finite, advance(*state), state)


def undonated(devices, update):
    """Returns the update pmapped; the old state stays."""
    mapped = jax.pmap(update, resnet.AXIS, in_axes=(None, 0), out_axes=None, devices=list(devices))

    def sharded(state, batch):
        return mapped(state, train.shard(batch, len(devices)))

    sharded.mapped = mapped
    return sharded


def no_norm(*_, **__):
    """Returns the norm that does nothing."""
    return lambda x: x


def lacking(*changes):
    """Returns a context in which attributes of modules are others."""
    stack = contextlib.ExitStack()
    for place, name, other in changes:
        stack.enter_context(mock.patch.object(place, name, other))
    return stack


LEVERS = {  # what is taken away -> how
    '1x1 convolutions as matrix products': lambda: lacking((resnet, 'Conv', PlainConv)),
    'head at the sampled cells': lambda: lacking((rpn.RPN, 'from_features', dense)),
    'pool as shifted maxima': lambda: lacking((resnet, 'max_pool', pool)),
    'shortcuts added up once': lambda: lacking((resnet, 'residual', lambda x, y: nn.relu(x + y))),
    'state donated': lambda: lacking((train, '_over', undonated)),
    'new state in place of the old': lambda: lacking(
        (train, '_if_finite', select), (optim, '_settled', lambda transform: transform)
    ),
}
BOUNDS = {'(bound) norms': lambda: lacking((resnet, '_norm', no_norm))}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--depth', type=int, default=101, choices=(26, 50, 101, 152))
    parser.add_argument('--stage', default='c4', choices=('c4', 'dc5'))
    parser.add_argument('--frozen-stages', type=int, default=3)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--size', type=int, default=608)
    parser.add_argument('--repeats', type=int, default=7)
    arguments = parser.parse_args(argv)
    fields = arguments.depth, arguments.stage, arguments.frozen_stages, arguments.batch
    case = Case('train', *fields, (arguments.size, arguments.size), 'float32')
    calls = {'': made(case, contextlib.nullcontext())}
    for name, lack in (LEVERS | BOUNDS).items():
        calls[name] = made(case, lack())
    times = alternate(calls, arguments.repeats)
    print(f'{case.name}: {statistics.median(times[""]):.4g} s a step; its time over that without')
    for name in list(calls)[1:]:
        ratios = [a / b for a, b in zip(times[''], times[name], strict=True)]
        found = f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
        print(f'  {name:<36} {found}')


def made(case, context):
    """Returns the training step of a case, compiled inside a context."""
    with context:
        program = KINDS['train'](case, Ours().arrays(case))
        program.call()
    return program.call


def alternate(calls, repeats):
    """Returns the seconds of each call, a number a round; a first round does not count."""
    times = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name in calls if turn % 2 else reversed(calls):
            began = time.perf_counter()
            calls[name]()
            if turn:
                times[name].append(time.perf_counter() - began)
        print(f'{turn}/{repeats}', file=sys.stderr, flush=True)
    return times


if __name__ == '__main__':
    sys.exit(main())
