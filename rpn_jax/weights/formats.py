"""Weight files: bytes -> named arrays. What a file is, its first bytes say, not its name.

Read are safetensors, NumPy's .npz, torch's .pth (zip, and the format before it) and pickles of
arrays (.pkl). Nothing in a file is executed; a file cannot make the reader use more memory than a
fixed bound.
"""

import io
import lzma
import math
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rpn_jax.weights import pickles

LIMIT = 4 * 2**30  # bytes of a file, and of its tensors
SWELLING = 100  # a zip file may grow to so many times its size; weights hardly shrink
SMALL = 64 * 2**20  # bytes up to which it may grow anyhow
PICKLES = (b'\x80', b'(', b'}', b'c')  # how those of protocol 2 and later begin, and earlier ones
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a .pth file before the zip format
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)
UNSUPPORTED = (NotImplementedError, RuntimeError, KeyError)  # encrypted, or another compression
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
        # First: the length of its header may begin like any of the others.
        if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= size - 8:
            tensors = _read_safetensors(path)
        elif start.startswith(b'PK'):
            tensors = _read_zip(file, size)
        elif start[:1] in PICKLES:
            tensors = _read_pickle(io.BytesIO(file.read()))
        elif start[8:9] == b'{':
            tensors = _read_safetensors(path)  # which says what is missing
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


def _read_safetensors(path):
    try:
        with safe_open(path, framework='numpy') as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f'not a whole .safetensors file ({error})') from error


def _read_zip(file, size):
    """Reads a .npz file, whose members are .npy files, or a .pth file, whose first is a pickle."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            grown = sum(info.file_size for info in archive.infolist())
            if grown > min(max(SMALL, SWELLING * size), LIMIT):
                raise ValueError(f'a zip file that would swell from {size} to {grown} bytes')
            pickled = [name for name in members if name.endswith('/data.pkl')]
            if pickled:
                return _read_torch_zip(archive, pickled[0], members)
            if members and all(name.endswith('.npy') for name in members):
                return {name[: -len('.npy')]: _npy(archive.read(name), name) for name in members}
    except BROKEN + UNSUPPORTED as error:
        raise ValueError(f'not a whole zip file ({error})') from error
    raise ValueError('a zip file that is neither .npz nor .pth')


def _read_torch_zip(archive, name, members):
    folder = name.removesuffix('data.pkl')
    if f'{folder}byteorder' in members and archive.read(f'{folder}byteorder') != b'little':
        raise ValueError('a .pth file of a big-endian machine')
    state = pickles.read(io.BytesIO(archive.read(name)))

    def stored(key):
        return archive.read(f'{folder}data/{key}')

    return _tensors(state, stored)


def _read_pickle(file):
    """Reads a pickle of arrays, or the four pickles and the numbers of torch's former format."""
    state = pickles.read(file)
    if state != TORCH_MAGIC:
        return _tensors(state, {}.__getitem__)
    _, system, state, keys = (pickles.read(file) for _ in range(4))
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise ValueError('a .pth file of a big-endian machine')
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError('a damaged .pth file')
    widths = {s.key: s.dtype.itemsize for s in _storages(state)}
    stored = {}
    for key in keys:
        count = int.from_bytes(file.read(8), 'little')
        if key not in widths or count * widths[key] > LIMIT:
            raise ValueError('a damaged .pth file')
        stored[key] = file.read(count * widths[key])

    return _tensors(state, stored.__getitem__)


def _storages(state):
    """Yields the storages of all tensors anywhere in a tree of dicts, lists and tuples."""
    rest, seen = [state], set()
    while rest:
        item = rest.pop()
        if isinstance(item, pickles.Tensor):
            yield item.storage
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            rest.extend(item.values() if isinstance(item, dict) else item)


def _tensors(state, stored):
    """Returns the arrays of a state_dict, or of the checkpoint around one.

    stored(key) returns the bytes of a storage of torch's; KeyError says that there are none.
    """
    for key in STATES:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError('a pickle of something else than named tensors')
    cached, arrays = {}, {}  # the bytes by key; tensors may share them
    for name, value in state.items():
        if isinstance(value, pickles.Array):
            arrays[name] = value.value
        elif isinstance(value, pickles.Tensor):
            arrays[name] = _torch_array(name, value, stored, cached)
    if not arrays or any(array is None for array in arrays.values()):
        raise ValueError('a pickle without named tensors')
    return arrays


def _torch_array(name, tensor, stored, cached):
    storage = tensor.storage
    try:
        if storage.key not in cached:
            cached[storage.key] = stored(storage.key)
        # Fails where fewer bytes are there than the storage says.
        flat = np.frombuffer(cached[storage.key], storage.dtype, storage.count)
    except (KeyError, ValueError) as error:
        raise ValueError(f'the numbers of {name} are not in the file, or not all') from error
    try:
        return tensor.array(flat)
    except ValueError as error:
        raise ValueError(f'{name} is {error}') from error


def _npy(data, name):
    """Reads a .npy file's bytes, whose header must not promise more than they hold."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = getattr(np.lib.format, f'read_array_header_{version[0]}_{version[1]}')
        shape, fortran, dtype = header(file)
    except Exception as error:  # NumPy's parser lets out what Python's makes of the header
        raise ValueError(f'{name} is no whole .npy file') from error
    if dtype.kind == 'V' and dtype.itemsize == 2 and dtype.names is None:
        dtype = np.dtype(ml_dtypes.bfloat16)  # as NumPy writes it
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f'{name} has a shape that is none')
    if dtype.hasobject or dtype.kind not in 'fiubV':
        raise ValueError(f'{name} holds {dtype}, which are no numbers; nothing was unpickled')
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f'{name} was cut off')
    flat = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return flat.reshape(shape, order='F' if fortran else 'C')
