"""Pretrained weights: files by torchvision name <-> the network's variables, strict."""

import difflib
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.weights import formats, names

IGNORED = re.compile(r'(^|\.)(fc\.(weight|bias)|num_batches_tracked)$')  # classifier, counters
HEAD = {  # ours -> torchvision's RPNHead
    ('conv',): 'rpn.head.conv.0.0',
    ('objectness',): 'rpn.head.cls_logits',
    ('deltas',): 'rpn.head.bbox_pred',
}
PARAMETERS = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
# The stem's variance is in the thousands for pixels in 0..255, below ten for torchvision's.
CAFFE_VARIANCE = 50
LARGEST = np.finfo(np.float32).max
SHOWN = 20  # problems of a kind that an error lists


def load(path, aspect_ratios=None):
    """Reads weights into a dict of NumPy arrays by torchvision name, without running their code.

    path is a file (.safetensors, .npz, torch's .pth, or a .pkl of Caffe2 or detectron2), the
    workdir of a run of ours, or a folder checkpoints/STEP in one. aspect_ratios is how many a cell
    of the network's anchors has: a detectron2 head numbers them size by size. Raises InputError for
    what is missing, not whole, hostile or no weights, and for tensors that hold NaN or infinity.
    """
    path = Path(path)
    try:
        if str(path) in ('', '.') or not path.exists():
            raise InputError(
                f'weights {path}: no such file; config key model.pretrained names '
                "one, or the workdir of a run, or is 'imagenet' or 'imagenet_v2'"
            )
        elif not path.is_file():
            what = 'a folder without checkpoints' if path.is_dir() else 'no file'
            raise InputError(
                f'weights {path}: {what}; config key model.pretrained names a file or the workdir '
                'of a run'
            )
        else:
            tensors = names.to_torchvision(formats.read(path), aspect_ratios)
    except InputError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        raise InputError(f'weights {path}: {error}') from error
    return checked(tensors, f'weights {path}')


def checked(tensors, where):
    """Returns tensors; raises InputError, which begins with where, if any is not finite numbers."""
    used = {name: tensor for name, tensor in tensors.items() if not IGNORED.search(name)}
    for problem, bad in {
        'no floating point numbers': [n for n, t in used.items() if not _is_floating(t)],
        'NaN or infinity': [n for n, t in used.items() if _is_floating(t) and not _is_finite(t)],
    }.items():
        if bad:
            more = f' and {len(bad) - SHOWN} more' if len(bad) > SHOWN else ''
            raise InputError(f'{where}: {problem} in {", ".join(bad[:SHOWN])}{more}')
    return tensors


def _is_floating(tensor):
    return np.issubdtype(tensor.dtype, np.floating) or tensor.dtype == ml_dtypes.bfloat16


def _is_finite(tensor):
    return np.all(np.abs(tensor) <= LARGEST)


def to_variables(tensors, variables):
    """Returns variables with the backbone taken from tensors, and the head where they hold one.

    tensors maps torchvision names to arrays, variables is what model.init returned. Strict: raises
    one InputError that lists missing, unexpected and misshapen tensors. Classifier and counters are
    passed over, as are stages above the network's last; parameters come out as float32.
    """
    ours = _names(variables)
    has_head = any(name.startswith('rpn.') for name in tensors)
    wanted = {name for name in ours.values() if has_head or not name.startswith('rpn.')}
    stages = {name.split('.')[0] for name in wanted}
    given = {name for name in tensors if not IGNORED.search(name) and not _above(name, stages)}
    shapes = {name: _torch_shape(path, leaf) for path, leaf, name in _leaves(variables)}
    missing, unexpected = sorted(wanted - given), sorted(given - wanted)
    misshapen = sorted(n for n in given & wanted if np.shape(tensors[n]) != shapes[n])
    problems = [
        *_list('missing', missing, lambda name: _nearest(name, unexpected)),
        *_list('unexpected', unexpected),
        *_list(
            'misshapen',
            misshapen,
            lambda name: f' is {np.shape(tensors[name])}, the network needs {shapes[name]}',
        ),
    ]
    if problems:
        shown = '; '.join(problems)
        raise InputError(f'weights do not fit the network of config section model: {shown}')

    def take(path, leaf):
        name = ours[_keys(path)]
        if name not in given:
            return leaf
        tensor = np.asarray(tensors[name]).astype(np.float32)
        return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor

    return jax.tree_util.tree_map_with_path(take, variables)


def from_variables(variables):
    """Returns the variables as a dict of float32 NumPy arrays by torchvision name.

    It is the way back of to_variables.
    """
    tensors = {}
    for _, leaf, name in _leaves(variables):
        tensor = np.asarray(leaf, np.float32)
        tensors[name] = tensor.transpose(3, 2, 0, 1).copy() if tensor.ndim == 4 else tensor
    return tensors


def pixels(tensors):
    """Tells by the stem's norm which pixels the weights expect: 'caffe' or 'torchvision'."""
    stem = {part: tensors.get(f'bn1.{part}') for part in ('running_var', 'running_mean', 'weight')}
    if stem['running_var'] is None:
        return 'torchvision'
    variance, mean, scale = (np.asarray(0 if t is None else t, np.float64) for t in stem.values())
    # Caffe2's files, and what was trained from them, keep a norm as a scale and a bias alone.
    if not variance.size:
        return 'torchvision'
    folded = np.unique(scale).size > 1 and np.allclose(variance, 1, atol=1e-2) and not mean.any()
    return 'caffe' if folded or np.median(variance) > CAFFE_VARIANCE else 'torchvision'


def _keys(path):
    return tuple(key.key for key in path)


def _leaves(variables):
    """Yields (path, leaf, torchvision name) of every array in variables."""
    ours = _names(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        yield path, leaf, ours[_keys(path)]


def _names(variables):
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {_keys(path): _name(*_keys(path)[1:]) for path, _ in leaves}


def _name(part, *rest):
    *module, parameter = rest
    if part == 'head':
        return f'{HEAD[tuple(module)]}.{PARAMETERS[parameter]}'
    return f'{_module_name(*module)}.{PARAMETERS[parameter]}'


def _module_name(block, layer=None):
    """conv3_block0, shortcut_norm -> layer2.0.downsample.1; stem_conv -> conv1."""
    if layer is None:
        return {'stem_conv': 'conv1', 'stem_norm': 'bn1'}[block]
    stage, number = re.fullmatch(r'conv(\d)_block(\d+)', block).groups()
    layer = {'shortcut_conv': 'downsample.0', 'shortcut_norm': 'downsample.1'}.get(layer, layer)
    return f'layer{int(stage) - 1}.{number}.{layer.replace("norm", "bn")}'


def _torch_shape(path, leaf):
    shape = np.shape(leaf)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _above(name, stages):
    """Says whether a tensor belongs to a stage that the network was cut off below."""
    stage = name.split('.')[0]
    return bool(re.fullmatch(r'layer[1-4]', stage)) and stage not in stages


def _list(problem, found, describe=lambda name: ''):
    more = [f'and {len(found) - SHOWN} more {problem}'] if len(found) > SHOWN else []
    return [f'{problem} {name}{describe(name)}' for name in found[:SHOWN]] + more


def _nearest(name, unexpected):
    near = difflib.get_close_matches(name, unexpected, n=1)
    return f' (did you mean {near[0]}?)' if near else ''
