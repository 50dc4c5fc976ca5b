"""Several processes, on one host or many, that train one network: they start, agree, end together.

All of them do the same steps. Process 0 alone prints, logs, and reads and writes the workdir. Where
there is one process, as usual, nothing here does anything.
"""

import contextlib
import ctypes
import functools
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np

# JAX has no public way to the store of its coordinator; Orbax uses this one.
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from rpn_jax.console import show
from rpn_jax.errors import InputError, printable
from rpn_jax.training.meeting import PATIENCE, meet
from rpn_jax.training.parallel import everywhere

logger = logging.getLogger(__name__)
POLL = 1.0  # seconds between two looks at the others
LEAVE = 10  # seconds that a process which ends gives the others to end with it
START = 60  # seconds that JAX may take to connect processes that have met
SILENT = 5  # seconds without a sign of life after which a process may be the one that others await
FAILED, LEFT, EXCHANGE = 'rpn_jax/failed/', 'rpn_jax/left/', 'rpn_jax/exchange/'
PACE = 'rpn_jax/pace/'
REMEDY = 'start all of them again; a training goes on from its newest checkpoint'

_leaving = threading.RLock()  # of the thread that ends the process
_names = []  # host names, by process; empty where there is one process
_number = itertools.count()  # of exchanges
_begun = 0  # batches, which all processes compute together, that this one has begun


def start(coordinator='', processes=0, process=0, *, meet_timeout=300, heartbeat_timeout=45):
    """Connects this process with the others; must come before all else that JAX does.

    Without a coordinator JAX finds the others by what SLURM, Open MPI, a TPU or GKE tell. Timeouts
    are in seconds: within meet_timeout all must have come, and one that is silent for
    heartbeat_timeout is lost. Raises InputError where they do not come together.
    """
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.config.update('jax_enable_recoverability', True)  # else JAX crashes all when one is lost
    jax.config.update('jax_enable_preemption_service', False)  # signals are handled in progress
    try:
        socket.getaddrinfo(socket.gethostname(), None)  # as Gloo does, which then ends by a crash
    except OSError as error:
        raise InputError(
            f'{socket.gethostname()}: this name of the host has no address; let it be in '
            '/etc/hosts or DNS, with an address that the other hosts reach'
        ) from error
    where = {'initialization_timeout': meet_timeout}
    if coordinator:
        meet(coordinator, processes, process, meet_timeout)
        where = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
        where |= dict(cluster_detection_method='deactivate', initialization_timeout=START)
    try:
        jax.distributed.initialize(**where, heartbeat_timeout_seconds=heartbeat_timeout)
    except (ValueError, RuntimeError) as error:
        if coordinator:
            raise InputError(f'--coordinator={coordinator}: JAX cannot start ({error})') from error
        raise InputError(
            f'--distributed: JAX finds no cluster of SLURM, Open MPI, TPU or GKE ({error}); name '
            '--coordinator, --processes and --process'
        ) from error
    if global_state.num_processes > 1:
        _names[:] = [''] * global_state.num_processes
        _names[:] = exchange(socket.gethostname())
        _connect()
        threading.Thread(target=_watch, args=(heartbeat_timeout,), daemon=True).start()
        threading.Thread(target=_tell_pace, daemon=True).start()
        if not is_first():
            _tell_at_abort()


def _connect():
    """Makes the connections of all collectives now: Gloo waits 30 s for a process, then fails."""
    devices = everywhere(jax.local_devices())
    total = jax.pmap(lambda x: jax.lax.psum(x, 'all'), 'all', devices=devices)
    ones = np.ones(jax.local_device_count(), np.float32)
    total.lower(ones).compile()
    exchange('')  # compiled: all begin at once
    jax.block_until_ready(total(ones))
    exchange('')
    largest(0)
    broadcast(np.uint8(0))
    exchange('')


def several():
    """Says whether there is more than one process."""
    return len(_names) > 1


def is_first():
    """Says whether this is process 0, or the only one."""
    return global_state.process_id == 0


def named(process):
    """Returns how messages call a process: 'process 1 (node7)'."""
    return f'process {process} ({_names[process]})'


def line():
    """Returns a line on how many processes, hosts and devices there are."""
    counts = {name: _names.count(name) for name in _names}
    shown = ', '.join(f'{each} on {name}' for name, each in list(counts.items())[:8])
    more = ', ..' if len(counts) > 8 else ''
    return f'{len(_names)} processes ({shown}{more}) with {jax.device_count()} devices in all'


def prefix():
    """Returns what a message of this process begins with, '' where there is only one."""
    return f'{named(global_state.process_id)}: ' if several() else ''


def exchange(value):
    """Returns the values of all processes, in order, on all of them, as JSON holds them.

    It waits for all, and process 0 says for whom.
    """
    if not _names:
        return [value]
    client, key, own = global_state.client, f'{EXCHANGE}{next(_number)}/', global_state.process_id
    client.key_value_set(f'{key}{own}', json.dumps(value))
    if own == 0:
        values = [_wait_for(f'{key}{each}', each) for each in range(len(_names))]
        client.key_value_set(f'{key}all', json.dumps(values))
        return values
    return _wait_for(f'{key}all', 0)


def _wait_for(key, process):
    """Returns the value that a process puts under a key; signals are handled meanwhile."""
    began = shown = time.monotonic()
    while True:
        try:
            return json.loads(global_state.client.blocking_key_value_get(key, 500))
        except jax.errors.JaxRuntimeError as error:
            if 'DEADLINE_EXCEEDED' not in str(error):
                raise
        if is_first() and (now := time.monotonic()) - shown > PATIENCE:
            shown = now
            logger.info(f'waiting for {named(process)}, {now - began:.0f} s so far')


def from_first(function):
    """Returns, on all processes, what function() returns on process 0, which alone calls it."""
    if not several():
        return function()
    return exchange(function() if is_first() else None)[0]


def broadcast(tree):
    """Returns the arrays of process 0, bit for bit, on all; other processes give the shapes."""
    if not several():
        return tree
    bits = jax.tree.map(lambda x: np.ascontiguousarray(x).view(np.uint8), tree)
    bits = multihost_utils.broadcast_one_to_all(bits)

    def restored(x, bits):
        return np.asarray(bits).view(x.dtype).reshape(np.shape(x))

    return jax.tree.map(restored, jax.tree.map(np.asarray, tree), bits)


def largest(number):
    """Returns the maximum of a number over all processes, as of a signal that one of them got."""
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def agree(about):
    """Raises InputError, on all processes, where `about` is not the same {what: value} on all."""
    all_of = exchange(about)
    first = all_of[0]
    differences = [
        f'{named(process)} has {what} {own.get(what)!r}, {named(0)} has {first.get(what)!r}'
        for process, own in enumerate(all_of)
        for what in {**first, **own}
        if own.get(what) != first.get(what)
    ]
    if differences:
        more = f'; and {len(differences) - 8} differences more' if len(differences) > 8 else ''
        raise InputError(f'{"; ".join(differences[:8])}{more}; all processes must be started alike')


def leave(code, line='', failure=''):
    """Ends this process with an exit code and a line, and with a failure all others, which tell it.

    Of the threads that call it the first does so; others wait for the end.
    """
    _leaving.acquire()
    client, own = global_state.client, global_state.process_id
    if line:
        show(line, file=sys.stderr)
    with contextlib.suppress(Exception):  # the coordinator may be gone
        if failure:
            client.key_value_set(f'{FAILED}{own}', failure, allow_overwrite=True)
        client.key_value_set(f'{LEFT}{own}', '', allow_overwrite=True)
        end = time.monotonic() + LEAVE
        while (failure or own == 0) and time.monotonic() < end and len(_left()) < len(_names):
            time.sleep(0.1)  # the store ends with process 0, and JAX crashes those who miss it
        time.sleep(0.3 if own == 0 else 0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # the end of the interpreter would wait for processes that are lost


def _left():
    return {key.rpartition('/')[2] for key, _ in global_state.client.key_value_dir_get(LEFT)}


def _watch(heartbeat_timeout):
    """Ends this process, with a line, as soon as another has failed or is lost: a thread."""
    client, own, count = global_state.client, str(global_state.process_id), len(_names)
    while True:
        try:
            failures = client.key_value_dir_get(FAILED)
            live = client.get_live_nodes(list(range(count)))  # waits for those that are silent
            gone = [each for each in range(count) if each not in live]
            lost = [each for each in gone if str(each) not in _left()]
        except jax.errors.JaxRuntimeError:
            return  # process 0 is gone: JAX ends this process
        told = {key.rpartition('/')[2]: line for key, line in failures}
        if own not in told and (told or lost):
            lines = [f'{named(int(each))} has ended: {line}' for each, line in told.items()]
            lines += [
                f'{named(each)} is lost: no sign of life for {heartbeat_timeout} s'
                for each in lost
                if str(each) not in told
            ]
            leave(1, f'error: {prefix()}{"; ".join(lines)}; {REMEDY}')
        time.sleep(POLL)


def begin_batch():
    """Counts a batch that all processes compute together, which this one is about to begin."""
    global _begun
    _begun += 1


class Pace:
    """Finds out for which processes the others wait."""

    def __init__(self):
        self._told, self._heard, self._counts, self._moved, self._shown = {}, {}, None, 0, 0

    def line(self, told, now):
        """Returns a line on those that are waited for; '' while batches are begun, and in between.

        told are {process: 'BATCHES TICKS'}, as each process tells them now and then: those are
        waited for that have begun fewer batches than others, else those whose ticks stand still.
        """
        self._heard |= {each: now for each in told if told[each] != self._told.get(each)}
        self._told = told
        counts = {each: int(text.split()[0]) for each, text in told.items()}
        if counts != self._counts:
            self._counts, self._moved = counts, now
        if now - max(self._moved, self._shown) < PATIENCE:
            return ''
        behind = [each for each in counts if counts[each] < max(counts.values())]
        silent = [each for each in counts if now - self._heard[each] > SILENT]
        if not (awaited := behind or silent):
            return ''
        self._shown, many = now, len(awaited) > 8
        names = ', '.join(map(named, sorted(awaited)[:8])) + (' and others' if many else '')
        return f'waiting for {names}, {now - self._moved:.0f} s so far'


def _tell_pace():
    """Tells the others how far this process is; process 0 says who is waited for: a thread."""
    client, own, pace = global_state.client, global_state.process_id, Pace()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone
        for tick in itertools.count():
            client.key_value_set(f'{PACE}{own}', f'{_begun} {tick}', allow_overwrite=True)
            if own == 0:
                told = client.key_value_dir_get(PACE)
                told = {int(key.rpartition('/')[2]): text for key, text in told}
                if line := pace.line(told, time.monotonic()):
                    logger.warning(line)
            time.sleep(POLL)


def await_end(error):
    """Waits, after a collective failed by `error`, for the watching thread to tell who is lost.

    That ends the process; returns where nobody is lost.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(LEAVE)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            global_state.client.get_live_nodes(list(range(len(_names))))
            time.sleep(2 * POLL)


def _tell_at_abort():
    """Adds a line where JAX ends the process by an abort, as it does where process 0 is lost."""
    line = printable(
        f'error: {prefix()}JAX ended it for the reason above; if that is the coordination '
        f'service, {named(0)} is gone; {REMEDY}'
    )

    @functools.partial(ctypes.CFUNCTYPE(None, ctypes.c_int))
    def end(_):
        os.write(2, f'{line}\n'.encode())
        os._exit(1)

    _tell_at_abort.kept = end  # as long as C may call it
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = ctypes.c_int, type(end)
    libc.signal(signal.SIGABRT, end)
