"""The weights behind the golden figures: every tensor is a function of its name."""

import zlib

import numpy as np


def formula(name, shape, head_bias=False):
    """Returns the float32 tensor of a torchvision name, so that no file of weights is needed.

    head_bias fills the biases of a head; training.npz has zeros there, fpn.npz has not.
    """
    rng = np.random.default_rng([0, zlib.crc32(name.encode())])
    n = rng.standard_normal(shape).astype(np.float32)
    if name.startswith('rpn.') and name.endswith('bias'):
        n = 0.1 * n if head_bias else 0 * n
    elif name.startswith('rpn.') and not (head_bias and '.conv.' in name):
        n = 0.1 * n * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 4:
        n = n * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith('running_var'):
        n = np.exp(0.2 * n)
    elif name.endswith(('running_mean', 'bias')):
        n = 0.1 * n
    else:
        n = (1 + 0.1 * n) * (0.2 if '.bn3.' in name else 1)
    return n.astype(np.float32)
