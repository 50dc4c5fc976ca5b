"""Times the training step with everything that makes it fast, beside steps that lack one thing.

All take turns in one process; what counts are the ratios, the whole step over the one without. The
levers are those of CPUs: on a GPU some say little, as both steps leave the choice to XLA.

    python experiments/bench_levers.py [--depth 101] [--stage c4] [--frozen-stages 3] [--repeats 7]
    python experiments/bench_levers.py --device gpu --dtype bfloat16 --batch 16 --size 608 1024
"""

import argparse
import contextlib
import functools
import statistics
import sys
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from experiments.bench_ours import KINDS, Case, Ours, alternate, spread, timed  # noqa: E402
from rpn_jax import convolution, optim, resnet, rpn, train  # noqa: E402
from rpn_jax.convolution import direct  # noqa: E402


def without_products(x, kernel, stride=1, dilation=1):
    """Convolves with 1x1 kernels too."""
    function = direct if kernel.shape[0] == 1 else convolution.convolve
    return function(x, kernel, stride, dilation)


def without_filtering(x, kernel, dilation):
    """Runs XLA's own 3x3 convolution."""
    return direct(x, kernel, 1, dilation)


def unfolded(conv, norm, x):
    """Multiplies maps by what stored statistics come to, not kernels."""
    if not isinstance(norm, resnet.FrozenBatchNorm):
        return norm(conv(x))
    factor, shift = (value.astype(conv.dtype)[None, None, None] for value in norm(conv.features))
    return conv(x) * factor + shift


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


undonated = functools.partial(train._over, donated=())


def lacking(*changes):
    """Returns a context in which attributes of modules are others."""
    stack = contextlib.ExitStack()
    for place, name, other in changes:
        stack.enter_context(mock.patch.object(place, name, other))
    return stack


LEVERS = {  # what is taken away -> how
    '1x1 convolutions as matrix products': lambda: lacking((resnet, 'convolve', without_products)),
    'head at the sampled cells': lambda: lacking((rpn.RPN, 'from_features', dense)),
    "3x3 convolutions by Winograd's filtering": lambda: lacking(
        (convolution, 'convolve_3x3', without_filtering)
    ),
    'stored norms folded into kernels': lambda: lacking((resnet, 'normalised', unfolded)),
    'pool as shifted maxima': lambda: lacking((resnet, 'max_pool', pool)),
    'shortcuts added up once': lambda: lacking((resnet, 'residual', lambda x, y: nn.relu(x + y))),
    'state donated': lambda: lacking((train, '_over', undonated)),
    'new state in place of the old': lambda: lacking(
        (train, '_if_finite', select), (optim, '_settled', lambda transform: transform)
    ),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--depth', type=int, default=101, choices=(26, 50, 101, 152))
    parser.add_argument('--stage', default='c4', choices=('c4', 'dc5'))
    parser.add_argument('--frozen-stages', type=int, default=3)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--size', type=int, nargs='+', default=[608], help='height [width]')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--device', default='cpu', choices=('cpu', 'gpu'))
    parser.add_argument('--repeats', type=int, default=7)
    arguments = parser.parse_args(argv)
    fields = arguments.depth, arguments.stage, arguments.frozen_stages, arguments.batch
    jax.config.update('jax_platforms', {'cpu': 'cpu', 'gpu': 'cuda'}[arguments.device])
    case = Case('train', *fields, tuple((arguments.size * 2)[:2]), arguments.dtype)
    programs = [made(case, lack()) for lack in (contextlib.nullcontext, *LEVERS.values())]
    runs = [functools.partial(timed, program.call) for program in programs]
    for run in runs:
        run()
    whole, *lacking_one = alternate(runs, arguments.repeats)
    print(f'{case.name}: {statistics.median(whole):.4g} s a step; its time over that without')
    for name, times in zip(LEVERS, lacking_one, strict=True):
        found = '{:.2f} ({:.2f} to {:.2f})'.format(*spread(whole, times))
        print(f'  {name:<42} {found}')


def made(case, context):
    """Returns the Program of a case's training step, compiled inside a context."""
    with context:
        program = KINDS['train'](case, Ours().arrays(case))
        program.call()
    return program


if __name__ == '__main__':
    sys.exit(main())
