"""Checkpoints: written while training goes on, the newest kept. All Orbax calls live here."""

from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rpn_jax.errors import InputError

FOLDER = 'checkpoints'  # in a workdir


class Checkpoints:
    """The checkpoints of one workdir, as a context: leaving it waits for the last write to end."""

    def __init__(self, workdir, *, every, keep):
        self.every = every
        self._checkpointer = ocp.training.Checkpointer(
            folder(workdir).absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(every),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def latest(self):
        """The step of the newest whole checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step, state):
        """Starts writing the state in the background; a step that exists is left alone."""
        if self.latest != step:
            self._checkpointer.save_async(step, state, force=True)

    def load(self, state):
        """Returns the newest checkpoint, placed like `state`; state itself where there is none."""
        if self.latest is None:
            return state
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        return self._checkpointer.load(self.latest, template)


def folder(workdir):
    """Returns the folder of a workdir's checkpoints."""
    return Path(workdir) / FOLDER


def steps(workdir):
    """Returns the steps of the whole checkpoints in a workdir, ascending."""
    place = folder(workdir).absolute()
    named = sorted(int(path.name) for path in place.glob('*') if path.name.isdecimal())
    return [step for step in named if ocp.is_orbax_checkpoint(place / str(step))]


def restore(workdir, step=None):
    """Returns (state, step): a checkpoint as nested dicts of NumPy arrays, whatever the devices.

    step None takes the newest. The optimizer's state is not read.
    """
    place, saved = folder(workdir), steps(workdir)
    if not saved:
        raise InputError(f'{place}: no checkpoint; train first, or name another --workdir')
    step = saved[-1] if step is None else step
    if step not in saved:
        shown = ', '.join(map(str, saved))
        raise InputError(f'{place}: no checkpoint of step {step}; there are {shown}')
    path = place.absolute() / str(step)
    try:
        shape = ocp.metadata(path, checkpointable_name='state').metadata
        template = {k: jax.tree.map(lambda _: np.ndarray, v) for k, v in shape.items()}
        template |= {'opt_state': jax.tree.map(lambda _: ..., shape['opt_state'])}
        return ocp.load(path, template, checkpointable_name='state'), step
    except Exception as error:  # Orbax and what it stands on have many kinds
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f'{path}: a damaged checkpoint ({reason}); there are {", ".join(map(str, saved))}'
        ) from error


def variables(workdir, step=None):
    """Returns (variables, step) of a checkpoint: what model.apply takes, in NumPy arrays."""
    state, step = restore(workdir, step)
    return {name: state[name] for name in ('params', 'batch_stats') if state[name]}, step
