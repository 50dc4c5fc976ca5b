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
from rpn_jax.weights import architecture, formats, names, published
from rpn_jax.weights.names import SHOWN
from rpn_jax.weights.variables import STAGES, named

logger = logging.getLogger(__name__)
# How a network's own tensors begin: one that it does not need is an error, others are passed over.
OWN = re.compile(
    r'(conv\d+|bn\d+|layer\d+|stem|res\d+|backbone|bottom_up|body|proposal_generator)([._]|$)|'
    r'rpn(\.|_(?!head\b))'
)
PYRAMID = re.compile(r'(backbone\.)?(fpn|neck|top_block)[._]')
BESIDE = (
    "; pretrained_key='backbone' takes what is below that name alone, 'backbone.body' the ResNet"
)


def load(where, depth, aspect_ratios, pretrained_key=''):
    """Returns tensors by torchvision's names of a ResNet, a pyramid and a head; None without where.

    where is one of published.FILES, which are fetched once, a file that weights.load reads, a
    workdir, or checkpoints/STEP in one. depth is the ResNet's, aspect_ratios those of the anchors;
    pretrained_key is that of weights.load.
    """
    if not where:
        return None
    if where in published.FILES:
        where = published.fetch(where, depth)
    tensors = load_weights(where, len(aspect_ratios), pretrained_key)
    passed_over = getattr(tensors, 'passed_over', ())
    return formats.Tensors({names.plain(n): t for n, t in tensors.items()}, passed_over)


def check(where, tensors, model):
    """Drops the tensors that the network does not use, with a note, and checks that the rest fit.

    A pyramid fits only a network with one, and a head only the network whose maps it reads. A
    pyramid or a head on one that the tensors lack is noted. Raises InputError where they do not fit
    the network, with what to set, where that can be told; nothing is compiled.
    """
    if tensors is None:
        return
    shapes = variable_shapes(model)
    needed = named(shapes)
    above = STAGES - {name.partition('.')[0] for name in needed}
    passed_over = list(getattr(tensors, 'passed_over', ()))
    if any(map(PYRAMID.match, tensors)) != bool(model.fpn):
        passed_over += [n for n in tensors if PYRAMID.match(n) or n.startswith('rpn.head.')]
        for name in set(passed_over) & tensors.keys():
            del tensors[name]
    hint = BESIDE if _run_of(where) is None else ''
    if held := architecture.disagreement(tensors, model):
        beside = re.search(r' (pyramid|head) .*(fpn|head)_\w+=', held)
        raise InputError(f'weights {where}: hold {held}{hint if beside else ""}')
    has_head = any(name.startswith('rpn.head.') for name in tensors)
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
        beside = re.search(r'(unexpected|misshapen) (rpn|backbone|fpn|neck)\.', str(error))
        raise InputError(f'{where}: {error}{hint if beside else ""}') from error
    if passed_over:
        logger.info(f'note: not used of the weights {where}: {names.parts(passed_over)}')
    held = {name.partition('.')[0] for name in tensors}
    absent = [
        part for start, part in {'fpn': 'pyramid', 'rpn': 'head'}.items() if start not in held
    ]
    if absent and model.fpn:
        logger.info(f'note: not in the weights {where}, so random at first: {", ".join(absent)}')
    if zero := [name for name, t in tensors.items() if np.ndim(t) == 4 and not np.any(t)]:
        logger.warning(f'the weights {where} are nothing but zeros in {", ".join(zero[:SHOWN])}')


def load_for(model, section):
    """Returns the tensors that a network starts from, checked; None without any.

    section is the config's `model`; its keys are those of `load`.
    """
    where = section.pretrained
    tensors = load(where, section.depth, model.aspect_ratios, section.pretrained_key)
    check(where, tensors, model)
    return tensors


def complete(tensors, model):
    """Returns the variables of a model, if tensors that were checked hold all of them, or None."""
    wanted = variable_shapes(model)
    return weights.to_variables(tensors, wanted) if named(wanted).keys() <= tensors.keys() else None


def variable_shapes(model):
    """Returns the shapes and dtypes of the variables of a model, a tree."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(SMALLEST))


def load_weights(path, aspect_ratios=None, pretrained_key=''):
    """Returns the tensors of a weights file or of a run of ours: NumPy arrays by torchvision name.

    With a pyramid they are those of torchvision's detectors, else those of its ResNet. A run is
    named by its workdir, or by a folder checkpoints/STEP in it; files are read by weights.load,
    whose arguments these are. Raises InputError where nothing can be read.
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


def check_files(model, section):
    """Raises InputError where the weights of a config's section `model` do not fit the network.

    Published ones, which would have to be fetched, are not read.
    """
    if section.pretrained not in published.FILES:
        load_for(model, section)


def expects(where, aspect_ratios, pretrained_key=''):
    """Returns the pixels and the stride that weights want: {'data': {..}, 'model': {..}}.

    The arguments are those of load. Runs and exports of ours name them, mean and std
    included. Of other files the stem's norm shows the pixels; MSRA's (caffe) have the stride of a
    stage in its first 1x1 convolution. Nothing is fetched.
    """
    if made_with := _made_with(where):
        return made_with
    family = 'torchvision'
    if where not in published.FILES:
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
