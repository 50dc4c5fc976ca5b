"""Weight files of every format: the same numbers, whatever the name; and what is refused."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from data_files import TENSORS, archive, write_weights
from safetensors.numpy import save

from rpn_jax import weights
from rpn_jax.errors import InputError
from rpn_jax.weights import formats

GOLDEN = Path(__file__).parents[1] / 'golden'
KINDS = ['safetensors', 'npz', 'npz_deflated', 'pth', 'pkl']


@pytest.mark.parametrize('kind', KINDS)
def test_the_first_bytes_of_a_file_say_what_it_is(tmp_path, kind):
    tensors = weights.load(write_weights(tmp_path / 'weights', kind))
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], tensor)
        assert tensors[name].dtype == np.float32


@pytest.mark.parametrize('start', [b'\x80\x02', b'PK'])
def test_a_length_that_begins_like_another_format_is_a_length(tmp_path, start):
    length = int.from_bytes(start, 'little')
    empty = int.from_bytes(save(TENSORS, {'a': ''})[:8], 'little')
    data = save(TENSORS, {'a': 'x' * (length - empty)})
    assert data[:2] == start
    (tmp_path / 'weights').write_bytes(data)
    assert weights.load(tmp_path / 'weights').keys() == TENSORS.keys()


@pytest.mark.parametrize('name', ['torch', 'torch_legacy', 'torch_checkpoint'])
def test_what_torch_saved_is_read(name):
    """Written by torch.save: views, half floats, a parameter, a counter; a checkpoint around it."""
    tensors, expected = formats.read(GOLDEN / f'{name}.pth'), np.load(GOLDEN / 'torch.npz')
    assert tensors.keys() == set(expected.files)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.astype(np.float64), expected[key])
        assert tensor.shape == expected[key].shape
    assert tensors['half'].dtype == np.float16 and tensors['brain'].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64, '>f4'])
def test_npz_holds_any_float(tmp_path, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in TENSORS.items()}
    loaded = formats.read(write_weights(tmp_path / 'weights', 'npz', tensors))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


@pytest.mark.parametrize('key', ['model', 'state_dict', 'model_state_dict', 'blobs'])
def test_weights_are_found_in_a_checkpoint(tmp_path, key):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        checkpoint = {key: {'a': np.ones(2)}, 'step': 5}
        (tmp_path / 'x').write_bytes(pickle.dumps(checkpoint, protocol))
        assert formats.read(tmp_path / 'x').keys() == {'a'}


@pytest.mark.parametrize('kind', KINDS)
def test_a_key_picks_the_names_that_begin_with_it(tmp_path, kind):
    named = {f'{part}.{name}': tensor for part in 'abc' for name, tensor in TENSORS.items()}
    tensors = formats.read(write_weights(tmp_path / 'weights', kind, named), 'b')
    assert tensors.keys() == TENSORS.keys()
    assert sorted(tensors.passed_over) == sorted(name for name in named if name[0] != 'b')


def refusal(path):
    with pytest.raises(InputError, match=re.escape(f'weights {path}: ')) as error:
        weights.load(path)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('kind', [*KINDS, 'torch', 'torch_legacy'])
def test_a_damaged_file_is_refused_or_has_other_numbers(tmp_path, kind):
    """One cut off anywhere is refused; of a .npz file no byte can change: checksums see it."""
    path = tmp_path / 'weights'
    if kind in KINDS:
        whole = write_weights(path, kind).read_bytes()
    else:
        whole = (GOLDEN / f'{kind}.pth').read_bytes()
    for size in {*range(0, len(whole), max(1, len(whole) // 25)), len(whole) - 1}:
        path.write_bytes(whole[:size])
        refusal(path)
    for position in range(0, len(whole), max(1, len(whole) // 100)):
        changed = bytes([whole[position] ^ 0x41])
        path.write_bytes(whole[:position] + changed + whole[position + 1 :])
        try:
            tensors = weights.load(path)
        except InputError:
            continue
        for name in tensors.keys() & TENSORS.keys() if 'npz' in kind else ():
            np.testing.assert_array_equal(tensors[name], TENSORS[name])


def npy(text, data=b''):
    """Returns the bytes of a .npy file with this header and data."""
    header = text.encode().ljust(117) + b'\n'
    return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + data


class Canary:
    def __reduce__(self):
        return os.system, ('touch canary',)


FLOAT8 = b'{"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}'
LEGACY = [formats.TORCH_MAGIC, 1001, {'little_endian': True}, {}, 5]
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"
HUGE = HEADER.replace('1,', '1000000000000,')
OBJECTS = HEADER.replace('<f4', '|O')


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        (b'', 'an empty file'),
        (b'\x89PNG\r\n\x1a\n' + bytes(100), 'not a .safetensors, .npz, .pth or .pkl file'),
        (b'PK\x03\x04' + bytes(500), 'not a whole zip file'),
        (archive({'bomb/data.pkl': bytes(2**27)}), 'would expand to 134217728'),
        (archive({'readme.txt': b'hello'}), 'neither .npz nor .pth'),
        (archive({}), 'neither .npz nor .pth'),
        (archive({'a.npy': npy(HUGE, bytes(8))}), 'a.npy is no whole .npy file'),
        (archive({'a.npy': npy(HEADER.replace('1,', 'True'))}), 'a.npy is no whole'),
        (archive({'a.npy': npy(HEADER.replace('1,', '-1,'), bytes(8))}), 'a.npy is '),
        (archive({'a.npy': npy(HEADER, bytes(8))}), 'a.npy is more than one .npy file'),
        (archive({'a.npy': npy('(' * 5000)}), 'a.npy is no whole .npy file'),
        (archive({'a.npy': npy(HEADER.replace('<f4', '<c8'), bytes(8))}), 'are no numbers'),
        (archive({'a.npy': npy(HEADER.replace('<f4', '|V4'), bytes(4))}), 'are no numbers'),
        (archive({'a.npy': npy(OBJECTS, pickle.dumps(Canary()))}), 'nothing was unpickled'),
        (archive({'a.npy': pickle.dumps(Canary())}), 'nothing was unpickled'),
        (archive({'x/data.pkl': pickle.dumps(Canary())}), 'asks for (posix|nt).system'),
        (archive({'x/data.pkl': pickle.dumps({}), 'x/byteorder': b'big'}), 'big-endian'),
        (pickle.dumps({'model': {'conv1.weight': Canary()}}), 'asks for (posix|nt).system'),
        (pickle.dumps([1, 2]), 'something else than named tensors'),
        (pickle.dumps({}), 'without named tensors'),
        (pickle.dumps({1: np.ones(2)}), 'something else than named tensors'),
        (pickle.dumps({'a': np.ones(2, np.int32)}), 'no floating point numbers in a'),
        (pickle.dumps({'a': np.array([1e300])}), 'NaN or infinity in a'),
        (pickle.dumps({'a\n\x1b[31m': np.array([np.nan])}), r'infinity in a\\n\\x1b\[31m$'),
        (archive({'a\nb.npy': b''}), r'a\\nb.npy is no whole'),
        (pickle.dumps(formats.TORCH_MAGIC), 'STOP'),
        (b''.join(map(pickle.dumps, LEGACY)), 'a damaged .pth file'),
        (b''.join(map(pickle.dumps, [*LEGACY[:4], [[1]]])), 'a damaged .pth file'),
        (b''.join(map(pickle.dumps, [*LEGACY[:2], {}, {}, []])), 'big-endian'),
        (save(TENSORS) + b'?', 'not a whole .safetensors file'),
        (len(FLOAT8).to_bytes(8, 'little') + FLOAT8 + b'1', 'not a whole .safetensors file'),
        ((2**62).to_bytes(8, 'little') + b'{' + bytes(50), 'not a whole .safetensors file'),
    ],
    ids=lambda part: '' if isinstance(part, bytes) else part[:30],
)
def test_what_is_no_weights_file_is_refused(tmp_path, monkeypatch, content, complaint):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    assert re.search(complaint, refusal(path))
    assert not (tmp_path / 'canary').exists()


def test_the_numbers_of_a_pth_file_must_be_in_it(tmp_path):
    path = write_weights(tmp_path / 'weights.pth', 'pth')
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    del members['weights/data/0']
    for change in ({}, {'weights/data/0': bytes(92)}, {'../weights/data/0': bytes(96)}):
        path.write_bytes(archive(members | change))
        assert 'conv1.weight is a tensor whose numbers are not in the file' in refusal(path)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    path = write_weights(tmp_path / 'weights', 'npz')
    monkeypatch.setattr(formats, 'LIMIT', path.stat().st_size - 1)
    assert 'are read' in refusal(path)
    tensors = {f'{i}': TENSORS['conv1.weight'] for i in range(99)}  # one array, 99 times
    write_weights(path, 'pkl', tensors)
    monkeypatch.setattr(formats, 'LIMIT', path.stat().st_size)
    assert 'its tensors take more than' in refusal(path)
