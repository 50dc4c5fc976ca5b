"""Load a file of weights, check its numbers, and guess the pixels that they were trained with."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.weights import formats, names, published

# The stem's variance is in the thousands for pixels in 0..255, below ten for torchvision's.
CAFFE_VARIANCE = 50
LARGEST = np.finfo(np.float32).max
SHOWN = 20  # tensors that an error lists


def load(path, aspect_ratios=None, pretrained_key=''):
    """Reads a file of weights into formats.Tensors, a dict of NumPy arrays by torchvision name.

    With a pyramid the names are those of torchvision's detectors, else those of its ResNet. The
    file is a .safetensors, .npz, torch's .pth, or a .pkl of Caffe2 or detectron2. aspect_ratios
    is how many a cell of the network's anchors has: a detectron2 head numbers its anchors size by
    size. Norms of torchvision's published files whose epsilon is 0 get scales that compute the
    same with 1e-5. pretrained_key picks one of several networks or parts of a file, by a key of the
    checkpoint or by what the names of its tensors begin with. The attribute passed_over of the
    result lists what was left out. Raises InputError for what is missing, not whole, hostile or no
    weights, and for tensors that hold NaN or infinity.
    """
    where = f'weights {path}'
    try:
        if str(path) in ('', '.') or not Path(path).exists():
            raise ValueError('no such file')
        if not Path(path).is_file():
            raise ValueError('a folder without checkpoints' if Path(path).is_dir() else 'no file')
        tensors = names.to_torchvision(formats.read(path, pretrained_key), aspect_ratios)
    except (ValueError, OSError, MemoryError) as error:
        raise InputError(f'{where}: {error}') from error
    if any(map(names.TORCHVISION.fullmatch, tensors)):  # whole numbers elsewhere are no weights
        for name in [n for n, t in tensors.items() if not _is_float(t)]:
            if not names.TORCHVISION.fullmatch(name):
                del tensors[name]
                tensors.passed_over.append(name)
    checked(tensors, where)
    if Path(path).name in published.WITHOUT_EPSILON:
        tensors |= _with_epsilon(tensors)
    return formats.Tensors(names.of_detector(tensors), tensors.passed_over)


def _with_epsilon(tensors):
    """Returns the scales of norms that divide by sqrt(variance) for such as add EPSILON to it."""
    scales = {}
    for name in [name for name in tensors if name.endswith('.running_var')]:
        scale = f'{name.removesuffix("running_var")}weight'
        if scale in tensors:  # in float64: a channel that is always 0 has hardly any variance
            variance = tensors[name].astype(np.float64).clip(np.finfo('f4').smallest_subnormal)
            factor = np.sqrt(1 + names.EPSILON / variance)
            scales[scale] = (tensors[scale] * factor).astype(np.float32)
    return scales


def checked(tensors, where):
    """Returns tensors; raises InputError, which begins with where, if any is not finite numbers."""
    used = {name: tensor for name, tensor in tensors.items() if not names.UNUSED.search(name)}
    for problem, is_bad in {
        'no floating point numbers': lambda n, t: not _is_float(t),
        'NaN or infinity': lambda n, t: not np.all(np.abs(t) <= LARGEST),
        'numbers below zero': lambda n, t: n.endswith('running_var') and np.any(t < 0),
    }.items():
        if bad := [name for name, tensor in used.items() if is_bad(name, tensor)]:
            more = f' and {len(bad) - SHOWN} more' if len(bad) > SHOWN else ''
            raise InputError(f'{where}: {problem} in {", ".join(bad[:SHOWN])}{more}')
    return tensors


def _is_float(tensor):
    return jnp.issubdtype(tensor.dtype, jnp.floating)


def pixels(tensors):
    """Returns which pixels the weights expect, by the stem's norm: 'caffe' or 'torchvision'."""
    plain = {names.plain(name): tensor for name, tensor in tensors.items()}
    stem = (plain.get(f'bn1.{name}', 0) for name in ('running_var', 'running_mean', 'weight'))
    variance, mean, scale = (np.asarray(tensor, np.float64) for tensor in stem)
    if 'bn1.running_var' not in plain or not variance.size:
        return 'torchvision'
    # Caffe2's files, and what was trained from them, keep a norm as only a scale and a bias.
    folded = np.unique(scale).size > 1 and np.allclose(variance, 1, atol=1e-2) and not mean.any()
    return 'caffe' if folded or np.median(variance) > CAFFE_VARIANCE else 'torchvision'
