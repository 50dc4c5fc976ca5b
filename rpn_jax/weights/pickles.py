"""Pickles of tensors, read by an Unpickler that calls this module's own functions and no others.

`find_class` decides which names a pickle may ask for: those of GLOBALS. Before it loads anything, a
pickle is checked for what would take Python's Unpickler too much time or memory.
"""

import io
import pickle
import pickletools
from typing import NamedTuple

import ml_dtypes
import numpy as np

OPERATIONS = 1_000_000  # at most, of a pickle; the weights of a ResNet-152 take some 50,000
NUMBERED = 20_000  # at most, keys of dicts that are numbers; an optimizer has some hundred
ARGUMENTS = 100  # at most, of a call; torch's take seven
CODES = 'f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1'.split()  # NumPy's number types
REFUSED = set(  # operations that neither torch nor NumPy writes
    'POP POP_MARK DUP PERSID INST OBJ NEWOBJ_EX EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER'.split()
)
PUT = {'PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'}
GET = {'GET', 'BINGET', 'LONG_BINGET'}
CALLS = {'REDUCE', 'NEWOBJ', 'BINPERSID'}
HASHED = {  # which of the values that an operation takes become keys
    'SETITEM': slice(1, 2),
    'SETITEMS': slice(0, None, 2),
    'DICT': slice(0, None, 2),
    'ADDITEMS': slice(0, None),
    'FROZENSET': slice(0, None),
}
TEXT, NUMBERS = {'str', 'bytes', 'bytes_or_str'}, {'int', 'int_or_bool', 'float', 'bool', 'None'}


class Storage(NamedTuple):
    """Names the flat numbers that torch keeps outside the pickle: dtype, key and count."""

    dtype: np.dtype
    key: str
    count: int


class Tensor(NamedTuple):
    """Describes a view of a Storage: first element, shape and strides, counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, flat):
        """Returns the tensor as a view of flat, the storage's numbers [count].

        Raises ValueError where it would reach outside of them.
        """
        if not all(_is_count(n) for n in (self.offset, *self.shape, *self.strides)):
            raise ValueError('a tensor whose shape is no shape')
        if len(self.shape) != len(self.strides) or len(self.shape) > 8:
            raise ValueError('a tensor whose strides do not fit its shape')
        size, last = 1, self.offset
        for side, stride in zip(self.shape, self.strides, strict=True):
            size, last = size * side, last + (side - 1) * stride
        if size and (last >= len(flat) or size > len(flat)):
            raise ValueError('a tensor that reaches outside its storage')
        if not size:
            return np.zeros(self.shape, flat.dtype)
        strides = [stride * flat.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, strides, writeable=False
        )


class Array:
    """Describes an array of NumPy's: its numbers as bytes, or as text of one character a byte."""

    def __init__(self, data=None, dtype=None, shape=(), order='C'):
        self.data, self.dtype, self.shape, self.order = data, dtype, shape, order

    def __setstate__(self, state):
        if len(_expect(state, tuple)) != 5:
            raise ValueError('a damaged pickle')
        _, self.shape, self.dtype, is_fortran, self.data = state
        self.order = 'F' if is_fortran else 'C'

    def array(self, encoded):
        """Returns the array, a view of its bytes; encoded keeps those of each text, {text: bytes}.

        The same text, used by many arrays, so takes memory once. Raises ValueError where the bytes
        do not fill the shape.
        """
        data = self.data
        if isinstance(data, str):
            if data not in encoded:
                encoded[data] = data.encode('latin1')
            data = encoded[data]
        has_numbers = isinstance(data, bytes | bytearray) and isinstance(self.dtype, Dtype)
        has_shape = isinstance(self.shape, tuple) and all(map(_is_count, self.shape))
        if not has_numbers or not has_shape or self.order not in ('C', 'F'):
            raise ValueError('an array that is not one of numbers')
        return np.frombuffer(data, self.dtype.dtype).reshape(self.shape, order=self.order)


class Dtype:
    """A number type of NumPy's; its byte order comes with its state."""

    def __init__(self, code, *_):
        self.code, self.order = _expect(code, str), '='
        if code not in CODES:
            raise ValueError(f'arrays of {code[:20]!r}, which are not numbers')

    def __setstate__(self, state):
        self.order = _expect(_expect(state, tuple)[1], str)
        if self.order not in tuple('<>|='):
            raise ValueError(f'a byte order {self.order[:20]!r}')

    @property
    def dtype(self):
        """The NumPy dtype."""
        return np.dtype(self.code).newbyteorder(self.order)


class Placeholder:
    """Stands for an object without weights, as checkpoints hold them; ignores all it is given."""

    __slots__ = ()

    def __new__(cls, *_):
        return super().__new__(cls)

    @staticmethod
    def _ignore(*_):
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Dict(dict):
    """A dict that ignores its state, which of a state_dict is the versions of its modules."""

    def __setstate__(self, state):
        pass


class _Global:
    """What a pickle gets for a name: a function to call, or the dtype of a storage.

    A pickle could set the attributes of a plain function, or call the constructor of a plain dtype.
    """

    __slots__ = 'function', 'dtype'

    def __init__(self, function=None, dtype=None):
        self.function, self.dtype = function, dtype

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setstate__(self, state):
        raise ValueError('a damaged pickle')


def _expect(value, kind):
    if not isinstance(value, kind):
        raise ValueError('a damaged pickle')
    return value


def _is_count(number):
    return type(number) is int and 0 <= number < 2**40


def _ordered(pairs=None):
    if pairs is None:
        return _Dict()
    result = _Dict({_expect(key, str): value for key, value in _expect(pairs, list)})
    pairs.clear()  # a pickle that names the same pairs again must not get more memory by it
    return result


def _tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage):
        raise ValueError('a tensor without a storage')
    return Tensor(storage, offset, _expect(shape, tuple), _expect(strides, tuple))


GLOBALS = {
    ('collections', 'OrderedDict'): _Global(_ordered),
    ('torch._utils', '_rebuild_tensor'): _Global(_tensor),  # until torch 0.3
    ('torch._utils', '_rebuild_tensor_v2'): _Global(_tensor),
    ('torch._utils', '_rebuild_parameter'): _Global(lambda data, *_: _expect(data, Tensor)),
    ('_codecs', 'encode'): _Global(lambda text, *_: _expect(text, str)),  # Array.array does it
    ('__builtin__', 'bytes'): _Global(lambda: b''),  # how protocols 0 to 2 write no bytes
    ('numpy', 'dtype'): _Global(Dtype),
    ('numpy', 'ndarray'): Placeholder,
}
for _core in ('numpy.core', 'numpy._core'):  # before and since NumPy 2
    GLOBALS |= {
        (f'{_core}.multiarray', '_reconstruct'): _Global(lambda *_: Array()),
        (f'{_core}.multiarray', 'scalar'): _Global(lambda dtype, data: Array(data, dtype)),
        (f'{_core}.numeric', '_frombuffer'): _Global(Array),
    }
for _name, _dtype in {
    'Double': np.float64,
    'Float': np.float32,
    'Half': np.float16,
    'BFloat16': ml_dtypes.bfloat16,
    'Long': np.int64,
    'Int': np.int32,
    'Short': np.int16,
    'Char': np.int8,
    'Byte': np.uint8,
    'Bool': np.bool_,
}.items():
    GLOBALS['torch', f'{_name}Storage'] = _Global(dtype=np.dtype(_dtype))
BUILTINS = 'bool complex dict float frozenset int list range set slice str tuple xrange'
for _module, _names in {
    'argparse': 'Namespace',
    'builtins': BUILTINS,
    '__builtin__': BUILTINS,
    'collections': 'Counter defaultdict deque',
    'datetime': 'date datetime time timedelta timezone',
    'pathlib': 'Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath',
    'pathlib._local': 'Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath',
    'torch': 'Size bfloat16 bool device float16 float32 float64 int32 int64 uint8',
    'types': 'SimpleNamespace',
}.items():
    GLOBALS |= {(_module, name): Placeholder for name in _names.split()}


def read(file: io.BytesIO):
    """Reads one pickle, up to its end, as dicts, lists, tuples, text and numbers.

    Tensors of torch come as Tensor, NumPy's as Array, other objects that a checkpoint may hold as
    Placeholder. Raises ValueError for a name outside GLOBALS, which is named, for an operation that
    tensors do not need, and for what is not whole. Memory is at most a small multiple of the
    pickle's size, or some 300 MiB.
    """
    start = file.tell()
    try:
        _check(file)
        end = file.tell()
        file.seek(start)
        state = _Unpickler(file, encoding='latin1').load()  # Python 2 has text and bytes as one
    except ValueError:
        raise
    except Exception as error:  # whatever comes of operations that do not fit together
        raise ValueError('a damaged pickle') from error
    file.seek(end)
    return state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in GLOBALS:
            raise ValueError(
                f'its pickle asks for {module}.{name}, which is no part of a tensor; nothing was '
                'run. Save a state_dict alone, or as .safetensors'
            )
        return GLOBALS[module, name]

    def persistent_load(self, pid):
        match pid:
            case ('storage', _Global(dtype=np.dtype() as dtype), str(key), _, count, *view):
                if _is_count(count) and not any(view):
                    return Storage(dtype, key, count)
        raise ValueError('a tensor that is kept in a way not known here')


def _check(file):
    """Raises ValueError for a pickle that would take Unpickler too much time or memory.

    Unpickler makes room for any index of its memo (34 GB for five bytes) and for any length, copies
    the arguments of every call, and hashes any key: that of a pair of pairs of pairs takes for
    ever, that of a deep tuple all of the C stack. So the operations are gone through first; of the
    values on the stack and in the memo only the kind is kept: 'text' or 'number', which may be
    keys, 'long' tuples, which may be no arguments, or 'other'.
    """
    stack, marks, memo = [], [], {}
    numbered = position = frame_end = 0
    for count, (opcode, argument, start) in enumerate(pickletools.genops(file)):
        name, before = opcode.name, opcode.stack_before
        if count == OPERATIONS:
            raise ValueError(f'a pickle of more than {OPERATIONS} operations')
        if name in REFUSED:
            raise ValueError(f'its pickle uses {name}, which tensors do not need; nothing was run')
        # Unpickler loses the beginning of an operation that its frame does not hold whole.
        if position < frame_end < start or (name == 'FRAME' and start < frame_end):
            raise ValueError('a damaged pickle')
        position = start
        if name == 'FRAME':
            frame_end = file.tell() + argument
        elif name == 'MARK':
            marks.append(len(stack))
        elif name in PUT:
            index = len(memo) if argument is None else argument
            if index > count:
                raise ValueError('a damaged pickle')
            memo[index] = stack[-1]
        elif name in GET:
            stack.append(memo[argument])
        else:
            has_mark = pickletools.markobject in before
            first = marks.pop() if has_mark else len(stack) - len(before)
            taken = stack[first:]
            keys = taken[HASHED.get(name, slice(0))]
            numbered += keys.count('number')
            if 'other' in keys or 'long' in keys or numbered > NUMBERED:
                raise ValueError('its pickle has keys that are no names')
            if name in CALLS and 'long' in taken:
                raise ValueError('a damaged pickle')
            del stack[first:]
            if not (has_mark and before[0] is not pickletools.markobject):
                stack += [_kind(value, argument, len(taken)) for value in opcode.stack_after]


def _kind(value, argument, count):
    if value.name == 'tuple' and count > ARGUMENTS:
        return 'long'
    if value.name in TEXT:
        return 'text'
    # Large integers can be chosen to have one hash; as keys they take quadratic time.
    return 'number' if value.name in NUMBERS and abs(argument or 0) < 2**60 else 'other'
