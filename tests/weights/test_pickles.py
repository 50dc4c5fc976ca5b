"""Pickles are data: arrays come out as they went in, and nothing that a pickle asks for runs."""

import io
import os
import pickle
import pickletools
import struct
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax.weights import pickles

ARRAYS = {
    'matrix': np.arange(6, dtype=np.float32).reshape(2, 3),
    'turned': np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    'view': np.arange(20, dtype=np.int64)[3:15:4],
    'half': np.array([1.5, -2], np.float16),
    'big-endian': np.array([1.5, -2], '>f4'),
    'bytes': np.array([[0, 255]], np.uint8),
    'empty': np.zeros((0, 4), np.float32),
    'scalar': np.float32(2.5),
    'point': np.array(7.0),
}


def read(data):
    return pickles.read(io.BytesIO(data))


def value(tree):
    """Returns the tree with NumPy arrays where it has Array."""
    if isinstance(tree, pickles.Array):
        return tree.value
    if isinstance(tree, dict):
        return {key: value(item) for key, item in tree.items()}
    return type(tree)(map(value, tree)) if type(tree) in (list, tuple) else tree


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('name', ARRAYS)
def test_arrays_come_out_as_they_went_in(name, protocol):
    found = value(read(pickle.dumps({name: ARRAYS[name]}, protocol)))[name]
    np.testing.assert_array_equal(found, ARRAYS[name])
    assert (found.shape, found.dtype) == (ARRAYS[name].shape, ARRAYS[name].dtype)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_out_as_they_went_in(tree, protocol):
    assert read(pickle.dumps(tree, protocol)) == tree


def test_what_is_said_twice_is_one():
    array = np.ones(3)
    first, second = read(pickle.dumps([array, array]))
    assert first is second
    assert value(read(pickle.dumps(OrderedDict(a=1, b=array)))).keys() == {'a', 'b'}


def test_a_pickle_of_python_2_is_read():
    """Caffe2's files have text and bytes as one kind, BINSTRING; written here by hand."""
    numbers = np.array([1.5, -2], '<f4').tobytes()
    data = (
        b'\x80\x02}q\x00(U\x07conv1_wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02'
        b'cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4'
        b'K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T'
        + struct.pack('<i', len(numbers))
        + numbers
        + b'tbu.'
    )
    expected = pickle.loads(data, encoding='latin1')
    np.testing.assert_array_equal(value(read(data))['conv1_w'], expected['conv1_w'])


class Asking:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def open_canary(path):
    return Asking(open, str(path), 'w')


HOSTILE = {
    'system': lambda path: Asking(os.system, f'touch {path}'),
    'popen': lambda path: Asking(subprocess.Popen, ['touch', str(path)]),
    'eval': lambda path: Asking(eval, f'open({str(path)!r}, "w")'),
    'open': open_canary,
    'import': lambda path: Asking(__import__, 'antigravity'),
    'getattr': lambda path: Asking(getattr, np.float32, 'mro'),
    'nested': lambda path: {'model': [np.ones(2), (open_canary(path),)]},
    'key': lambda path: OrderedDict([(('a', open_canary(path)), 1)]),
    'loads': lambda path: Asking(pickle.loads, pickle.dumps(open_canary(path))),
    'fromfile': lambda path: Asking(np.fromfile, '/etc/passwd'),
    'memmap': lambda path: Asking(np.memmap, '/etc/passwd'),
    'object': lambda path: np.array([open_canary(path)], object),
    'set': lambda path: {1, 2},
    'complex': lambda path: 1j,
}


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('name', HOSTILE)
def test_nothing_runs(tmp_path, name, protocol):
    canary = tmp_path / 'canary'
    with pytest.raises(ValueError):
        read(pickle.dumps(HOSTILE[name](canary), protocol))
    assert not canary.exists()


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_canary_would_sing(tmp_path, protocol):
    """The pickles above do what they say where Python's own reader takes them."""
    state = pickle.loads(pickle.dumps(HOSTILE['nested'](tmp_path / 'canary'), protocol))
    state['model'][1][0].close()
    assert (tmp_path / 'canary').exists()


BOMB = b'X\1\0\0\0a' + b'q\1h\1\x86' * 60  # a pair of pairs of pairs ..: 2**60 leaves


@pytest.mark.parametrize(
    ('data', 'complaint'),
    [
        (pickle.dumps(Asking(os.system, 'true')), 'asks for (posix|nt).system, .* nothing was run'),
        (b'cos\nsystem\n(S"true"\ntR.', 'asks for os.system'),
        (b'(S"true"\nios\nsystem\n.', 'uses INST'),
        (b'\x80\x02cnumpy\ndtype\n)\x81.', 'uses NEWOBJ'),
        (b'\x80\x02\x82\x01.', 'uses EXT1'),
        (b'\x80\x04\x8c\x05numpy\x8c\x09ndarray.x\x93.', 'asks for numpy.ndarray.x'),
        (b'cnumpy\ndtype\n}S"x"\nI1\nsb.', 'damaged'),  # attributes set on a class
        (b'cnumpy\nndarray\n(I0\ntR.', 'damaged'),  # an array of NumPy itself
        (b'cnumpy\ndtype\n(S"O"\ntR.', "arrays of 'O', which are not numbers"),
        (b'cnumpy\ndtype\n(S"V8"\ntR.', "arrays of 'V8'"),
        (b'(S"storage"\nctorch\nFloatStorage\nS"0"\nS"cpu"\nI-5\ntQ.', 'not known here'),
        (b'ctorch.storage\n_load_from_bytes\n(S"x"\ntR.', 'torch.storage._load_from_bytes'),
        (b'ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(t(ttR.', 'without a storage'),
        (b'\x80\x02}' + BOMB + b'K\1s.', 'keys that are no names'),  # its hash takes for ever
        (b'\x80\x02}(' + BOMB + b'K\1u.', 'keys that are no names'),
        (b'\x80\x02(' + BOMB + b'K\1d.', 'keys that are no names'),
        (b'\x80\x02ccollections\nOrderedDict\n]' + BOMB + b'K\1\x86a\x85R.', 'keys that are'),
        (b'\x80\x04' + BOMB + b'X\1\0\0\0a\x93.', 'damaged'),
        (b'\x80\x02cnumpy\ndtype\n(' + BOMB + b'tR.', 'damaged'),  # its repr as well
        (b'\x80\x02}N' + b'\x85' * 400_000 + b'K\1s.', 'keys that are no names'),
        (b'\x80\x04\x8e' + struct.pack('<Q', 2**45), 'bytes'),
        (b'\x80\x04\x8d' + struct.pack('<Q', 2**62), 'bytes'),
        (
            b'\x80\x02c_codecs\nencode\nq\0(X'
            + struct.pack('<I', 2**20)
            + b'a' * 2**20
            + b'q\1'
            + b'h\0h\1\x85R' * 40
            + b'.',
            'grow to more than the file holds',
        ),
        (b'h\x05.', 'damaged'),
        (b'.', 'damaged'),
        (b'(((', 'STOP'),
        (b'', 'STOP'),
        (b'\xff\xff', 'opcode'),
    ],
    ids=lambda part: repr(part)[:30] if isinstance(part, bytes) else '',
)
def test_what_tensors_do_not_need_is_refused_by_its_name(data, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(data)


def test_a_cut_or_changed_pickle_ends_in_one_kind_of_error():
    """Whatever byte changes: a value or ValueError."""
    whole = pickle.dumps({'a': np.arange(5.0), 'b': [1, (2, None)]}, 2)
    for place in range(len(whole)):
        for data in (
            whole[:place],
            *(whole[:place] + bytes([b]) + whole[place + 1 :] for b in b'\0.(Rbt)'),
        ):
            try:
                value(read(data))
            except ValueError:
                pass


def test_operations_are_bounded(monkeypatch):
    data = pickle.dumps(list(range(100)))
    assert len(read(data)) == 100
    monkeypatch.setattr(pickles, 'OPCODES', 100)
    assert sum(1 for _ in pickletools.genops(data)) > 100
    with pytest.raises(ValueError, match='more than 100 operations'):
        read(data)


STORAGE = pickles.Storage(np.dtype('f4'), '0', 12)


@pytest.mark.parametrize(
    ('offset', 'shape', 'strides'),
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (12, (1,), (1,)),
        (0, (3, 4), (5, 1)),
        (0, (3, 10), (0, 1)),  # one number many times over
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2,), (1, 1)),
        (0, (2.0,), (1,)),
        (0, (2**50,), (0,)),
        (0, (1,) * 9, (1,) * 9),
    ],
)
def test_a_tensor_stays_inside_its_storage(offset, shape, strides):
    flat = np.arange(12, dtype=np.float32)
    inside = pickles.Tensor(STORAGE, 2, (3, 2), (1, 4)).array(flat)
    np.testing.assert_array_equal(inside, [[2, 6], [3, 7], [4, 8]])
    with pytest.raises(ValueError, match='a tensor'):
        pickles.Tensor(STORAGE, offset, shape, strides).array(flat)
