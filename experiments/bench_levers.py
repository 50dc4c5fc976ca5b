"""Times the training step with everything that makes it fast, beside steps that lack one thing.

All take turns in one process; what counts are the ratios, the whole step over the one without. At
the end stand options that are off, those over the whole step. Memory is what XLA plans. Levers that
make no difference to a device's program are left out.

    python experiments/bench_levers.py [--depth 101] [--stage c4] [--frozen-stages 3] [--repeats 7]
    python experiments/bench_levers.py --device gpu --dtype bfloat16 --batch 16 --size 608 1024
"""

import argparse
import contextlib
import functools
import os
import re
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from experiments import bench_ours  # noqa: E402
from experiments.bench_costs import planned  # noqa: E402
from experiments.bench_ours import KINDS, Case, Ours, alternate, spread, timed  # noqa: E402
from rpn_jax.errors import InputError  # noqa: E402
from rpn_jax.models import convolution, resnet, rpn
from rpn_jax.models.convolution import direct, product  # noqa: E402
from rpn_jax.ops import nms
from rpn_jax.training import loop, optim  # noqa: E402

WHOLE = 'whole'  # the name of the program that lacks nothing
CALLS = {'cpu': 1, 'gpu': 5}  # of a measurement


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def as_products(x, kernel, stride=1):
    """Multiplies matrices on GPUs too, where no rows are left out; their gradients are the same."""
    of_cpu, direct_of = (functools.partial(f, stride=stride) for f in (product, direct))
    elsewhere = of_cpu if stride == 1 else direct_of
    return jax.lax.platform_dependent(x, kernel, cpu=of_cpu, default=elsewhere)


as_products.defvjp(
    lambda x, kernel, stride: (as_products(x, kernel, stride), (x, kernel)),
    convolution._backward_1x1,
)


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


def positive(out, gradient):
    """Asks for out > 0, which keeps what lies before the ReLU as well."""
    return jnp.where(out > 0, gradient, 0)


def stem(x, kernel):
    """Convolves three channels at stride 2."""
    return direct(x, kernel, 2)


def by_both_sides(x, gradient, size):
    """Leaves the gradient of a stem's kernel to XLA."""
    kernel = jnp.zeros((size, size, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: stem(x, kernel), kernel)(gradient)[0]


def pool(x):
    """Takes XLA's own maximum."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def select(finite, advance, *state):
    """Selects, element by element."""
    return loop._select(finite, advance(*state), state)


undonated = functools.partial(loop._over, donated=())


def lacking(*changes):
    """Returns a context in which attributes of modules are others."""
    stack = contextlib.ExitStack()
    for place, name, other in changes:
        stack.enter_context(mock.patch.object(place, name, other))
    return stack


LEVERS = {  # what is taken away -> how
    '1x1 convolutions as matrix products': lambda: lacking(  # on GPUs their gradients alone
        (convolution, 'convolve_1x1', direct)
    ),
    'convolutions for gradients of uneven 1x1 maps': lambda: lacking((convolution, 'EVEN', 1)),
    '1x1 convolutions as such on GPUs': lambda: lacking((convolution, 'convolve_1x1', as_products)),
    "3x3 convolutions by Winograd's filtering": lambda: lacking(
        (convolution, 'convolve_3x3', without_filtering)
    ),
    "stem's 2x2 pixels as channels": lambda: lacking((convolution, 'space_to_depth', stem)),
    "gradient of the stem's kernel by columns": lambda: lacking(
        (convolution, 'gradient_by_columns', by_both_sides)
    ),
    'stored norms folded into kernels': lambda: lacking((resnet, 'normalised', unfolded)),
    'pool as shifted maxima': lambda: lacking((resnet, 'max_pool', pool)),
    'shortcuts added up once': lambda: lacking((resnet, 'residual', lambda x, y: nn.relu(x + y))),
    "ReLU's gradient by what is not 0": lambda: lacking((resnet, '_where_positive', positive)),
    'head at the sampled cells': lambda: lacking((rpn.RPN, 'from_features', dense)),
    'state donated': lambda: lacking((loop, '_over', undonated)),
    'new state in place of the old': lambda: lacking(
        (loop, '_if_finite', select), (optim, '_settled', lambda transform: transform)
    ),
    'NMS in large blocks': lambda: lacking((nms, 'BLOCK_OF_GPU', nms.BLOCK)),
}


class Compiled(NamedTuple):
    """A program, and the memory that XLA plans for it."""

    call: Callable
    planned: int  # bytes


def options(case):
    """Returns {what: a context that adds it} of a case."""
    if case.kind != 'train':
        return {}
    learning = range(max(case.frozen_stages + 1, 2), {'c4': 5, 'dc5': 6}[case.stage])
    chosen = [(stage,) for stage in learning] + [tuple(learning)] * (len(learning) > 1)
    return {
        f'model.remat={stages}': functools.partial(computing_again, stages) for stages in chosen
    }


def computing_again(stages):
    """Returns a context in which a case's config has other stages in model.remat."""
    original = bench_ours.config_of

    def config_of(case):
        config = original(case)
        config.model.remat = stages
        return config

    return lacking((bench_ours, 'config_of', config_of))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kind', default='train', choices=('train', 'predict'))
    parser.add_argument('--depth', type=int, default=101, choices=(26, 50, 101, 152))
    parser.add_argument('--stage', default='c4', choices=('c4', 'dc5'))
    parser.add_argument('--frozen-stages', type=int, default=3)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--size', type=int, nargs='+', default=[608], help='height [width]')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--device', default='cpu', choices=('cpu', 'gpu'))
    parser.add_argument('--only', default='', help='names with this regular expression')
    parser.add_argument('--repeats', type=int, default=7)
    arguments = parser.parse_args(argv)
    fields = arguments.depth, arguments.stage, arguments.frozen_stages, arguments.batch
    case = Case(arguments.kind, *fields, tuple((arguments.size * 2)[:2]), arguments.dtype)
    try:
        found = {k: c for k, c in (LEVERS | options(case)).items() if re.search(arguments.only, k)}
        bench_ours.take_device(arguments.device)
        if not found:
            raise InputError(f'--only {arguments.only}: no name has it; there are {list(LEVERS)}')
    except (InputError, re.error) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    programs = made(case, {WHOLE: contextlib.nullcontext} | found)
    for program in programs.values():
        jax.block_until_ready(program.call())
    calls = CALLS[arguments.device]
    runs = [functools.partial(timed, program.call, calls) for program in programs.values()]
    times = dict(zip(programs, alternate(runs, arguments.repeats), strict=True))
    print('\n'.join(lines(case, programs, times)))
    return 0


def lines(case, programs, times):
    """Yields what is printed of the Compiled programs and their seconds, both by name."""
    whole = programs[WHOLE].planned
    yield f'{case.name}: {statistics.median(times[WHOLE]):.4g} s, {whole / 2**20:.0f} MiB'
    yield f'  {"with it, over without":<46} time, least and most     memory'
    for name in list(programs)[1:]:
        with_it, without = (WHOLE, name) if name in LEVERS else (name, WHOLE)
        ratio = '{:.2f} ({:.2f} to {:.2f})'.format(*spread(times[with_it], times[without]))
        memory = programs[with_it].planned / max(programs[without].planned, 1)
        yield f'  {name:<46} {ratio:<24} {memory:6.2f}'


def made(case, contexts):
    """Returns {name: Compiled} of a case in each context; one equal to an earlier one goes."""
    lowered, calls, texts, arrays = {}, {}, set(), Ours().arrays(case)
    for name, context in contexts.items():
        with context():
            program = KINDS[case.kind](case, arrays)
            found = program.lower()
        if (text := found.as_text()) not in texts:
            lowered[name], calls[name] = found, program.using
        texts.add(text)
    first, *others = lowered.values()
    compiled = [first.compile()]  # alone: a GPU tunes what the others have in common but once
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        compiled += workers.map(lambda program: program.compile(), others)
    return {
        name: Compiled(calls[name](program), planned(program))
        for name, program in zip(lowered, compiled, strict=True)
    }


if __name__ == '__main__':
    sys.exit(main())
