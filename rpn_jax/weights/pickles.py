"""Pickles of tensors, read as data: opcode by opcode, no object made but ours, nothing called.

The opcodes and their meaning are those of Python's pickletools. Of the names that a pickle may ask
for, only those of NAMES are known; each stands for a function of this module.
"""

import io
import pickletools
from typing import NamedTuple

import ml_dtypes
import numpy as np

OPCODES = 2_000_000  # read at most; the weights of a ResNet-152 take some 50,000
STORAGES = {
    'DoubleStorage': np.float64,
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
}
CODES = 'f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1'.split()  # NumPy's number types


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
    """An array of NumPy's, whole once its state has been read."""

    def __init__(self):
        self.value = None

    def build(self, state):
        """Takes the state (version, shape, dtype, is Fortran order, bytes)."""
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, 'F' if fortran else 'C')


class Dtype:
    """A number type of NumPy's; its byte order comes with its state."""

    def __init__(self, code, *_):
        self.code, self.order = _text(code), '='
        if self.code not in CODES:
            raise ValueError(f'arrays of {self.code[:20]!r}, which are not numbers')

    def build(self, state):
        """Takes the state (version, byte order, ...)."""
        self.order = _text(state[1])
        if self.order not in tuple('<>|='):
            raise ValueError(f'a byte order {self.order[:20]!r}')

    @property
    def dtype(self):
        """The NumPy dtype."""
        return np.dtype(self.code).newbyteorder(self.order)


class _Name(NamedTuple):
    """A global that the pickle asks for."""

    module: str
    name: str


def _array(data, dtype, shape, order='C'):
    data = data.encode('latin1') if isinstance(data, str) else data
    if isinstance(shape, int):
        shape = (shape,)
    if not isinstance(data, bytes | bytearray) or not all(_is_count(side) for side in shape):
        raise ValueError('an array that is not one of numbers')
    # What is not whole fails here: the bytes must fill the shape.
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=order)


def _text(value):
    return value.decode('latin1') if isinstance(value, bytes) else _expect(value, str)


def _is_count(number):
    return type(number) is int and 0 <= number < 2**40


def _wrapped(value):
    array = Array()
    array.value = value
    return array


def _ordered(pairs=()):
    return _dict([part for pair in pairs for part in _expect(pair, tuple | list)])


def _dict(items):
    """Returns {key: value} of alternating keys and values; keys must be plain.

    The hash of nested tuples can take for ever, or all of the stack.
    """
    keys = items[::2]
    if not all(isinstance(key, str | int | float | bytes | None) for key in keys):
        raise ValueError('its pickle has keys that are no names')
    return dict(zip(keys, items[1::2], strict=True))


def _tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage):
        raise ValueError('a tensor without a storage')
    return Tensor(storage, offset, tuple(shape), tuple(strides))


NAMES = {
    ('collections', 'OrderedDict'): _ordered,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): lambda data, *_: data,
    ('_codecs', 'encode'): lambda text, *_: text.encode('latin1'),
    ('__builtin__', 'bytes'): lambda: b'',  # how protocols 0 to 2 write no bytes
    ('numpy', 'dtype'): Dtype,
    ('numpy', 'ndarray'): None,
    **{('torch', name): None for name in STORAGES},
}
for _core in ('numpy.core', 'numpy._core'):  # before and since NumPy 2
    NAMES |= {
        (f'{_core}.multiarray', '_reconstruct'): lambda *_: Array(),
        (f'{_core}.multiarray', 'scalar'): lambda dtype, data: _wrapped(_array(data, dtype, ())),
        (f'{_core}.numeric', '_frombuffer'): lambda data, dtype, shape, order: _wrapped(
            _array(data, dtype, shape, order)
        ),
    }


def read(file):
    """Reads one pickle from io.BytesIO, up to its end, as dicts, lists, tuples and numbers.

    Tensors of torch come as Tensor, NumPy's as Array; all arrays together take no more memory than
    twice the bytes. Raises ValueError for a name outside NAMES,
    which is named, for an opcode that tensors do not need, and for what is not whole.
    """
    start = file.tell()
    reader = _Reader(bound=2 * (file.seek(0, io.SEEK_END) - start) + 1024)
    file.seek(start)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= OPCODES:
                raise ValueError(f'a pickle of more than {OPCODES} operations')
            reader.step(opcode.name, argument)
        return reader.stack.pop()
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError('a damaged pickle') from error


class _Reader:
    """The stack and the memo of a pickle, and what each opcode does to them."""

    def __init__(self, bound):
        self.stack, self.marks, self.memo = [], [], {}
        self.made, self.bound = 0, bound  # bytes of arrays and of text turned into bytes

    def step(self, name, argument):
        stack = self.stack
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in NUMBERS_AND_TEXT:
            stack.append(argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == 'MARK':
            self.marks.append(len(stack))
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
        elif name in ('TUPLE', 'LIST'):
            items = self._to_mark()
            stack.append(tuple(items) if name == 'TUPLE' else items)
        elif name in ('APPEND', 'APPENDS'):
            items = self._to_mark() if name == 'APPENDS' else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif name in ('SETITEM', 'SETITEMS', 'DICT'):
            items = [stack.pop(-2), stack.pop()] if name == 'SETITEM' else self._to_mark()
            if name == 'DICT':
                stack.append({})
            _expect(stack[-1], dict).update(_dict(items))
        elif name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ('GET', 'BINGET', 'LONG_BINGET'):
            stack.append(self.memo[argument])
        elif name == 'POP_MARK':
            self._to_mark()
        elif name not in ('PROTO', 'FRAME', 'STOP'):
            self._object(name, argument)

    def _object(self, name, argument):
        stack = self.stack
        if name in ('GLOBAL', 'STACK_GLOBAL'):
            full = argument.split(' ', 1) if name == 'GLOBAL' else [stack.pop(-2), stack.pop()]
            asked = _Name(*(_expect(part, str) for part in full))
            if asked not in NAMES:
                raise ValueError(
                    f'its pickle asks for {".".join(map(str, asked))}, which is no part of a '
                    'tensor; nothing was run. Save a state_dict alone, or as .safetensors'
                )
            stack.append(asked)
        elif name == 'REDUCE':
            arguments, function = _expect(stack.pop(), tuple), NAMES[_expect(stack.pop(), _Name)]
            stack.append(function(*arguments))
            self._count(stack[-1])
        elif name == 'BUILD':
            state = stack.pop()
            if not isinstance(stack[-1], dict):  # of a state_dict: its modules' versions
                _expect(stack[-1], Array | Dtype).build(state)
            self._count(stack[-1])
        elif name == 'BINPERSID':
            kind, storage, key, _, count, *view = _expect(stack.pop(), tuple)
            if kind != 'storage' or any(view) or not _is_count(count):
                raise ValueError('a tensor that is kept in a way not known here')
            dtype = np.dtype(STORAGES[_expect(storage, _Name).name])
            stack.append(Storage(dtype, _expect(key, str), count))
        else:
            raise ValueError(f'its pickle uses {name}, which tensors do not need; nothing was run')

    def _count(self, value):
        """Adds what a new value takes; the same text, used often, could grow without end."""
        if isinstance(value, Array) and value.value is not None:
            self.made += value.value.nbytes
        elif isinstance(value, bytes):
            self.made += len(value)
        if self.made > self.bound:
            raise ValueError('its pickle would grow to more than the file holds')

    def _to_mark(self):
        """Takes what stands above the last mark off the stack."""
        place = self.marks.pop()
        items = self.stack[place:]
        del self.stack[place:]
        return items


def _expect(value, kind):
    if not isinstance(value, kind):
        raise ValueError('a damaged pickle')
    return value


CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
NUMBERS_AND_TEXT = set(
    'INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING '
    'UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 '
    'BYTEARRAY8'.split()
)
