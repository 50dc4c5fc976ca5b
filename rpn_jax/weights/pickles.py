"""Pickles of tensors, read by an Unpickler that calls this module's own functions and no others.

Its find_class decides which names a pickle may ask for. Before anything is loaded, a pickle is
checked for what would take Python's Unpickler too much time or memory.
"""

import functools
import math
import pickle
import pickletools
import re
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

    def array(self, read_storage):
        """Returns the tensor as a view of the bytes read_storage(key) of its storage.

        Raises ValueError where these are fewer than the storage says, or KeyError was raised, and
        where the tensor would reach outside of them.
        """
        dtype, key, count = self.storage
        try:
            flat = np.frombuffer(read_storage(key), dtype, count)
        except (KeyError, ValueError) as error:
            raise ValueError('a tensor whose numbers are not in the file, or not all') from error
        offset, shape, strides = self.offset, self.shape, self.strides
        if not all(map(_is_count, (offset, *shape, *strides))) or len(shape) > 8:
            raise ValueError('a tensor whose shape is no shape')
        if len(shape) != len(strides):
            raise ValueError('a tensor whose strides do not fit its shape')
        size = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if size > count or (size and last >= count):
            raise ValueError('a tensor that reaches outside its storage')
        strides = [stride * dtype.itemsize for stride in strides]
        return np.ndarray(shape, dtype, flat[offset:], strides=strides)


class Array:
    """Holds an array of NumPy's in `value`, a view of the pickle's bytes; its state replaces it."""

    def __init__(self, data, dtype, shape=(), order='C'):
        if not all(map(_is_count, shape)):
            raise ValueError('an array whose shape is no shape')
        data = _encoded(data) if isinstance(data, str) else data
        self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.__init__(data, dtype, shape, 'F' if is_fortran else 'C')


class Dtype:
    """A number type of NumPy's; its byte order comes with its state."""

    def __init__(self, code, *_):
        if _expect(code, str) not in CODES:
            raise ValueError(f'arrays of {code[:20]!r}, which are not numbers')
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class Placeholder:
    """Stands for an object without weights, as checkpoints hold them; ignores all it is given."""

    __slots__ = ()

    def _ignore(*_):
        pass

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _Dict(dict):
    """An OrderedDict; ignores its state, which of a state_dict is the versions of its modules."""

    def __init__(self, pairs=None):
        super().__init__({_expect(key, str): value for key, value in pairs or ()})
        if pairs:
            pairs.clear()  # a pickle that names the same again must not get more memory by it

    def __setstate__(self, state):
        pass


class _Function(NamedTuple):
    """A function that a pickle may call; it cannot set its attributes, as a plain one's."""

    function: object

    def __call__(self, *arguments):
        return self.function(*arguments)


def _expect(value, kind):
    if not isinstance(value, kind):
        raise ValueError(f'{kind.__name__} expected, not {type(value).__name__}')
    return value


@functools.cache  # a text that many arrays use takes memory once
def _encoded(text):
    return text.encode('latin1')


def _is_count(number):
    return type(number) is int and 0 <= number < 2**40


def _tensor(storage, offset, shape, strides, *_):
    return Tensor(_expect(storage, Storage), offset, _expect(shape, tuple), _expect(strides, tuple))


FUNCTIONS = {
    'collections.OrderedDict': _Dict,
    'torch._utils._rebuild_tensor': _tensor,  # until torch 0.3
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': lambda data, *_: _expect(data, Tensor),
    '_codecs.encode': lambda text, *_: _expect(text, str),  # Array does it
    '__builtin__.bytes': lambda: b'',  # how protocols 0 to 2 write no bytes
    'numpy.dtype': Dtype,
    'numpy.core.multiarray._reconstruct': lambda *_: Array(b'', Dtype('i1'), (0,)),
    'numpy.core.multiarray.scalar': lambda dtype, data: Array(data, dtype),
    'numpy.core.numeric._frombuffer': Array,
}
STORAGES = {
    'torch.DoubleStorage': np.float64,
    'torch.FloatStorage': np.float32,
    'torch.HalfStorage': np.float16,
    'torch.BFloat16Storage': ml_dtypes.bfloat16,
    'torch.LongStorage': np.int64,
    'torch.IntStorage': np.int32,
    'torch.ShortStorage': np.int16,
    'torch.CharStorage': np.int8,
    'torch.ByteStorage': np.uint8,
    'torch.BoolStorage': np.bool_,
}
IGNORED = re.compile(  # what trainers keep beside the weights
    r'argparse\.Namespace|types\.SimpleNamespace|collections\.(Counter|defaultdict|deque)|'
    r'(builtins|__builtin__)\.(bool|complex|dict|float|frozenset|int|list|set|slice|str|tuple)|'
    r'(builtins|__builtin__)\.x?range|mmengine\.logging\.history_buffer\.HistoryBuffer|'
    r'datetime\.(date|datetime|time|timedelta|timezone)|'
    r'pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|numpy\.ndarray|'
    r'torch\.(Size|bfloat16|bool|device|float16|float32|float64|int32|int64|uint8)'
)


def read(file):
    """Reads one pickle from a binary file; returns its value and torch's storages, {key: Storage}.

    The value is made of dicts, lists, tuples, text and numbers; tensors of torch come as Tensor,
    NumPy's as Array, other objects that checkpoints hold as Placeholder. Raises ValueError for any
    other name that the pickle asks for, for operations that tensors do not need, and for what is
    not whole. Memory is at most a small multiple of the pickle's size, or some 300 MiB.
    """
    start = file.tell()
    try:
        _check(file)
        file.seek(start)
        unpickler = _Unpickler(file)
        return unpickler.load(), unpickler.storages
    except Exception as error:  # whatever comes of operations that do not fit together
        raise ValueError(f'a pickle that cannot be read: {error}') from error
    finally:
        _encoded.cache_clear()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file, encoding='latin1')  # Python 2 has text and bytes as one
        self.storages = {}
        self._has_log = False  # mmengine's, which holds its own methods

    def find_class(self, module, name):
        asked = f'{module}.{name}'
        known = asked.replace('numpy._core.', 'numpy.core.')  # its name since NumPy 2
        if known in FUNCTIONS:
            return _Function(FUNCTIONS[known])
        if asked in STORAGES:
            return asked
        if IGNORED.fullmatch(asked) or (self._has_log and name == 'getattr'):
            self._has_log |= name == 'HistoryBuffer'
            return Placeholder
        raise ValueError(
            f'it asks for {asked}, which is no part of a tensor; nothing was run. Save a '
            'state_dict alone, or as .safetensors'
        )

    def persistent_load(self, pid):
        match pid:
            case ('storage', str(kind), str(key), _, count, *view):
                if kind in STORAGES and _is_count(count) and not any(view):
                    self.storages[key] = Storage(np.dtype(STORAGES[kind]), key, count)
                    return self.storages[key]
        raise ValueError('a tensor that is kept in a way not known here')


def _check(file):
    """Raises ValueError for a pickle that would take Unpickler too much time or memory.

    Unpickler makes room for any index of its memo (34 GB for five bytes) and for any length, copies
    the arguments of every call, and hashes any key: that of a pair of pairs of pairs takes for
    ever, that of a deep tuple all of the C stack. So the operations are gone through first; of the
    values on the stack and in the memo only the kind is kept: 'large', or pickletools' name.
    """
    stack, marks, memo = [], [], {}
    numbered = position = frame_end = 0
    for count, (opcode, argument, start) in enumerate(pickletools.genops(file)):
        name, before = opcode.name, opcode.stack_before
        if count == OPERATIONS:
            raise ValueError(f'more than {OPERATIONS} operations')
        if name in REFUSED:
            raise ValueError(f'it uses {name}, which tensors do not need; nothing was run')
        # Unpickler loses the beginning of an operation that its frame does not hold whole.
        if position < frame_end < start or (name == 'FRAME' and start < frame_end):
            raise ValueError('an operation that its frame does not hold')
        position = start
        if name == 'FRAME':
            frame_end = file.tell() + argument
        elif name == 'MARK':
            marks.append(len(stack))
        elif name.endswith('PUT') or name == 'MEMOIZE':
            index = len(memo) if argument is None else argument
            if index > count:
                raise ValueError(f'index {index} of a memo of {len(memo)} values')
            memo[index] = stack[-1]
        elif name.endswith('GET'):
            stack.append(memo[argument])
        else:
            has_mark = pickletools.markobject in before
            first = marks.pop() if has_mark else len(stack) - len(before)
            taken = stack[first:]
            if name in HASHED:
                keys = taken[HASHED[name]]
                numbered += sum(key in NUMBERS for key in keys)
                if not set(keys) <= TEXT | NUMBERS or numbered > NUMBERED:
                    raise ValueError('keys that are no names')
            if name in CALLS and 'large' in taken:
                raise ValueError(f'a call with more than {ARGUMENTS} arguments')
            # Large integers can be chosen to have one hash; as keys they take quadratic time.
            is_large = isinstance(argument, int | float) and not abs(argument) < 2**60
            is_large |= name == 'TUPLE' and len(taken) > ARGUMENTS
            del stack[first:]
            if not (has_mark and before[0] is not pickletools.markobject):
                stack += ['large'] if is_large else [value.name for value in opcode.stack_after]
