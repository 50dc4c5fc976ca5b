"""Pretrained weights: files by torchvision name <-> the network's variables, strict."""

import difflib
import re
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from rpn_jax.errors import InputError

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
SHOWN = 20  # problems of a kind that an error lists


def load(path):
    """Reads a .safetensors file into a dict of float NumPy arrays by torchvision name.

    Nothing in the file is executed. Raises InputError for a missing, truncated or foreign file and
    for tensors that hold NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'weights {path}: no such file; config key model.pretrained names it')
    try:
        with safe_open(path, framework='numpy') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f'weights {path}: not a whole .safetensors file ({error})') from error
    bad = [name for name, tensor in tensors.items() if not np.all(np.isfinite(tensor))]
    if bad:
        raise InputError(f'weights {path}: NaN or infinity in {", ".join(bad[:5])}')
    return tensors


def to_variables(tensors, variables):
    """Returns variables with the backbone taken from tensors, and the head where they hold one.

    tensors maps torchvision names to arrays, variables is what model.init returned. Strict: raises
    one InputError that lists missing, unexpected and misshapen tensors. Classifier and counters are
    passed over, as are stages above the network's last; parameters come out as float32.
    """
    names = _names(variables)
    has_head = any(name.startswith('rpn.') for name in tensors)
    wanted = {name for name in names.values() if has_head or not name.startswith('rpn.')}
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
        name = names[_keys(path)]
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
    variance = tensors.get('bn1.running_var')
    if variance is None:
        return 'torchvision'
    variance = np.median(np.asarray(variance, np.float64))
    return 'caffe' if variance > CAFFE_VARIANCE else 'torchvision'


def _keys(path):
    return tuple(key.key for key in path)


def _leaves(variables):
    """Yields (path, leaf, torchvision name) of every array in variables."""
    names = _names(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        yield path, leaf, names[_keys(path)]


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


def _list(problem, names, describe=lambda name: ''):
    more = [f'and {len(names) - SHOWN} more {problem}'] if len(names) > SHOWN else []
    return [f'{problem} {name}{describe(name)}' for name in names[:SHOWN]] + more


def _nearest(name, unexpected):
    near = difflib.get_close_matches(name, unexpected, n=1)
    return f' (did you mean {near[0]}?)' if near else ''
