"""The folder of a run: its config, which must agree to resume, its lock, its metrics."""

import collections
import contextlib
import hashlib
import itertools
import json
import logging
import secrets
import socket
import struct
import time
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from rpn_jax import files
from rpn_jax.errors import InputError, disk_line
from rpn_jax.files import cache_folder, make_folder, write_atomically
from rpn_jax.training import checkpoint, hosts

logger = logging.getLogger(__name__)
UNLOGGED = 'unlogged.json'  # metrics that are in no line of metrics.jsonl yet, by checkpoint
# What made the weights must agree for a run to go on: sections and single keys. Horizons, other
# paths of the same data, how much memory is used, and how often something is written or evaluated
# may change.
DATA = (
    *'source name train_split categories orientation resize image_size max_size canvases'.split(),
    *'canvas_multiple batch_size flip pixels mean std'.split(),
)
IDENTITY = (
    *('seed', 'model', 'anchors', 'targets', 'loss', 'optim'),
    *(f'data.{key}' for key in DATA),
)
FREE = 'optim.schedule_steps', 'optim.skip_nonfinite', 'model.remat', 'model.conv'
# Keys that workdirs of earlier versions lack, and the values that these stood for.
YOUNGER = {
    'model.fpn_channels': 256,
    'model.fpn_extra': 1,
    'model.fpn_norm': '',
    'model.fpn_stages': (),
    'model.head_convs': 1,
    'model.pretrained_key': '',
    'data.categories': (),
    'data.orientation': 'annotation',
    'data.canvas_multiple': 32,
}
# What the network is and how its input is made: no mode may read its weights otherwise.
NETWORK = ('model', 'anchors', 'data.pixels', 'data.mean', 'data.std')
# What the figures of an evaluation depend on beside the network.
MEASURED = (
    *('seed', 'targets', 'loss', 'proposals', 'evaluation.images'),
    *'data.source data.name data.train_split data.eval_split data.categories data.scenes'.split(),
    *'data.resize data.image_size data.max_size data.canvases data.canvas_multiple'.split(),
    *'data.max_boxes data.on_bad data.orientation data.eval_path data.eval_images'.split(),
    'data.eval_annotations',
)


def read_config(workdir):
    """Returns the config of a workdir as nested dicts, lists as tuples.

    Raises InputError where there is none.
    """
    path = Path(workdir) / 'config.json'
    if not path.is_file():
        raise InputError(f'{path}: no such file; name a --config, or the --workdir of a run')
    try:
        config = files.read_json(path)
        if not isinstance(config, dict):
            raise ValueError('which is a JSON object')
        return _plain(config)
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: not a config ({error})') from error


def check(workdir, config, names=IDENTITY):
    """Raises InputError, naming every key that differs, unless a config is that of the workdir.

    config is a resolved config, or nested dicts; names are the sections and keys to compare.
    """
    if changes := changed(workdir, config, names):
        differences = [f'{key} was {old!r}, is {new!r}' for key, (old, new) in changes.items()]
        folder = Path(workdir)
        numbered = (folder.with_name(f'{folder.name}-{n}') for n in itertools.count(2))
        free = next(each for each in numbered if not each.exists())
        raise InputError(
            f'workdir {workdir} belongs to another config: {"; ".join(differences)}; name another '
            f'--workdir, such as --workdir={free}, or set these keys back'
        )


def changed(workdir, config, names):
    """Returns {'section.key': (value in the workdir, value in a config)} where these differ.

    config and names are as in check.
    """
    old, new = identity(read_config(workdir), names), identity(config, names)
    old = {key: YOUNGER[key] for key in new if key in YOUNGER} | old
    return {key: (value, new.get(key)) for key, value in old.items() if value != new.get(key)}


def check_file(workdir, step=None):
    """Raises InputError where a workdir's config.json is not that of its checkpoint.

    step None takes the newest that tells its config; those of earlier versions do not.
    """
    path = Path(workdir) / 'config.json'
    saved, step = checkpoint.config_of(workdir, step)
    if not saved or not path.is_file():
        return
    saved, written = _plain(saved), identity(read_config(workdir))
    if differences := [
        f'{key} is {written.get(key)!r}, but {value!r} in the checkpoint of step {step}'
        for key, value in saved.items()
        if value != written.get(key)
    ]:
        raise InputError(f'{path}: {"; ".join(differences)}; set it back in this file')


def identity(config, names=IDENTITY):
    """Returns {'section.key': value} of what may not change in a run; names as in check."""
    values = flatten_dict(_plain(config), sep='.')
    return {
        key: values[key]
        for name in names
        for key in sorted(values)
        if f'{key}.'.startswith(f'{name}.') and key not in FREE
    }


def begin(workdir, config):
    """Makes the folder and writes its config.json."""
    make_folder(workdir)
    files.write_json(Path(workdir) / 'config.json', _plain(config), indent=2)


@contextlib.contextmanager
def locked(workdir):
    """Keeps other processes from training in a workdir while the context lasts.

    The lock ends with the process that holds it, however that ends. The folder is made, and removed
    again if nothing was written to it.
    """
    folder = Path(workdir)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder)
    message = f'workdir {workdir}: another process trains in it; wait for it, or name another'
    try:
        with files.locked(folder / '.lock', f'{message} --workdir', wait=False):
            yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()


def not_seen(folder):
    """Returns a line on the processes that do not see a folder of process 0, '' if all do."""
    path, own = Path(folder) / '.hosts', ''

    def write():
        token = secrets.token_hex(8)
        write_atomically(path, token)
        return token

    token = hosts.from_first(write)
    with contextlib.suppress(OSError):
        own = path.read_text()
    seen = hosts.exchange(own == token)
    if hosts.is_first():
        path.unlink()
    if without := [hosts.named(each) for each, sees in enumerate(seen) if not sees]:
        many = f'{", ".join(without[:8])}{" and others" if len(without) > 8 else ""}'
        return f'{folder} of {hosts.named(0)} is not seen by {many}'
    return ''


def keep_compilations():
    """Keeps what is compiled in the cache folder for the next start; JAX's own setting wins."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled'))


class History:
    """Called with a step and scalars, appends them to metrics.jsonl and to TensorBoard's events.

    scalars are {name: number}; nested ones go to the file only. Lines after the step `start`, from
    which a run goes on, are cut. What cannot be written is told, once, and tried again with the
    next line.
    """

    def __init__(self, workdir, start):
        self._path = Path(workdir) / 'metrics.jsonl'
        lines = [line for line in read_history(workdir) if line['step'] <= start]
        write_atomically(self._path, ''.join(json.dumps(line) + '\n' for line in lines))
        self._write_events = _events(Path(workdir), start)
        self._waiting, self._told = collections.deque(), False

    def __call__(self, step, scalars):
        self._waiting += (self._write_line, step, scalars), (self._write_events, step, scalars)
        try:
            self.flush()
        except OSError as error:
            if not self._told:
                again = 'training goes on, and tries again with the next line'
                logger.warning(f'{hosts.prefix()}{disk_line(error)}; {again}')
            self._told = True

    def flush(self):
        """Writes what waits; raises OSError where it cannot be written."""
        while self._waiting:
            write, *item = self._waiting[0]
            write(*item)
            self._waiting.popleft()
        self._told = False

    def _write_line(self, step, scalars):
        files.append(self._path, f'{json.dumps({"step": step, **scalars})}\n'.encode())


def _events(folder, start):
    """Returns write(step, scalars), which appends to a new file of TensorBoard's events.

    SummaryWriter would do it in a thread: where that fails, the run waits for it for ever.
    """
    # Imported here: tests and notebooks that never log need not wait for it.
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import Summary, scalar

    path = folder / f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'

    def append(step, **content):
        data = Event(step=step, wall_time=time.time(), **content).SerializeToString()
        length = struct.pack('<Q', len(data))
        sums = (struct.pack('<I', masked_crc32c(each)) for each in (length, data))
        files.append(path, length + next(sums) + data + next(sums))

    def write(step, scalars):
        summary = Summary()
        for name, value in scalars.items():
            if value is not None and not isinstance(value, dict):
                summary.MergeFrom(scalar(name, value))
        append(step, summary=summary)

    append(0, file_version='brain.Event:2')
    if start:  # hides what an earlier process wrote of later steps
        append(start + 1, session_log=SessionLog(status=SessionLog.START))
    return write


def read_history(workdir):
    """Returns the lines of metrics.jsonl as dicts; damaged ones are left out, with one warning.

    A last line that a crash cut off is left out without.
    """
    path, lines, damaged = Path(workdir) / 'metrics.jsonl', [], []
    content = files.read(path, files.MOST_ROWS) if path.exists() else b''
    for number, line in enumerate(content.split(b'\n')):
        try:
            entry = files.parse_json(line)
            if not all(isinstance(value, dict | int | float | None) for value in entry.values()):
                raise ValueError
            lines.append(entry | {'step': int(entry['step'])})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            damaged += [number + 1] if line and number < content.count(b'\n') else []
    if damaged:
        where = f'{path}: {len(damaged)} damaged lines are left out, the first of them line'
        logger.warning(f'{where} {damaged[0]}')
    return lines


def is_evaluated(workdir, step):
    """Says whether metrics.jsonl has the figures of an evaluation at a step."""
    return any(line['step'] == step and 'loss' not in line for line in read_history(workdir))


def figures(workdir, name):
    """Returns {step: figure} of one figure of the evaluations in metrics.jsonl."""
    return {line['step']: line[name] for line in read_history(workdir) if name in line}


def write_unlogged(workdir, step, window):
    """Keeps the metrics of the steps since the last line of metrics.jsonl, beside a checkpoint.

    window is a list of nested dicts of float32 arrays. Those of older checkpoints are kept as long
    as these.
    """
    path, kept = Path(workdir) / UNLOGGED, {}
    saved = set(map(str, checkpoint.steps(workdir)))
    with contextlib.suppress(OSError, ValueError):  # what is damaged is told where it is read
        kept = {name: own for name, own in _unlogged(path).items() if name in saved}
    if window:
        content = jax.tree.map(lambda x: np.asarray(x, np.float32).tolist(), window)
        kept[str(step)] = {'window': content, 'sha256': _sha256(content)}
    if kept or path.exists():
        files.write_json(path, kept)


def read_unlogged(workdir, step):
    """Returns the window that write_unlogged kept for a step, [] where there is none.

    What is not what was written is left out, with a warning.
    """
    path = Path(workdir) / UNLOGGED
    try:
        if (kept := _unlogged(path).get(str(step))) is None:
            return []
        if kept['sha256'] != _sha256(kept['window']):
            raise ValueError
        return [_as_arrays(metrics) for metrics in kept['window']]
    except (OSError, ValueError, TypeError, KeyError):
        what = 'is damaged: the next line of metrics.jsonl is only of the steps after'
        logger.warning(f'{path}: {what} {step}')
        return []


def _sha256(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _as_arrays(value):
    if isinstance(value, dict):
        return {key: _as_arrays(item) for key, item in value.items()}
    return np.float32(value)


def _unlogged(path):
    """Returns {step: what is kept}, {} without a file; raises OSError or ValueError if damaged."""
    content = files.read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise ValueError
    return content


def _plain(value, levels=8):
    """Returns a config as nested dicts, lists as tuples; raises ValueError for too many levels."""
    if levels == 0:
        raise ValueError('nested too deeply')
    if hasattr(value, 'items'):
        return {key: _plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item, levels - 1) for item in value)
    return value
