"""Weight files: bytes -> named arrays. The first bytes of a file say its format, not its name.

Read are safetensors, NumPy's .npz, torch's .pth (zip, and the format before it) and pickles of
arrays (.pkl). Nothing in a file is executed; a file cannot make the reader use more memory than a
fixed bound.
"""

import contextlib
import functools
import io
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


def read(path):
    """Returns the tensors of a weights file: a dict of NumPy arrays by the file's own names.

    Raises ValueError, which says what is wrong, for a file that is no whole weights file.
    """
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
                tensors = load_file(path)
        elif start.startswith(b'PK'):
            with _refusing('zip'), zipfile.ZipFile(file) as archive:
                tensors = _read_zip(archive, size)
        elif start.startswith(PICKLES):
            tensors = _read_pickle(io.BytesIO(file.read()))
        else:
            raise ValueError('not a .safetensors, .npz, .pth or .pkl file')
    if sum(tensor.nbytes for tensor in tensors.values()) > LIMIT:
        raise ValueError(f'its tensors take more than {LIMIT >> 30} GiB')
    return tensors


def metadata(path):
    """Returns the metadata of a whole .safetensors file, {} of any other."""
    try:
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


def _read_zip(archive, size):
    """Reads a .npz file, whose members are .npy files, or a .pth file, one of whose is a pickle."""
    names = archive.namelist()
    expanded = sum(info.file_size for info in archive.infolist())
    if expanded > min(max(SMALL, EXPANSION * size), LIMIT):
        raise ValueError(f'a zip file of {size} bytes that would expand to {expanded}')
    for name in names:
        if name.endswith('/data.pkl'):
            return _read_torch_zip(archive, name.removesuffix('data.pkl'))
    if not names or not all(name.endswith('.npy') for name in names):
        raise ValueError('a zip file that is neither .npz nor .pth')
    return {name.removesuffix('.npy'): _npy(archive.read(name), name) for name in names}


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


def _read_torch_zip(archive, folder):
    order = f'{folder}byteorder'
    if order in archive.namelist() and archive.read(order) != b'little':
        raise ValueError('a .pth file of a big-endian machine')
    state, _ = pickles.read(io.BytesIO(archive.read(f'{folder}data.pkl')))
    return _tensors(state, lambda key: archive.read(f'{folder}data/{key}'))


def _read_pickle(file):
    """Reads a pickle of arrays, or the five pickles and the numbers of torch's former format."""
    state, _ = pickles.read(file)
    if state != TORCH_MAGIC:
        return _tensors(state, {}.__getitem__)
    _, (system, _), (state, storages), (keys, _) = [pickles.read(file) for _ in range(4)]
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise ValueError('a .pth file of a big-endian machine')
    if not isinstance(keys, list) or not all(isinstance(k, str) and k in storages for k in keys):
        raise ValueError('a damaged .pth file')
    numbers = {}
    for key in keys:
        dtype, _, count = storages[key]
        if int.from_bytes(file.read(8), 'little') != count:
            raise ValueError('a damaged .pth file')
        numbers[key] = file.read(count * dtype.itemsize)
    return _tensors(state, numbers.__getitem__)


def _tensors(state, read_storage):
    """Returns the arrays of a state_dict, or of the checkpoint around one.

    read_storage(key) returns the bytes of a storage of torch's, or raises KeyError.
    """
    for key in STATES:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError('a pickle of something else than named tensors')
    arrays, read_once = {}, functools.cache(read_storage)  # tensors may share a storage
    for name, value in state.items():
        try:
            if isinstance(value, pickles.Array):
                arrays[name] = value.value
            elif isinstance(value, pickles.Tensor):
                arrays[name] = value.array(read_once)
        except ValueError as error:
            raise ValueError(f'{name} is {error}') from error
    if not arrays:
        raise ValueError('a pickle without named tensors')
    return arrays
