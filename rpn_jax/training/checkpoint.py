"""Save, resume and restore checkpoints, in the background; the only module that calls Orbax."""

import contextlib
import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
from orbax.checkpoint import checkpoint_manager
from orbax.checkpoint import v1 as ocp

from rpn_jax.errors import InputError, Interrupted, disk_line
from rpn_jax.training import hosts

logger = logging.getLogger(__name__)
FOLDER = 'checkpoints'  # in a workdir
NOISY = 'absl', 'asyncio'  # loggers that Orbax uses
LEFTOVERS = 'Event loop is closed', 'Encountered error while reading array'  # of its reads
LEFT_BEHIND = 0.3  # seconds for reads that a failed one leaves behind


class Checkpoints:
    """The checkpoints of one workdir, as a context: leaving it waits for the last write to end.

    The newest `keep` are kept and, where `best` names a figure of evaluations, the one in which
    that is greatest. With each of them goes the config, {'section.key': value}.
    """

    def __init__(self, workdir, *, every, keep, best='', config=None):
        self.every, self.best, self._config = every, best, config
        self.figures = {}  # {step: `best`} of evaluations that came after their checkpoint
        policies = ocp.training.preservation_policies
        preserved = [policies.LatestN(keep), *([_Greatest(self._figure)] if best else [])]
        patched = mock.patch.object(checkpoint_manager, '_create_root_directory', _make_folder)
        with _quiet(), patched if hosts.several() else contextlib.nullcontext():
            self._checkpointer = ocp.training.Checkpointer(
                folder(workdir).absolute(),
                preservation_policy=policies.AnyPreservationPolicy(preserved),
                cleanup_tmp_directories=True,
            )
        self._workdir, self._saving = workdir, None

    def __enter__(self):
        self._silence = _quiet()
        self._silence.__enter__()
        return self

    def __exit__(self, kind, *_):
        try:
            self.finish()
        except InputError as error:
            if kind is None or issubclass(kind, Interrupted | OSError):
                raise
            logger.warning(str(error))  # what ended the run is told first
        finally:
            try:
                self._checkpointer.close()
            except Exception:  # each part of Orbax raises what is told above
                gc.collect()  # as in _quiet
            for thread in threading.enumerate():  # of a save that has failed: they log their own
                if type(thread).__module__.startswith('orbax'):
                    thread.join(LEFT_BEHIND)
            self._silence.__exit__(None, None, None)

    @property
    def latest(self):
        """The step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def is_best(self, figures):
        """Says whether an evaluation's figures are better than those of every checkpoint."""
        saved = map(self._figure, self._checkpointer.checkpoints)
        own = figures.get(self.best)
        return own is not None and own > max(saved, default=-math.inf)

    def _figure(self, saved):
        """Returns the figure of Orbax's record of a checkpoint, -inf where it has none."""
        value = (saved.metrics or {}).get(self.best, self.figures.get(saved.step))
        return -math.inf if value is None else value

    def save(self, step, state, figures=None):
        """Starts writing the state in the background; a step that exists is left as it is.

        figures are those of the step's evaluation, if it had one. Raises InputError where this
        save, or the one before, fails.
        """
        self.finish()
        if self.latest != step:
            kept = {self.best: figures[self.best]} if figures and self.best in figures else None
            state = jax.device_get(state)  # Orbax would cut it into a slice for each device
            text = json.dumps(self._config)
            about = {'sha256': _hashes(state), 'config': text, 'config_sha256': _sha256(text)}
            try:
                with tempfile.TemporaryFile(dir=folder(self._workdir)):
                    pass  # where this fails, Orbax would leave threads that wait for minutes
                response = self._checkpointer.save_async(
                    step, state, force=True, metrics=kept, custom_metadata=about
                )
            except Exception as error:  # Orbax and what it stands on have many kinds
                raise self._unwritten(step, error) from error
            self._saving = step, response

    def check(self):
        """Raises InputError if the save in the background has failed; waits for nothing."""
        self.finish(timeout=0)

    def finish(self, timeout=None):
        """Waits for the save in the background; raises InputError if it has failed."""
        if self._saving is None:
            return
        step, response = self._saving
        try:
            response.result(timeout)  # only this ends Orbax's thread of the save
        except Exception as error:
            if timeout == 0 and isinstance(error, TimeoutError):
                return  # it is still being written
            self._saving = None
            raise self._unwritten(step, error) from error
        self._saving = None

    def _unwritten(self, step, error):
        if (code := re.search("os_error_code='(\\d+)'", str(error))) is not None:
            error = OSError(int(code[1]), os.strerror(int(code[1])))
        what = f'the checkpoint cannot be written ({_reason(error)})'
        path = str(folder(self._workdir) / str(step))
        failed = OSError(getattr(error, 'errno', None), what, path)
        return InputError(f'{disk_line(failed)}; {newest(self._workdir)}')

    def load(self, state):
        """Returns the newest good checkpoint in NumPy arrays; without checkpoints, state.

        Damaged newer ones are renamed to STEP.damaged, a warning each. Raises InputError where all
        are damaged.
        """
        if not steps(self._workdir):
            return state
        like = jax.device_get(state)
        state, good, damaged = _newest_good(self._workdir, lambda path, _: _load(path, like))
        for step, message in damaged.items():  # out of the way of later saves
            path = folder(self._workdir) / str(step)
            aside = path.with_name(f'{step}.damaged')
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning(f'{message}; it is now {aside.name}; the run goes on from step {good}')
        self._checkpointer.reload()
        return state


class NoCheckpoints:
    """Takes the place of Checkpoints in all processes but process 0, which alone writes them."""

    latest = None

    def __init__(self, *, every, best='', **_):
        self.every, self.best, self.figures = every, best, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def load(self, state):
        """Returns the state as it is."""
        return state

    def check(self):
        """Does nothing."""

    def is_best(self, figures):
        """Says no: no checkpoint is due here."""
        return False


class _Greatest(NamedTuple):
    """Orbax's policy that keeps the checkpoint of the greatest figure, the newest of several."""

    figure: Callable

    def should_preserve(self, checkpoints, *, context):
        """Says of each checkpoint whether it is kept."""
        figures = [(self.figure(each), each.step) for each in checkpoints]
        return [own == max(figures) and own[0] > -math.inf for own in figures]


def folder(workdir):
    """Returns the folder of a workdir's checkpoints."""
    return Path(workdir) / FOLDER


def steps(workdir):
    """Returns the steps of the checkpoints in a workdir, good or damaged, ascending."""
    found = folder(workdir).glob('*')  # Orbax gives a folder this name when it is complete
    return sorted(int(each.name) for each in found if each.name.isdecimal() and each.is_dir())


def newest(workdir):
    """Returns a line on the newest checkpoint of a run that an error has ended."""
    saved = steps(workdir)
    if not saved:
        return 'there is no checkpoint yet'
    return f'the newest checkpoint is of step {saved[-1]}, the same command goes on from there'


def restore(workdir, step=None):
    """Returns (state, step): a checkpoint as nested dicts of NumPy arrays, whatever the devices.

    step None takes the newest good one; a warning names damaged newer ones. The optimizer's state
    is not read. Raises InputError where there is no such checkpoint or it is damaged.
    """
    root, saved = folder(workdir), steps(workdir)
    if not saved:
        raise InputError(f'{root}: no checkpoint; train first, or name another --workdir')
    shown = ', '.join(map(str, saved))
    if step is not None and step not in saved:
        raise InputError(f'{root}: no checkpoint of step {step}; there are {shown}')
    if step is not None:
        try:
            return _checked(workdir, step, _load_variables), step
        except InputError as error:
            raise InputError(f'{error}; there are {shown}') from error
    state, good, damaged = _newest_good(workdir, _load_variables)
    for message in damaged.values():
        logger.warning(f'{message}; the newest good one, of step {good}, is taken')
    return state, good


def config_of(workdir, step=None):
    """Returns ({'section.key': value}, step): the config that a checkpoint was saved with.

    step None takes the newest that tells it. Those of earlier versions have none, {}.
    """
    for each in [step] if step is not None else reversed(steps(workdir)):
        with contextlib.suppress(Exception), _quiet():  # a damaged one is told where it is loaded
            path = folder(workdir).absolute() / str(each)
            about = ocp.metadata(path, checkpointable_name='state').custom_metadata
            if config := _saved_config(about):
                return config, each
    return {}, step


def verify(workdir):
    """Yields (step, message) of each checkpoint of a workdir; the message of a good one is ''."""
    for step in steps(workdir):
        try:
            _checked(workdir, step, lambda path, shape: _load(path, _arrays(shape)))
        except InputError as error:
            yield step, str(error)
        else:
            yield step, ''


def variables(workdir, step=None):
    """Returns (variables, step) of a checkpoint: what model.apply takes, in NumPy arrays."""
    state, step = restore(workdir, step)
    return {name: state[name] for name in ('params', 'batch_stats') if state[name]}, step


def _newest_good(workdir, load):
    """Returns (state, step, damaged) of the newest good checkpoint; load is as in _checked.

    damaged is {step: message} of newer ones. Raises InputError where none is good.
    """
    damaged = {}
    for step in reversed(steps(workdir)):
        try:
            return _checked(workdir, step, load), step, damaged
        except InputError as error:
            damaged[step] = str(error)
    raise InputError(
        f'{"; ".join(damaged.values())}; there is no good checkpoint: name another --workdir'
    )


def _checked(workdir, step, load):
    """Returns the state load(path, shape) of a checkpoint; shape is the tree of its leaves.

    Raises InputError unless the state is the one that was saved at this step. Those of earlier
    versions have no hashes: that is noted.
    """
    path = folder(workdir).absolute() / str(step)
    try:
        with _quiet():
            metadata = ocp.metadata(path, checkpointable_name='state')
            if not isinstance(metadata.metadata, dict):
                raise ValueError('state/_METADATA cannot be read')
            state = load(path, metadata.metadata)
        if metadata.commit_timestamp_nsecs is None:
            raise ValueError('_CHECKPOINT_METADATA cannot be read')
        inside = int(state['step'] if isinstance(state, dict) else state.step)
        if inside != step:
            raise ValueError(f'it holds step {inside}')
        _saved_config(metadata.custom_metadata)
        found, hashes = _hashes(state), metadata.custom_metadata.get('sha256')
        if hashes is None:
            logger.info(f'note: {path} has no hashes, as those of earlier versions: not checked')
            return state
        for name in sorted({*found, *hashes}):
            if found.get(name, '') not in (None, hashes.get(name)):
                raise ValueError(f'{name} is not what was saved')
        return state
    except Exception as error:  # Orbax and what it stands on have many kinds
        cause = error
        while (cause := cause.__cause__ or cause.__context__) is not None:
            if isinstance(cause, KeyboardInterrupt):  # Orbax turns it into an error of its own
                raise cause from None
        raise InputError(f'{path}: a damaged checkpoint ({_reason(error)})') from error


def _saved_config(about):
    """Returns the config in a checkpoint's metadata, if any; raises ValueError if it is damaged."""
    text = about.get('config', 'null')
    if _sha256(text) != about.get('config_sha256', _sha256('null')):
        raise ValueError('its config is not what was saved')
    return dict(json.loads(text) or {})


def _sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _hashes(state):
    """Returns {path: SHA-256 of dtype, shape and values} of a tree's leaves; None of `...`."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    with ThreadPoolExecutor() as threads:  # training waits for it
        hashed = threads.map(lambda each: None if each[1] is ... else _hash(each[1]), leaves)
        return dict(zip(names, hashed, strict=True))


def _hash(leaf):
    array = np.asarray(leaf)
    digest = hashlib.sha256(f'{array.dtype} {array.shape}'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _load(path, template):
    return ocp.load(path, template, checkpointable_name='state')


def _load_variables(path, shape):
    rest = jax.tree.map(lambda _: ..., shape['opt_state'])
    return _load(path, {**_arrays(shape), 'opt_state': rest})


def _arrays(shape):
    return jax.tree.map(lambda _: np.ndarray, shape)


@contextlib.contextmanager
def _quiet():
    """Keeps Orbax from printing a traceback from each thread that fails, while the context lasts.

    A failed read leaves others behind that find its event loop closed: they are waited for. Of
    several processes Orbax is used in process 0 alone, and waits for no other.
    """
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in NOISY}
    hook = sys.unraisablehook

    def ignore(unraisable):
        if not str(unraisable.exc_value).startswith(LEFTOVERS):
            hook(unraisable)

    for noisy in levels:
        noisy.setLevel(logging.CRITICAL)
    sys.unraisablehook = ignore
    try:
        with _in_first_process():
            yield
    except Exception:
        time.sleep(LEFT_BEHIND)
        gc.collect()  # tasks whose errors nobody asked for log when they go
        raise
    finally:
        sys.unraisablehook = hook
        for noisy, level in levels.items():
            noisy.setLevel(level)


def _in_first_process():
    """Returns a context in which Orbax runs in process 0 alone, if there are several."""
    if not hosts.several():
        return contextlib.nullcontext()
    only = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix='0')
    return ocp.Context(multiprocessing_options=only)


def _make_folder(directory, *_):
    """Makes the folder of checkpoints in place of Orbax, which cannot do so in one of several."""
    directory.mkdir(parents=True, exist_ok=True)


def _reason(error):
    """Returns what an error of Orbax, or of what it stands on, says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
