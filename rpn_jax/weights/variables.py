"""Tensors by torchvision's names <-> the variables of a network: strict, in both directions."""

import difflib
import re
from collections import Counter

import jax
import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.weights.names import UNUSED

MODULES = [  # the last names of a module's path in the variables -> torchvision's name
    (re.compile(rf'(?:.+\.)?{pattern}'), name)
    for pattern, name in (
        (r'stem_conv', lambda: 'conv1'),
        (r'stem_norm', lambda: 'bn1'),
        (r'conv(\d)_block(\d+)\.conv(\d)', lambda s, b, i: f'{_block(s, b)}.conv{i}'),
        (r'conv(\d)_block(\d+)\.norm(\d)', lambda s, b, i: f'{_block(s, b)}.bn{i}'),
        (r'conv(\d)_block(\d+)\.shortcut_conv', lambda s, b: f'{_block(s, b)}.downsample.0'),
        (r'conv(\d)_block(\d+)\.shortcut_norm', lambda s, b: f'{_block(s, b)}.downsample.1'),
        (r'head\.conv(\d*)', lambda i: f'rpn.head.conv.{i or 0}.0'),
        (r'head\.objectness', lambda: 'rpn.head.cls_logits'),
        (r'head\.deltas', lambda: 'rpn.head.bbox_pred'),
    )
]
PARAMETERS = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
OPTIONAL = ('rpn.', 'head.', 'fpn.')  # parts that keep their values where the tensors hold none
SHOWN = 20  # problems of a kind that an error lists


def to_variables(tensors, variables):
    """Returns variables with the values of tensors: the backbone, and what there is of the head.

    tensors maps torchvision names to arrays, variables is what model.init returned. Strict: raises
    one InputError that lists missing, unexpected and misshapen tensors. Classifier and counters are
    ignored, as are stages above the network's last; parameters come out as float32.
    """
    expected = {name: _torch_shape(leaf) for name, leaf in _named(variables).items()}
    absent = tuple(part for part in OPTIONAL if not any(n.startswith(part) for n in tensors))
    wanted = {name for name in expected if not name.startswith(absent)}
    stages = {name.split('.')[0] for name in wanted}
    given = {name for name in tensors if not UNUSED.search(name) and not _is_above(name, stages)}
    missing, unexpected = sorted(wanted - given), sorted(given - wanted)
    shapes = {name: np.shape(tensors[name]) for name in sorted(given & wanted)}
    misshapen = [name for name, shape in shapes.items() if shape != expected[name]]
    problems = [
        *_list('missing', missing, lambda name: _nearest(name, unexpected)),
        *_list('unexpected', unexpected),
        *_list(
            'misshapen',
            misshapen,
            lambda name: f' is {shapes[name]}, the network needs {expected[name]}',
        ),
    ]
    if problems:
        raise InputError(f'weights do not fit the network: {"; ".join(problems)}')

    def take(path, leaf):
        name = _name(path)
        if name not in given:
            return leaf
        tensor = np.asarray(tensors[name]).astype(np.float32)
        return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor

    return jax.tree_util.tree_map_with_path(take, variables)


def from_variables(variables):
    """Returns the variables as a dict of float32 NumPy arrays by torchvision name.

    What torchvision has no name for, as in a backbone of your own, is called by its path. The
    inverse of to_variables.
    """
    tensors = {}
    for name, leaf in _named(variables).items():
        tensor = np.asarray(leaf, np.float32)
        tensors[name] = tensor.transpose(3, 2, 0, 1).copy() if tensor.ndim == 4 else tensor
    return tensors


def _named(variables):
    """Returns {torchvision name: leaf}; raises ValueError where two leaves have one name."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    names = [_name(path) for path, _ in leaves]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f'several variables of the network are called {twice[0]}')
    return {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _name(path):
    """Returns the torchvision name of a variable: params, head, conv, kernel -> rpn.head.conv.."""
    _, *modules, parameter = (str(key.key) for key in path)
    parameter = PARAMETERS.get(parameter, parameter)
    module = '.'.join(modules).removeprefix('backbone.')
    for pattern, name in MODULES:
        if match := pattern.fullmatch(module):
            return f'{name(*match.groups())}.{parameter}'
    return f'{module}.{parameter}' if module else parameter


def _block(stage, block):
    return f'layer{int(stage) - 1}.{block}'


def _torch_shape(leaf):
    shape = np.shape(leaf)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _is_above(name, stages):
    """Returns whether a tensor belongs to a stage that the network was cut off below."""
    stage = name.split('.')[0]
    return bool(re.fullmatch(r'layer[1-4]', stage)) and stage not in stages


def _list(problem, names, describe=lambda name: ''):
    more = [f'and {len(names) - SHOWN} more {problem}'] if len(names) > SHOWN else []
    return [f'{problem} {name}{describe(name)}' for name in names[:SHOWN]] + more


def _nearest(name, unexpected):
    near = difflib.get_close_matches(name, unexpected, n=1)
    return f' (did you mean {near[0]}?)' if near else ''
