"""Tensors by torchvision's names <-> the variables of a network: strict, in both directions."""

import difflib

import jax
import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.weights import names

SUBSTITUTIONS = (  # a parameter's path in the variables -> torchvision's name
    (r'^(.+\.)?stem_conv\.', 'conv1.'),
    (r'^(.+\.)?stem_norm\.', 'bn1.'),
    (r'^(?:.+\.)?conv(\d)_block(\d+)\.', names.block),
    (r'\.norm(\d)\.', r'.bn\1.'),
    (r'\.shortcut_conv\.', '.downsample.0.'),
    (r'\.shortcut_norm\.', '.downsample.1.'),
    (r'^fpn\.lateral(\d+)\.', r'fpn.inner_blocks.\1.0.'),
    (r'^fpn\.output(\d+)\.', r'fpn.layer_blocks.\1.0.'),
    (r'^fpn\.lateral(\d+)_norm\.', r'fpn.inner_blocks.\1.1.'),
    (r'^fpn\.output(\d+)_norm\.', r'fpn.layer_blocks.\1.1.'),
    (r'^head\.conv\.', 'rpn.head.conv.0.0.'),
    (r'^head\.conv(\d+)\.', r'rpn.head.conv.\1.0.'),
    (r'^head\.objectness\.', 'rpn.head.cls_logits.'),
    (r'^head\.deltas\.', 'rpn.head.bbox_pred.'),
)
PARAMETERS = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
OPTIONAL = ('rpn.', 'head.', 'fpn.')  # parts that keep their values where the tensors hold none
STAGES = {'layer1', 'layer2', 'layer3', 'layer4'}
SHOWN = 20  # problems of a kind that an error lists


def to_variables(tensors, variables):
    """Returns variables with the values of tensors: the backbone, and what there is of the head.

    tensors maps torchvision names, those of a ResNet or of a detector, to arrays; variables is what
    model.init returned. Strict: raises one InputError that lists missing, unexpected and misshapen
    tensors. Classifier and counters are ignored, as are stages above the network's last; parameters
    come out as float32.
    """
    tensors = {names.plain(name): tensor for name, tensor in tensors.items()}
    expected = {name: _torch_shape(leaf) for name, leaf in named(variables).items()}
    absent = tuple(part for part in OPTIONAL if not any(n.startswith(part) for n in tensors))
    wanted = {name for name in expected if not name.startswith(absent)}
    above = STAGES - {name.split('.')[0] for name in wanted}  # the network's last stage
    given = {name for name in tensors if name.split('.')[0] not in above}
    given = {name for name in given if not names.UNUSED.search(name)}
    missing, unexpected = sorted(wanted - given), sorted(given - wanted)
    shapes = {name: np.shape(tensors[name]) for name in sorted(given & wanted)}
    problems = [
        *_list('missing', missing, lambda name: _nearest(name, unexpected)),
        *_list('unexpected', unexpected),
        *_list(
            'misshapen',
            [name for name, shape in shapes.items() if shape != expected[name]],
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

    With a pyramid the names are those of torchvision's detectors: backbone.body.*, backbone.fpn.*.
    What torchvision has no name for, as in a backbone of your own, is called by its path. The
    inverse of to_variables.
    """
    tensors = {name: np.asarray(leaf, np.float32) for name, leaf in named(variables).items()}
    return names.of_detector(
        {
            name: tensor.transpose(3, 2, 0, 1).copy() if tensor.ndim == 4 else tensor
            for name, tensor in tensors.items()
        }
    )


def named(variables):
    """Returns {plain torchvision name: leaf}; raises ValueError where two leaves have one name."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = _name(path)
        if name in named:
            raise ValueError(f'several variables of the network are called {name}')
        named[name] = leaf
    return named


def _name(path):
    """Returns the torchvision name of a variable: params, head, conv, kernel -> rpn.head.conv.."""
    _, *modules, parameter = (str(key.key) for key in path)
    name = '.'.join([*modules, PARAMETERS.get(parameter, parameter)])
    return names.rename(name.removeprefix('backbone.'), SUBSTITUTIONS)


def _torch_shape(leaf):
    shape = np.shape(leaf)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _list(problem, listed, describe=lambda name: ''):
    more = [f'and {len(listed) - SHOWN} more {problem}'] if len(listed) > SHOWN else []
    return [f'{problem} {name}{describe(name)}' for name in listed[:SHOWN]] + more


def _nearest(name, unexpected):
    near = difflib.get_close_matches(name, unexpected, n=1)
    return f' (did you mean {near[0]}?)' if near else ''
