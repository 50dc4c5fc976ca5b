"""Give every process the resolved config and the trained network that process 0 has read.

Process 0 alone reads the workdir.
"""

import hashlib
import logging
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from rpn_jax.config import has_effect, items, resolve
from rpn_jax.console import show
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint, hosts, pretrained, workdir
from rpn_jax.weights import published

logger = logging.getLogger(__name__)
# Keys of data that may differ among the processes of a run: each host may have a copy of its own.
PATHS = [f'{prefix}{key}' for prefix in ('', 'eval_') for key in ('path', 'images', 'annotations')]
OWN = {f'data.{key}' for key in PATHS}
SETTLED = 'pixels', 'mean', 'std'  # keys of data that resolving may change


def resolved(config, folder):
    """Returns the resolved config; of several processes, as process 0 resolves it.

    Raises InputError, on all processes, where they were started differently.
    """
    if not hosts.several():
        return resolve(config, folder)
    _agree(config)
    return _as_first(config, resolve(config, folder) if hosts.is_first() else None)


def trained(config, folder, **options):
    """Returns the resolved config, the variables and the step of a checkpoint of a workdir.

    options are those of the command line that all processes must have alike; among them the step.
    Where there is no checkpoint, model.pretrained is taken as step 0 if it holds the network's
    every weight. Raises InputError as `resolved` does, and where there is no network.
    """
    if not hosts.several():
        return _read(config, folder, options['step'])
    # On process 0 the config may come from the workdir, resolved, and on others from a file.
    _agree(config, {f'data.{key}' for key in SETTLED}, **options)
    own = variables = step = None
    if hosts.is_first():
        own, variables, step = _read(config, folder, options['step'])
    config, step = _as_first(config, own), hosts.from_first(lambda: step)
    if variables is None:
        shapes = pretrained.variable_shapes(rpn.build(config.model, config.anchors))
        variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return config, hosts.broadcast(variables), step


def other_keys(config, folder):
    """Returns {key: (value in the workdir, value here)} of keys that change an evaluation.

    Keys without effect are left out; {} where the workdir has no config.
    """
    if not (folder / 'config.json').exists():
        return {}
    values, changes = items(config), workdir.changed(folder, config, workdir.MEASURED)
    return {key: pair for key, pair in changes.items() if has_effect(values, key)}


def _agree(config, settled=(), **options):
    """Raises InputError where processes differ in what must be the same in all of a run.

    settled are keys that all take over from process 0.
    """
    own = OWN.union(settled)
    values = {key: value for key, value in items(config).items() if key not in own}
    code = [each.read_bytes() for each in sorted(Path(__file__).parent.rglob('*.py'))]
    versions = {each: metadata.version(each) for each in ('jax', 'jaxlib', 'flax', 'numpy')}
    devices = jax.local_devices()
    hosts.agree(
        {
            **values,
            **{f'--{name}': value for name, value in options.items()},
            **versions,
            'code of rpn_jax': hashlib.sha256(b''.join(code)).hexdigest()[:8],
            'devices': f'{len(devices)} {devices[0].device_kind}',
        }
    )
    logger.info(hosts.line())


def _as_first(config, own):
    """Returns a config, resolved as `own` is, which is that of process 0 and None on others."""
    settled = hosts.from_first(lambda: [own.data[key] for key in SETTLED])
    config = config.copy_and_resolve_references()
    pixels, *statistics = settled
    config.data.update(dict(zip(SETTLED, (pixels, *map(tuple, statistics)), strict=True)))
    return FrozenConfigDict(config)


def _read(config, folder, step):
    """Returns the resolved config, the variables and the step, as `trained` does."""
    where = config.model.pretrained
    if not step and not checkpoint.steps(folder) and where and where not in published.BACKBONES:
        config = resolve(config, folder)
        model = rpn.build(config.model, config.anchors)
        tensors = pretrained.load_for(model, config.model)
        if variables := pretrained.complete(tensors, model):
            show(f'{folder}: no checkpoint; the weights {where} are used as step 0')
            return config, variables, 0
    variables, step = checkpoint.variables(folder, step)
    workdir.check_file(folder, step)
    config = resolve(config, folder)
    workdir.check(folder, config, workdir.NETWORK)
    return config, variables, step
