"""Save, resume and restore checkpoints, in the background; the only module that calls Orbax."""

import math
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rpn_jax.errors import InputError

FOLDER = 'checkpoints'  # in a workdir


class Checkpoints:
    """The checkpoints of one workdir, as a context: leaving it waits for the last write to end.

    The newest `keep` are kept and, where `best` names a figure of evaluations, the one in which
    that is greatest.
    """

    def __init__(self, workdir, *, every, keep, best=''):
        self.every, self.best = every, best
        policies = ocp.training.preservation_policies
        preserved = [policies.LatestN(keep)]
        if best:
            greatest = policies.BestN(
                get_metric_fn=self._figure, n=1, keep_checkpoints_without_metrics=False
            )
            preserved.append(greatest)
        self._checkpointer = ocp.training.Checkpointer(
            folder(workdir).absolute(),
            preservation_policy=policies.AnyPreservationPolicy(preserved),
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def latest(self):
        """The step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def is_best(self, figures):
        """Says whether an evaluation's figures are better than those of every checkpoint."""
        saved = (self._figure(each.metrics or {}) for each in self._checkpointer.checkpoints)
        return self._figure(figures) > max(saved, default=-math.inf)

    def _figure(self, metrics):
        value = metrics.get(self.best)
        return -math.inf if value is None else value

    def save(self, step, state, figures=None):
        """Starts writing the state in the background; a step that exists is left as it is.

        figures are those of the step's evaluation, if it had one.
        """
        if self.latest != step:
            kept = {self.best: figures[self.best]} if figures and self.best in figures else None
            self._checkpointer.save_async(step, state, force=True, metrics=kept)

    def load(self, state):
        """Returns the newest checkpoint, placed like `state`; state itself where there is none."""
        return state if self.latest is None else self._checkpointer.load(self.latest, state)


def folder(workdir):
    """Returns the folder of a workdir's checkpoints."""
    return Path(workdir) / FOLDER


def steps(workdir):
    """Returns the steps of the complete checkpoints in a workdir, ascending."""
    path = folder(workdir).absolute()
    named = sorted(int(each.name) for each in path.glob('*') if each.name.isdecimal())
    return [step for step in named if ocp.is_orbax_checkpoint(path / str(step))]


def restore(workdir, step=None):
    """Returns (state, step): a checkpoint as nested dicts of NumPy arrays, whatever the devices.

    step None takes the newest. The optimizer's state is not read.
    """
    root, saved = folder(workdir), steps(workdir)
    if not saved:
        raise InputError(f'{root}: no checkpoint; train first, or name another --workdir')
    step = saved[-1] if step is None else step
    shown = ', '.join(map(str, saved))
    if step not in saved:
        raise InputError(f'{root}: no checkpoint of step {step}; there are {shown}')
    path = root.absolute() / str(step)
    try:
        shape = ocp.metadata(path, checkpointable_name='state').metadata
        template = jax.tree.map(lambda _: np.ndarray, shape)
        template['opt_state'] = jax.tree.map(lambda _: ..., shape['opt_state'])
        return ocp.load(path, template, checkpointable_name='state'), step
    except Exception as error:  # Orbax and what it stands on have many kinds
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f'{path}: a damaged checkpoint ({reason}); there are {shown}') from error


def variables(workdir, step=None):
    """Returns (variables, step) of a checkpoint: what model.apply takes, in NumPy arrays."""
    state, step = restore(workdir, step)
    return {name: state[name] for name in ('params', 'batch_stats') if state[name]}, step
