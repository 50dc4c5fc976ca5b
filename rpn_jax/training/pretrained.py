"""The weights that training starts from: ImageNet's, a file's, or those of another run."""

import logging
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax import weights
from rpn_jax.data.normalization import pixel_family
from rpn_jax.errors import InputError
from rpn_jax.files import parse_json
from rpn_jax.models.rpn import SMALLEST
from rpn_jax.training import checkpoint, workdir
from rpn_jax.weights import formats, imagenet, names
from rpn_jax.weights.names import SHOWN
from rpn_jax.weights.variables import STAGES, named

logger = logging.getLogger(__name__)
# How a network's own tensors begin: one that it does not need is an error, others are passed over.
OWN = re.compile(
    r'(conv\d+|bn\d+|layer\d+|stem|res\d+|backbone|bottom_up|body|proposal_generator)([._]|$)|'
    r'rpn(\.|_(?!head\b))'
)
PYRAMID = re.compile(r'(backbone\.)?fpn')


def load(where, depth, aspect_ratios, pretrained_key=''):
    """Returns tensors by torchvision name; None where `where` is ''.

    where is 'imagenet' or 'imagenet_v2', which are fetched once, a file that weights.load reads, a
    workdir, or checkpoints/STEP in one. depth is the ResNet's, aspect_ratios those of the anchors;
    pretrained_key is that of weights.load.
    """
    if not where:
        return None
    if where in imagenet.FILES:
        where = imagenet.fetch(where, depth)
    return load_weights(where, len(aspect_ratios), pretrained_key)


def check(where, tensors, model):
    """Takes from tensors, if any, what is no part of the network, with a note that names it.

    Raises InputError where they do not fit the network; nothing is compiled.
    """
    if tensors is None:
        return
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(SMALLEST))
    needed = named(shapes)
    above = STAGES - {name.partition('.')[0] for name in needed}
    has_head = any(name.startswith('rpn.head.') for name in tensors)
    passed_over = list(getattr(tensors, 'passed_over', ()))
    for name in [name for name in tensors if name not in needed]:
        is_own = OWN.match(name) and name.partition('.')[0] not in above
        if PYRAMID.match(name):
            is_own = has_head  # which reads its maps
        if names.UNUSED.search(name) or not is_own:
            passed_over.append(name)
            del tensors[name]
    try:
        weights.to_variables(tensors, shapes)
    except InputError as error:
        beside = re.search(r'(unexpected|misshapen) (rpn|backbone\.fpn|fpn)', str(error))
        hint = "; pretrained_key='backbone' takes what is below that name alone" if beside else ''
        raise InputError(f'{where}: {error}{hint}') from error
    if passed_over:
        logger.info(f'note: not used of the weights {where}: {names.parts(passed_over)}')
    if zero := [name for name, t in tensors.items() if np.ndim(t) == 4 and not np.any(t)]:
        logger.warning(f'the weights {where} are nothing but zeros in {", ".join(zero[:SHOWN])}')


def load_weights(path, aspect_ratios=None, pretrained_key=''):
    """Returns the tensors of a weights file or of a run of ours: NumPy arrays by torchvision name.

    A run is named by its workdir, or by a folder checkpoints/STEP in it; files are read by
    weights.load, whose arguments these are. Raises InputError where nothing can be read.
    """
    run = _run_of(path)
    if run is None:
        return weights.load(path, aspect_ratios, pretrained_key)
    if pretrained_key:
        raise InputError(f'pretrained_key: {path} is a run, which has no keys')
    return weights.checked(weights.from_variables(checkpoint.variables(*run)[0]), f'weights {path}')


def _run_of(path):
    """Returns (workdir, step or None) where path is of a run: its folder, or one inside."""
    try:
        path = Path(os.path.realpath(path))
        if path.name.isdecimal() and path.parent.name == checkpoint.FOLDER:
            return path.parent.parent, int(path.name)
        path = path.parent if path.name == checkpoint.FOLDER else path
        return (path, None) if checkpoint.steps(path) else None
    except (OSError, ValueError):
        return None


def expects(where, aspect_ratios, pretrained_key=''):
    """Returns the pixels and the stride that weights want: {'data': {..}, 'model': {..}}.

    The arguments are those of load. Runs and exports of ours name them, mean and std
    included. Of other files the stem's norm shows the pixels; MSRA's (caffe) have the stride of a
    stage in its first 1x1 convolution. Nothing is fetched.
    """
    if made_with := _made_with(where):
        return made_with
    family = 'torchvision'
    if where not in imagenet.FILES:
        family = weights.pixels(load_weights(where, len(aspect_ratios), pretrained_key))
    return {'data': {'pixels': family}, 'model': {'stride_in_1x1': family == 'caffe'}}


def _made_with(where):
    """Returns what a run or an export of ours was made with, as expects does; None of others."""
    if run := _run_of(where):
        workdir.check_file(*run)
    try:
        if run:
            config = workdir.read_config(run[0])
        else:
            config = parse_json(formats.metadata(where).get('rpn_jax', '{}'))
        mean, std = (tuple(map(float, config['data'][key])) for key in ('mean', 'std'))
        pixel_family(config['data']['pixels'], mean, std)
        data = {'pixels': config['data']['pixels'], 'mean': mean, 'std': std}
        return {'data': data, 'model': {'stride_in_1x1': bool(config['model']['stride_in_1x1'])}}
    except (ValueError, KeyError, TypeError):
        return None  # a file of somebody else, whatever it calls itself
