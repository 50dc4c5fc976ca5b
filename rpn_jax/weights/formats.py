"""Weight files: bytes -> named arrays. The first bytes of a file say its format, not its name.

Read are safetensors, NumPy's .npz, torch's .pth (zip, and the format before it) and pickles of
arrays (.pkl). Nothing in a file is executed; a file cannot make the reader use more memory than a
fixed bound.
"""

import contextlib
import functools
import io
import re
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from rpn_jax.weights import pickles

LIMIT = 4 * 2**30  # bytes of a file, and of its tensors
EXPANSION = 100  # a zip file may expand to so many times its size; weights hardly shrink
SMALL = 64 * 2**20  # bytes to which any zip file may expand
PICKLES = (b'\x80', b'(', b'}', b'c')  # how those of protocol 2 and later begin, and earlier ones
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a .pth file before the zip format
STATES = ('model', 'state_dict', 'model_state_dict', 'blobs')  # where checkpoints keep the weights
LONGEST = 100  # characters of a key that leads to weights
SHOWN = 20  # keys that an error lists


class Tensors(dict):
    """Arrays by name; passed_over lists what else the file has, by the names there."""

    def __init__(self, tensors, passed_over=()):
        super().__init__(tensors)
        self.passed_over = list(passed_over)


def read(path, pretrained_key=''):
    """Returns the Tensors of a weights file, NumPy arrays by the file's own names.

    pretrained_key picks what stands under a key of a checkpoint, or the tensors whose names go on
    after it. Raises ValueError, which says what is wrong, for a file that is no whole weights file,
    and where a checkpoint has weights under other keys than STATES, or none under pretrained_key.
    """
    key = pretrained_key
    path = Path(path)
    size = path.stat().st_size
    if size > LIMIT:
        raise ValueError(f'{size / 2**30:.0f} GiB; weights of at most {LIMIT >> 30} GiB are read')
    with path.open('rb') as file:
        start = file.read(16)
        file.seek(0)
        if not start:
            raise ValueError('an empty file')
        if start[8:9] == b'{':  # first: the length before it may begin like any of the others
            with _refusing('.safetensors'):
                tensors = Tensors(load_file(path))
        elif start.startswith(b'PK'):
            with _refusing('zip'), zipfile.ZipFile(file) as archive:
                tensors, key = _read_zip(archive, size, key)
        elif start.startswith(PICKLES):
            tensors, key = _read_pickle(io.BytesIO(file.read()), key)
        else:
            raise ValueError('not a .safetensors, .npz, .pth or .pkl file')
    if sum(tensor.nbytes for tensor in tensors.values()) > LIMIT:
        raise ValueError(f'its tensors take more than {LIMIT >> 30} GiB')
    return _below(tensors, key) if key else tensors


def metadata(path):
    """Returns the metadata of a whole .safetensors file, {} of any other."""
    try:
        if not Path(path).is_file():  # reading a pipe would wait for ever
            return {}
        with safe_open(path, framework='numpy') as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


@contextlib.contextmanager
def _refusing(kind):
    """Raises ValueError for what a library raises of a damaged file, which may be any error."""
    try:
        yield
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f'not a whole {kind} file ({error})') from error


def _read_zip(archive, size, key):
    """Reads a .npz file, whose members are .npy files, or a .pth file, one of whose is a pickle."""
    names = archive.namelist()
    expanded = sum(info.file_size for info in archive.infolist())
    if expanded > min(max(SMALL, EXPANSION * size), LIMIT):
        raise ValueError(f'a zip file of {size} bytes that would expand to {expanded}')
    for name in names:
        if name.endswith('/data.pkl'):
            return _read_torch_zip(archive, name.removesuffix('data.pkl'), key)
    if not names or not all(name.endswith('.npy') for name in names):
        raise ValueError('a zip file that is neither .npz nor .pth')
    arrays = {name.removesuffix('.npy'): _npy(archive.read(name), name) for name in names}
    return Tensors(arrays), key


def _npy(data, name):
    """Reads the bytes of a .npy file, which must be those of one array of numbers."""
    file = io.BytesIO(data)
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # of a damaged header NumPy lets out any error of Python's parser
        raise ValueError(f'{name} is no whole .npy file; nothing was unpickled') from error
    if file.read(1):
        raise ValueError(f'{name} is more than one .npy file')
    if array.dtype == 'V2':
        array = array.view(ml_dtypes.bfloat16)  # NumPy does not write its name
    elif array.dtype.kind not in 'fiub':
        raise ValueError(f'{name} holds {array.dtype}, which are no numbers')
    return array


def _read_torch_zip(archive, folder, key):
    order = f'{folder}byteorder'
    if order in archive.namelist() and archive.read(order) != b'little':
        raise ValueError('a .pth file of a big-endian machine')
    state, _ = pickles.read(io.BytesIO(archive.read(f'{folder}data.pkl')))
    return _tensors(state, key, lambda number: archive.read(f'{folder}data/{number}'))


def _read_pickle(file, key):
    """Reads a pickle of arrays, or the five pickles and the numbers of torch's former format."""
    state, _ = pickles.read(file)
    if state != TORCH_MAGIC:
        return _tensors(state, key, {}.__getitem__)
    _, (system, _), (state, storages), (keys, _) = [pickles.read(file) for _ in range(4)]
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise ValueError('a .pth file of a big-endian machine')
    if not isinstance(keys, list) or not all(isinstance(k, str) and k in storages for k in keys):
        raise ValueError('a damaged .pth file')
    numbers = {}
    for number in keys:
        dtype, _, count = storages[number]
        if int.from_bytes(file.read(8), 'little') != count:
            raise ValueError('a damaged .pth file')
        numbers[number] = file.read(count * dtype.itemsize)
    return _tensors(state, key, numbers.__getitem__)


def _tensors(tree, key, read_storage):
    """Returns the Tensors of a state_dict, or of the checkpoint around one, and the rest of key.

    read_storage(number) returns the bytes of a storage of torch's, or raises KeyError.
    """
    path, rest = _choose(_states(tree), key)
    state, passed_over = tree, []
    for part in path:
        passed_over += [str(name) for name in state if name != part]
        state = state[part]
    if not all(isinstance(name, str) for name in state):
        raise ValueError('a pickle of something else than named tensors')
    arrays, read_once = {}, functools.cache(read_storage)  # tensors may share a storage
    for name, value in state.items():
        try:
            if isinstance(value, pickles.Array):
                arrays[name] = value.value
            elif isinstance(value, pickles.Tensor):
                arrays[name] = value.array(read_once)
            else:
                passed_over.append(name)
        except ValueError as error:
            raise ValueError(f'{name} is {error}') from error
    return Tensors(arrays, passed_over), rest


def _states(tree):
    """Returns {path: number of tensors} of the dicts of a checkpoint that hold any, by keys."""
    if not isinstance(tree, dict):
        raise ValueError('a pickle of something else than named tensors')
    counts, seen, waiting = {}, {id(tree)}, [((), tree)]
    for path, state in waiting:
        values = state.values()
        if count := sum(isinstance(v, pickles.Array | pickles.Tensor) for v in values):
            counts[path] = count
        for name, value in state.items():
            is_key = isinstance(name, str) and len(name) <= LONGEST and len(path) < 5
            if is_key and isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(((*path, name), value))
    if not counts:
        raise ValueError('a pickle without named tensors')
    return counts


def _choose(counts, key):
    """Returns which of the paths of _states has the weights, and what of key is not part of it."""
    names = {path: '.'.join(path) for path in counts}
    below = {  # path: what comes after key
        path: [part for part in name[len(key) :].split('.') if part]
        for path, name in names.items()
        if not key or f'{name}.'.startswith(f'{key}.')
    }
    if usual := [path for path, inside in below.items() if set(inside) <= set(STATES)]:
        order = {path: list(map(STATES.index, below[path])) for path in usual}
        return min(usual, key=lambda path: (not order[path], order[path])), ''
    if key and len(below) == 1:
        return *below, ''
    if below:
        found = sorted(below, key=counts.get, reverse=True)
        listed = ', '.join(f'{names[path]} ({counts[path]} tensors)' for path in found[:SHOWN])
        raise ValueError(f'its weights stand under {listed}; pretrained_key picks one of them')
    # It is, or ends with, what the names of tensors begin with.
    around = [path for path in counts if path and f'{key}.'.startswith(f'{names[path]}.')]
    path = max(around, key=len) if around else _choose(counts, '')[0]
    return path, key[len(names[path]) + 1 :] if around else key


def _below(tensors, key):
    """Returns the Tensors whose names have key before a dot, without it and what comes before."""
    pattern = re.compile(rf'((?:.*?\.)??){re.escape(key)}\.(.+)', re.DOTALL)
    matches = {name: pattern.fullmatch(name) for name in tensors}
    starts = sorted({match[1] for match in matches.values() if match})
    if not starts:
        tops = ', '.join(list(dict.fromkeys(name.partition('.')[0] for name in tensors))[:SHOWN])
        raise ValueError(f'no tensors under pretrained_key={key!r}; names begin with {tops}')
    if len(starts) > 1 and starts[0]:
        several = ', '.join(f'{start}{key}' for start in starts[:SHOWN])
        raise ValueError(f'pretrained_key={key!r} may be {several}; name one')
    chosen = {name: m[2] for name, m in matches.items() if m and m[1] == starts[0]}
    others = [name for name in tensors if name not in chosen]
    picked = {new: tensors[name] for name, new in chosen.items()}
    return Tensors(picked, [*tensors.passed_over, *others])
