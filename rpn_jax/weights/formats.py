"""Weight files: bytes -> named arrays. The first bytes of a file say its format, not its name.

Read are safetensors, NumPy's .npz, torch's .pth (zip, and the format before it) and pickles of
arrays (.pkl). Nothing in a file is executed; a file cannot make the reader use more memory than a
fixed bound.
"""

import io
import lzma
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rpn_jax.weights import pickles

LIMIT = 4 * 2**30  # bytes of a file, and of its tensors
EXPANSION = 100  # a zip file may expand to so many times its size; weights hardly shrink
SMALL = 64 * 2**20  # bytes to which any zip file may expand
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
            expanded = sum(info.file_size for info in archive.infolist())
            if expanded > min(max(SMALL, EXPANSION * size), LIMIT):
                raise ValueError(f'a zip file of {size} bytes that would expand to {expanded}')
            pickled = [name for name in members if name.endswith('/data.pkl')]
            if pickled:
                return _read_torch_zip(archive, pickled[0], members)
            if members and all(name.endswith('.npy') for name in members):
                return {name[: -len('.npy')]: _npy(archive.read(name), name) for name in members}
    except BROKEN + UNSUPPORTED as error:
        raise ValueError(f'not a whole zip file ({error})') from error
    raise ValueError('a zip file that is neither .npz nor .pth')


def _npy(data, name):
    """Reads the bytes of a .npy file, which must be those of one array of numbers."""
    file = io.BytesIO(data)
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as error:  # of a damaged header NumPy lets out any error of Python's parser
        raise ValueError(
            f'{name} is no whole .npy file of numbers; nothing was unpickled'
        ) from error
    if not isinstance(array, np.ndarray) or file.read(1):
        raise ValueError(f'{name} is more than one .npy file')
    if array.dtype == 'V2':
        array = array.view(ml_dtypes.bfloat16)  # NumPy does not write its name
    elif array.dtype.kind not in 'fiub':
        raise ValueError(f'{name} holds {array.dtype}, which are no numbers')
    return array


def _read_torch_zip(archive, name, members):
    folder = name.removesuffix('data.pkl')
    if f'{folder}byteorder' in members and archive.read(f'{folder}byteorder') != b'little':
        raise ValueError('a .pth file of a big-endian machine')
    state = pickles.read(io.BytesIO(archive.read(name)))
    return _tensors(state, lambda key: archive.read(f'{folder}data/{key}'))


def _read_pickle(file):
    """Reads a pickle of arrays, or the five pickles and the numbers of torch's former format."""
    state = pickles.read(file)
    if state != TORCH_MAGIC:
        return _tensors(state, {}.__getitem__)
    _, system, state, keys = (pickles.read(file) for _ in range(4))
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise ValueError('a .pth file of a big-endian machine')
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError('a damaged .pth file')
    widths = {storage.key: storage.dtype.itemsize for storage in _storages(state)}
    numbers = {}
    for key in keys:
        count = int.from_bytes(file.read(8), 'little')
        if key not in widths or count * widths[key] > LIMIT:
            raise ValueError('a damaged .pth file')
        numbers[key] = file.read(count * widths[key])
    return _tensors(state, numbers.__getitem__)


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


def _tensors(state, read_storage):
    """Returns the arrays of a state_dict, or of the checkpoint around one.

    read_storage(key) returns the bytes of a storage of torch's, or raises KeyError.
    """
    for key in STATES:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError('a pickle of something else than named tensors')
    storages, encoded, arrays = {}, {}, {}  # bytes that tensors may share, by key and by text
    for name, value in state.items():
        if isinstance(value, pickles.Array):
            arrays[name] = value.array(encoded)
        elif isinstance(value, pickles.Tensor):
            arrays[name] = _torch_array(name, value, read_storage, storages)
    if not arrays:
        raise ValueError('a pickle without named tensors')
    return arrays


def _torch_array(name, tensor, read_storage, storages):
    storage = tensor.storage
    try:
        if storage.key not in storages:
            storages[storage.key] = read_storage(storage.key)
        # Fails where fewer bytes are there than the storage says.
        flat = np.frombuffer(storages[storage.key], storage.dtype, storage.count)
    except (KeyError, ValueError) as error:
        raise ValueError(f'the numbers of {name} are not in the file, or not all') from error
    try:
        return tensor.array(flat)
    except ValueError as error:
        raise ValueError(f'{name} is {error}') from error
