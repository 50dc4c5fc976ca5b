"""What a run starts from: ImageNet's weights, a file, or what another run has learnt."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from rpn_jax import weights
from rpn_jax.data.normalization import pixel_family
from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint, workdir
from rpn_jax.training.step import SMALLEST
from rpn_jax.weights import formats, imagenet


def load(config, print=print):
    """Returns the tensors of model.pretrained, None without; settles data.pixels = 'auto'.

    Weights that contradict the config's pixels or strides are a warning.
    """
    where, tensors = config.model.pretrained, None
    if where in imagenet.FILES:
        where = imagenet.fetch(where, config.model.depth)
    if where:
        tensors = load_weights(where, len(config.anchors.aspect_ratios))
        wanted = expects(where, tensors)
        if config.data.pixels == 'auto':
            own = {k: config.data[k] for k in ('mean', 'std') if config.data[k]}
            config.data.update(wanted['data'] | own)
        for section, keys in wanted.items():
            for key, value in keys.items():
                if (given := config[section][key]) != value:
                    print(
                        f'warning: the weights {where} want {section}.{key}={value}, it is {given}'
                    )
    elif config.data.pixels == 'auto':
        config.data.pixels = 'torchvision'
    return tensors


def check(config, tensors):
    """Raises InputError where tensors, if any, do not fit the network; nothing is compiled."""
    if tensors is None:
        return
    model = rpn.build(config.model, config.anchors)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(SMALLEST))
    try:
        weights.to_variables(tensors, shapes)
    except InputError as error:
        raise InputError(f'{config.model.pretrained}: {error}') from error


def load_weights(path, aspect_ratios=None):
    """Returns the tensors of a weights file or of a run of ours: NumPy arrays by torchvision name.

    A run is named by its workdir, or by a folder checkpoints/STEP in it; files are read by
    weights.load, whose arguments these are. Raises InputError where nothing can be read.
    """
    run = _run_of(path)
    if run is None:
        return weights.load(path, aspect_ratios)
    return weights.checked(weights.from_variables(checkpoint.variables(*run)[0]), f'weights {path}')


def _run_of(path):
    """Returns (workdir, step or None) where path is of a run: its folder, or one inside."""
    try:
        place = Path(path).resolve()
        if place.name.isdecimal() and place.parent.name == checkpoint.FOLDER:
            return place.parent.parent, int(place.name)
        place = place.parent if place.name == checkpoint.FOLDER else place
        return (place, None) if checkpoint.steps(place) else None
    except (OSError, ValueError):
        return None


def expects(path, tensors):
    """Tells what the weights of a path expect of a config: {'data': .., 'model': ..}.

    What one of our runs wrote says it, mean and deviation included; of other files, the stem's norm
    tells the pixels, and MSRA's have their stride in the first 1x1 convolution.
    """
    family = weights.pixels(tensors)
    guess = {'data': {'pixels': family}, 'model': {'stride_in_1x1': family == 'caffe'}}
    try:
        if run := _run_of(path):
            made_with = workdir.read_config(run[0]).to_dict()
        else:
            made_with = json.loads(formats.metadata(path).get('rpn_jax', '{}'))
        data = {key: made_with['data'][key] for key in ('pixels', 'mean', 'std')}
        stride_in_1x1 = bool(made_with['model']['stride_in_1x1'])
        mean, std = (tuple(map(float, data[key])) for key in ('mean', 'std'))
        pixel_family(data['pixels'], mean, std)
    except (ValueError, KeyError, TypeError):
        return guess  # somebody else's words
    data |= {'mean': mean, 'std': std}
    return {'data': data, 'model': {'stride_in_1x1': stride_in_1x1}}
