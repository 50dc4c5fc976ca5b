"""Counts what a training step costs each device on 1 to 8 of them, and predicts it for many more.

The step is compiled for fake devices and not run; a device always gets as many images.

    python -m experiments.scale --config=coco_fpn --canvas=832x1344 --images=2
"""

import argparse
import math
import re
import sys

import jax
import numpy as np

from experiments.bench.costs import costs_of
from experiments.program import Parser, at_least, run
from rpn_jax import cli
from rpn_jax import config as configs
from rpn_jax.training import loop

FAKE = (1, 2, 4, 8)  # devices that the step is compiled for
BYTES = {'f64': 8, 's64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'f16': 2, 'bf16': 2, 's8': 1, 'pred': 1}
COCO = 117_266  # images of train2017 with objects
EPOCHS = 12


def main(argv):
    """Prints the costs of a step by the number of devices, and the prediction."""
    parser = Parser('experiments.scale', __doc__)
    parser.add_argument('--config', default='coco_fpn', help='a file, or a name in configs/')
    parser.add_argument('--canvas', type=_canvas, default=(832, 1344), help='HEIGHTxWIDTH, pixels')
    parser.add_argument('--images', type=at_least(1), default=2, help='of a step, on each device')
    parser.add_argument('--devices', type=_numbers, default=(1, 8, 64, 512), help='to predict for')
    parser.add_argument('--rate', type=_above_0, default=742 / 2.6, help='TFLOP/s of a device')
    parser.add_argument('--host', type=at_least(1), default=8, help='devices of a host')
    parser.add_argument(
        '--inside', type=_above_0, default=300, help='GB/s of a device inside a host'
    )
    parser.add_argument('--link', type=_above_0, default=25, help='.. between hosts')
    parser.add_argument(
        '--image-bytes', type=at_least(1), default=165_000, help='of a file, on average'
    )
    arguments, words = parser.parse_known_args(argv)
    rest, changes = cli.key_values(words)
    if rest:
        parser.error(f'unknown argument {rest[0]!r}')
    config = configs.override(configs.read(arguments.config), changes)
    configs.check(config)
    jax.config.update('jax_num_cpu_devices', max(FAKE))
    jax.config.update('jax_platforms', 'cpu')
    counted = {n: count(config, n, arguments.images, arguments.canvas) for n in FAKE}
    print('counted by XLA for each device, compiled for CPUs in ' + config.model.dtype)
    print(f'{"devices":>8}{"GFLOP":>10}{"GB":>8}{"MiB":>8}{"MB summed":>11}{"batch":>7}')
    for n, (each, summed) in counted.items():
        cells = f'{each.flops / 1e9:>10.0f}{each.bytes / 1e9:>8.1f}{each.planned / 2**20:>8.0f}'
        print(f'{n:>8}{cells}{summed / 1e6:>11.1f}{n * arguments.images:>7}')
    each, summed = counted[max(FAKE)]
    print(
        f'predicted: {arguments.rate:.0f} TFLOP/s a device, {arguments.host} devices a host, '
        f'{arguments.inside:g} GB/s a device inside a host, {arguments.link:g} between hosts'
    )
    print(*predicted(each.flops, summed, arguments), sep='\n')
    return 0


def count(config, devices, images, canvas):
    """Returns the Costs of a step on so many devices, for each, and the bytes that it sums."""
    lowered = loop.lowered(config, jax.devices('cpu')[:devices], images, canvas)
    compiled = lowered.compile()
    return costs_of(lowered, compiled), summed_bytes(compiled.as_text())


def summed_bytes(text):
    """Returns the bytes that the all-reduce operations of a compiled program sum."""
    total = 0
    for result in re.findall(r'= (.+?) all-reduce(?:-start)?\(', text):
        for kind, shape in re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', result):
            total += BYTES[kind] * int(np.prod([int(n) for n in shape.split(',') if n]))
    return total


def predicted(flops, summed, about):
    """Yields lines: the step of each number of devices, and what its hosts must read.

    Sums go around a ring: each device sends 2 (N - 1) / N of them; nothing is hidden behind the
    computation.
    """
    compute = flops / (about.rate * 1e12)
    yield (
        f'{"devices":>8}{"batch":>8}{"step, ms":>10}{"sums, ms":>10}{"images/s":>10}'
        f'{"of N times":>12}{"host reads, images/s":>22}{"MB/s":>7}{"12 epochs, h":>14}'
    )
    rate_of_one = about.images / compute
    for n in about.devices:
        sums = 2 * (n - 1) / n * summed / 1e9 / (about.inside if n <= about.host else about.link)
        rate = n * about.images / (compute + sums)
        host = rate * min(n, about.host) / n
        yield (
            f'{n:>8}{n * about.images:>8}{(compute + sums) * 1e3:>10.1f}{sums * 1e3:>10.1f}'
            f'{rate:>10.0f}{rate / n / rate_of_one:>12.0%}{host:>22.0f}'
            f'{host * about.image_bytes / 1e6:>7.0f}{EPOCHS * COCO / rate / 3600:>14.3f}'
        )


def _above_0(text):
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not above 0')
    return float(text)


def _canvas(text):
    height, width = map(int, text.split('x'))
    return height, width


def _numbers(text):
    return tuple(map(at_least(1), text.split(',')))


if __name__ == '__main__':
    sys.exit(run(main, None))
