"""Pickles are data: arrays come out as they went in, and nothing that a pickle asks for runs."""

import argparse
import datetime
import functools
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import time
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from rpn_jax.weights import pickles

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
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
    return pickles.read(io.BytesIO(data))[0]


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_arrays_come_out_as_they_went_in(protocol):
    tree = read(pickle.dumps(ARRAYS, protocol))
    assert tree.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        array = tree[name].value
        np.testing.assert_array_equal(array, expected)
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(*[inner] * 4),
    max_leaves=10,
)


@settings(max_examples=15)
@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_plain_values_come_out_as_they_went_in(tree, protocol):
    assert read(pickle.dumps(tree, protocol)) == tree


def test_a_pickle_of_python_2_is_read():
    """Caffe2's files have text and bytes as one kind, BINSTRING; OrderedDict comes with pairs."""
    numbers = np.array([1.5, -2], '<f4').tobytes()
    data = (
        b'\x80\x02}q\x00(U\x07conv1_wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02'
        b'cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4'
        b'K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T'
        + struct.pack('<i', len(numbers))
        + numbers
        + b'tbu.'
    )
    np.testing.assert_array_equal(read(data)['conv1_w'].value, np.float32([1.5, -2]))
    ordered = b'\x80\x02ccollections\nOrderedDict\n]]'
    assert read(ordered + b'(U\1aK\5ea\x85R}U\x09_metadataNsb.') == {'a': 5}


def test_other_objects_of_checkpoints_are_placeholders():
    counter = Counter(a=2)
    harmless = {
        'args': argparse.Namespace(lr=0.1, hooks=[counter, {'a': np.float64(1)}]),
        'milestones': counter,
        'state': defaultdict(list, a=[1]),
        'last': deque([1, 2]),
        'path': pathlib.PurePosixPath('/a/b'),
        'date': datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    }
    values = {'values': [{1, 2}, frozenset({1}), range(3), slice(1), 1j]}
    for protocol in PROTOCOLS[2:]:
        tree = read(pickle.dumps(harmless | values | {'model': {'a': np.ones(2)}}, protocol))
        np.testing.assert_array_equal(tree['model']['a'].value, [1, 1])
        for name in harmless:
            assert type(tree[name]) is pickles.Placeholder and not hasattr(tree[name], '__dict__')


def test_the_log_in_checkpoints_of_mmdetection_is_a_placeholder():
    """It holds its own methods, which protocol 2 asks for by getattr."""
    buffer = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
    log = buffer + b')\x81}X\1\0\0\0mc__builtin__\ngetattr\n' + buffer + b'X\3\0\0\0min\x86Rsb.'
    assert type(read(b'\x80\x02' + log)) is pickles.Placeholder


class Asking:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


OPEN = Asking(open, 'canary', 'w')
HOSTILE = [  # what is pickled, and the name that is refused
    (Asking(os.system, 'touch canary'), r'(posix|nt)\.system'),
    (Asking(eval, 'open("canary", "w")'), r'(__builtin__|builtins)\.eval'),
    (Asking(getattr, Asking(getattr, OPEN, 'write'), 'x'), r'(__builtin__|builtins)\.getattr'),
    (functools.partial(os.system, 'true'), r'functools\.partial'),
    (Asking(np.fromfile, '/etc/passwd'), r'numpy.*\.fromfile'),
    (OrderedDict(a=('a', [np.ones(2), OPEN])), r'io\.open'),
]


@pytest.mark.parametrize(('hostile', 'name'), HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_runs(tmp_path, monkeypatch, hostile, name):
    """Neither with the checks before loading, nor by Unpickler's own rule, find_class."""
    monkeypatch.chdir(tmp_path)
    for protocol in PROTOCOLS:
        data, refused = pickle.dumps(hostile, protocol), f'asks for .*{name}.*; nothing was run'
        with pytest.raises(ValueError, match=refused):
            read(data)
        with pytest.raises(ValueError, match=refused):
            pickles._Unpickler(io.BytesIO(data)).load()
        with pytest.raises(ValueError, match="arrays of 'O"):
            read(pickle.dumps(np.array([hostile], object), protocol))
        assert not any(tmp_path.iterdir())


FLOATS = b'ctorch\nFloatStorage\n'
BOMB = b'X\1\0\0\0a' + b'q\1h\1\x86' * 60  # a pair of pairs of pairs ..: 2**60 leaves


@pytest.mark.parametrize(
    ('data', 'complaint'),
    [
        (b'cos\nsystem\n(S"true"\ntR.', 'asks for os.system'),
        (b'\x80\x04\x8c\x0b__builtin__\x8c\x07getattr\x93)R.', 'asks for __builtin__.getattr'),
        (b'(S"true"\nios\nsystem\n.', 'uses INST'),
        (b'(cos\nsystem\nS"true"\no.', 'uses OBJ'),
        (b'\x80\x04cos\nsystem\n)}\x92.', 'uses NEWOBJ_EX'),
        (b'\x80\x02cos\nsystem\n)\x81.', 'asks for os.system'),
        (b'\x80\x02\x82\x01.', 'uses EXT1'),
        (b'\x80\x05\x97.', 'uses NEXT_BUFFER'),
        (b'Pos.system\n.', 'uses PERSID'),
        (b'\x80\x04\x8c\x05numpy\x8c\x09ndarray.x\x93.', 'asks for numpy.ndarray.x'),
        (b'\x80\x02cnumpy\ndtype\n)\x81.', 'class'),  # no class to make an object of
        (b'cnumpy\ndtype\n}S"x"\nI1\nsb.', 'attribute'),  # attributes set on a function
        (b'cnumpy\ndtype\n(N}S"function"\nI1\nstb.', 'attribute'),
        (b'cnumpy\ndtype\n(S"O"\ntR.', "arrays of 'O', which are not numbers"),
        (b'cnumpy\ndtype\n(ctorch\nSize\ntR.', 'str expected, not type'),
        (b'cnumpy\ndtype\n(S"f4"\ntR(I3\nS"x"\ntb.', 'byteorder not recognized'),
        (b'(S"storage"\n' + FLOATS + b'S"0"\nS"cpu"\nI-5\ntQ.', 'not known here'),
        (b'(S"storage"\nctorch\nSize\nS"0"\nS"cpu"\nI5\ntQ.', 'not known here'),
        (b'(S"storage"\n' + FLOATS + b'I0\nS"cpu"\nI5\ntQ.', 'not known here'),
        (b'NQ.', 'not known here'),
        (b'c__builtin__\nbytes\n(I1000000000000\ntR.', 'argument'),
        (b'c_codecs\nencode\n(I5\ntR.', 'str expected, not int'),
        (b'ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(t(ttR.', 'Storage expected, not int'),
        (b'ctorch._utils\n_rebuild_parameter\n(I1\nI0\nNtR.', 'Tensor expected, not int'),
        (b'\x80\x02}N' + b'\x85' * 150_000 + b'K\1s.', 'keys that are no names'),  # deep
        (b'\x80\x02}' + BOMB + b'K\1s.', 'keys that are no names'),  # its hash takes for ever
        (b'\x80\x02}(' + BOMB + b'K\1u.', 'keys that are no names'),
        (b'\x80\x02(' + BOMB + b'K\1d.', 'keys that are no names'),
        (b'\x80\x04\x8f(' + BOMB + b'\x90.', 'keys that are no names'),
        (b'\x80\x04(' + BOMB + b'\x91.', 'keys that are no names'),
        (b'\x80\x02}\x8a\x09' + bytes(8) + b'\1K\1s.', 'keys that are no names'),  # 2**64
        (b'\x80\x02}(' + b'K\1N' * 20_001 + b'u.', 'keys that are no names'),
        (b'\x80\x02ccollections\nOrderedDict\n]' + BOMB + b'K\1\x86a\x85R.', 'not tuple'),
        (b'\x80\x04' + BOMB + b'X\1\0\0\0a\x93.', 'requires str'),
        (b'\x80\x02cnumpy\ndtype\n(' + BOMB + b'tR.', 'not tuple'),  # its repr as well
        (b'\x80\x02cargparse\nNamespace\n(' + b'N' * 101 + b'tR.', 'more than 100 arguments'),
        (b'\x80\x04\x95\5' + bytes(7) + b'X\3\0\0\0a}s.', 'frame'),  # it ends in a text
        (b'\x80\x04\x95\x0a' + bytes(7) + b'\x95' + bytes(8) + b'N.', 'frame'),
        (b'\x80\x02Nr\xff\xff\xff\x7f.', 'index 2147483647 of a memo'),  # of 34 GB
        (b'\x80\x04\x8e' + struct.pack('<Q', 2**45), 'bytes'),
        (b'\x80\x05\x96' + struct.pack('<Q', 2**36) + b'.', 'bytes'),
        (b'\x80\x04\x95' + struct.pack('<Q', 2**36) + b'N.', 'truncated'),
        (b'.', 'underflow'),
        (b'(((', 'STOP'),
        (b'\xff\xff', 'opcode'),
    ],
    ids=lambda part: repr(part)[:30] if isinstance(part, bytes) else '',
)
def test_what_tensors_do_not_need_is_refused_by_its_name(data, complaint):
    """By the checks before loading; whatever operation asks for a name, also by find_class."""
    began = time.process_time()
    with pytest.raises(ValueError, match=f'^a pickle that cannot be read: .*{complaint}') as error:
        read(data)
    assert '\n' not in str(error.value) and time.process_time() - began < 5
    if b'os\nsystem' in data:
        with pytest.raises(ValueError, match='asks for os.system'):
            pickles._Unpickler(io.BytesIO(data)).load()


AGAIN = b'h\1h\0R'
PAIRS = b''.join(b'](X\4\0\0\0%04dNe' % i for i in range(3_000))
NUMBERS = b'X\0\0\x10\0' + b'a' * 2**20 + b'cnumpy\ndtype\n(X\2\0\0\0f4tR(J\0\0\4\0t'  # a text
GROWING = {  # pickles that could make much of little: start, what is repeated, how often
    'one text': (b'(cnumpy.core.numeric\n_frombuffer\nq\1(' + NUMBERS + b'tq\0', AGAIN, 300),
    'pairs': (b'(ccollections\nOrderedDict\nq\1](' + PAIRS + b'e\x85q\0', AGAIN, 3_000),
    'sets': (b'(', b'\x8f', 100_000),
}
MEASURE = """
import io, pathlib, resource, runpy, sys, time
read = runpy.run_path('rpn_jax/weights/pickles.py')['read']
for path in map(pathlib.Path, sys.argv[1:]):
    data, began = path.read_bytes(), time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read(io.BytesIO(data))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.process_time() - began < 10 and grown < 100 * 1024, (path.name, grown)
"""


def test_memory_and_time_are_bounded(tmp_path):
    for name, (start, again, times) in GROWING.items():
        (tmp_path / name).write_bytes(start + again * times + b't.')
    paths = [str(tmp_path / name) for name in GROWING]
    subprocess.run([sys.executable, '-c', MEASURE, *paths], cwd=ROOT, check=True, timeout=120)


def test_operations_are_bounded(monkeypatch):
    data = pickle.dumps(list(range(100)))
    assert len(read(data)) == 100
    monkeypatch.setattr(pickles, 'OPERATIONS', 100)
    with pytest.raises(ValueError, match='more than 100 operations'):
        read(data)


@pytest.mark.parametrize(
    ('offset', 'shape', 'strides'),
    [
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
    storage = pickles.Storage(np.dtype('f4'), '0', 12)
    storages = {'0': np.arange(13, dtype=np.float32).tobytes()}  # with more than it says
    inside = pickles.Tensor(storage, 2, (3, 2), (1, 4)).array(storages.__getitem__)
    np.testing.assert_array_equal(inside, [[2, 6], [3, 7], [4, 8]])
    assert not inside.flags.writeable
    with pytest.raises(ValueError, match='a tensor'):
        pickles.Tensor(storage, offset, shape, strides).array(storages.__getitem__)


@pytest.mark.parametrize(
    'change',
    [
        dict(shape=(-1,)),
        dict(shape=(2.0,)),
        dict(shape=(3,)),
        dict(shape=(2**50,)),
        dict(data=bytes(7)),
        dict(data=None),
        dict(dtype='f4'),
    ],
    ids=str,
)
def test_an_array_is_filled_by_its_bytes(change):
    right = {'data': bytes(8), 'dtype': pickles.Dtype('f4'), 'shape': (1, 2), 'order': 'F'}
    assert pickles.Array(**right).value.shape == (1, 2)
    with pytest.raises((ValueError, TypeError, AttributeError)):  # one error of pickles.read
        pickles.Array(**right | change)
