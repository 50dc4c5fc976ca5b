"""Save, resume and restore checkpoints, in the background; the only module that calls Orbax."""

import contextlib
import logging
import math
import tempfile
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rpn_jax.errors import InputError, Interrupted

logger = logging.getLogger(__name__)
ORBAX = logging.getLogger('absl')  # where Orbax logs
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
        self._workdir, self._saving = workdir, None

    def __enter__(self):
        self._level = ORBAX.level
        ORBAX.setLevel(logging.CRITICAL)  # it logs a failure with a traceback from each thread
        return self

    def __exit__(self, kind, *_):
        try:
            self._finish()
        except InputError as error:
            if kind is None or issubclass(kind, Interrupted):
                raise
            logger.warning(str(error))  # what ended the run is told first
        finally:
            with contextlib.suppress(Exception):  # each part of Orbax raises what is told above
                self._checkpointer.close()
            ORBAX.setLevel(self._level)

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

        figures are those of the step's evaluation, if it had one. Raises InputError where this
        save, or the one before, fails.
        """
        self._finish()
        if self.latest != step:
            kept = {self.best: figures[self.best]} if figures and self.best in figures else None
            try:
                with tempfile.TemporaryFile(dir=folder(self._workdir)):
                    pass  # where this fails, Orbax would leave threads that wait for minutes
                response = self._checkpointer.save_async(step, state, force=True, metrics=kept)
            except Exception as error:  # Orbax and what it stands on have many kinds
                raise self._unwritten(step, error) from error
            self._saving = step, response

    def check(self):
        """Raises InputError if the save in the background has failed; waits for nothing."""
        self._finish(timeout=0)

    def _finish(self, timeout=None):
        """Waits for the save in the background; only its result ends Orbax's thread of it."""
        if self._saving is None:
            return
        step, response = self._saving
        try:
            response.result(timeout)
        except Exception as error:
            if timeout == 0 and isinstance(error, TimeoutError):
                return  # it is still being written
            self._saving = None
            raise self._unwritten(step, error) from error
        self._saving = None

    def _unwritten(self, step, error):
        saved = steps(self._workdir)
        newest = f'the newest is of step {saved[-1]}' if saved else 'there is none yet'
        return InputError(
            f'{folder(self._workdir) / str(step)}: the checkpoint cannot be written '
            f'({_reason(error)}); {newest}; make room or set the rights of the folder, then give '
            'the same command again'
        )

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
        raise InputError(
            f'{path}: a damaged checkpoint ({_reason(error)}); there are {shown}'
        ) from error


def variables(workdir, step=None):
    """Returns (variables, step) of a checkpoint: what model.apply takes, in NumPy arrays."""
    state, step = restore(workdir, step)
    return {name: state[name] for name in ('params', 'batch_stats') if state[name]}, step


def _reason(error):
    """Returns what an error of Orbax, or of what it stands on, says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
