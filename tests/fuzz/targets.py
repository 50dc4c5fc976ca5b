"""Every parser of files from outside, as a function of one file, with files to begin with."""

import contextlib
import io
import json
import os
import pickle
import struct
import tempfile
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from data_files import coco_content, voc_annotation, write_weights
from safetensors.numpy import save

from rpn_jax import files
from rpn_jax.data import images
from rpn_jax.data.records import BadRecord
from rpn_jax.data.sources import coco, voc, yolo
from rpn_jax.errors import InputError
from rpn_jax.evaluation import results
from rpn_jax.training import nonfinite, workdir
from rpn_jax.weights import formats, loading

SECONDS = 5  # that a file may take
MEMORY = 2**30  # bytes that it may take beyond its own
CORPUS = Path(__file__).parent / 'corpus'  # files that were found to reach further; TARGET/*


class Target(NamedTuple):
    """A parser: what reads the file, of which name, and the files to begin with."""

    read: object
    name: str
    begin: object  # () -> list of bytes


def check(target, content):
    """Reads a file of this content; raises AssertionError where that is no success or InputError.

    Nothing else may be in its folder or in the current one afterwards.
    """
    with tempfile.TemporaryDirectory(dir=_memory()) as folder, contextlib.chdir(folder):
        path = Path(folder) / target.name
        path.write_bytes(content)
        began, before = time.monotonic(), _peak(anew=True)
        try:
            target.read(path)
        except (InputError, BadRecord) as error:
            assert str(error).strip(), 'an error without a text'
        took = time.monotonic() - began
        assert took < SECONDS, f'{took:.1f} s'
        memory = _peak() - before
        assert memory < MEMORY + len(content), f'{memory / 2**20:.0f} MiB'
        assert os.listdir(folder) == [target.name], os.listdir(folder)


def mutated(random, contents):
    """Returns a content with some bytes flipped, cut out, doubled, or taken from another."""
    content = bytearray(contents[random.randrange(len(contents))])
    for _ in range(1 + random.randrange(6)):
        i = random.randrange(len(content) + 1)
        j = min(len(content), i + 1 + random.randrange(1 + random.choice((1, 4, 32, 256))))
        other = contents[random.randrange(len(contents))]
        k = random.randrange(len(other) + 1)
        change = random.randrange(5)
        if change == 0 and i < len(content):
            content[i] ^= 1 << random.randrange(8)
        elif change == 1:
            del content[i:j]
        elif change == 2:
            content[i:i] = content[i:j] * random.choice((1, 1, 2, 50))
        elif change == 3:
            content[i:j] = other[k : k + j - i]
        else:
            content[i:j] = random.choice((b'0', b'-1', b'1e999', b'nan', b'\xff' * 8, b'\0', b'"'))
    return bytes(content)


def _peak(anew=False):
    """Returns the most bytes that this process has held, 0 where that is not told (not Linux).

    With `anew` only those count that it holds from now on.
    """
    own = Path('/proc/self')
    try:
        if anew:
            (own / 'clear_refs').write_text('5')
        lines = (own / 'status').read_text().splitlines()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))


def _memory():
    return '/dev/shm' if os.access('/dev/shm', os.W_OK) else None


def _image(path):
    data = files.read(path)
    images.examine(data, 'x')
    images.decode(data, 'x', orientation=images.orientation_of(data))


def _labels(path):
    yolo.parse(path, (60, 80), {0: 'cat', 1: 'dog'})


def _names(path):
    yolo.names_of(path.parent)


def _metrics(path):
    workdir.read_history(path.parent)


def _config(path):
    workdir.read_config(path.parent)


def _results(path):
    content = coco_content()
    results.from_coco(content, path)


def _annotations():
    boxes = [((3, 4, 30, 40), 0), ((5, 6, 20, 21), 1)]
    text = voc_annotation((60, 80), *boxes)
    return [text.encode(), voc_annotation((60, 80)).encode('utf-16')]


def _pictures():
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    kinds = ('.jpg', '.png', '.bmp', '.webp', '.tiff', '.gif')
    encoded = [cv2.imencode(kind, picture)[1].tobytes() for kind in kinds if _writes(kind)]
    chunk = b'eXIf' + b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    exif = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    png = encoded[1]
    return [*encoded, png[:33] + exif + png[33:]]


def _writes(kind):
    return cv2.haveImageWriter(f'x{kind}')


def _entries():
    ids = [image['id'] for image in coco_content()['images']]
    row = {'category_id': 1, 'bbox': [1.0, 2.0, 3.0, 4.5], 'score': 0.5}
    return [json.dumps([row | {'image_id': each} for each in ids]).encode(), b'[]']


def _tensors():
    return {
        'conv1.weight': np.ones((2, 3, 7, 7), np.float32),
        'bn1.weight': np.ones(2, np.float16),
        'layer1.0.conv1.weight': np.ones((2, 2, 1, 1), np.float32),
    }


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _pickled():
    torch_before_zip = formats.TORCH_MAGIC, 1001, {'little_endian': True}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        torch = write_weights(Path(folder) / 'x.pth', 'pth', _tensors()).read_bytes()
    plain = (pickle.dumps({'model': _tensors()}, protocol) for protocol in (2, 4))
    return [*plain, torch, b''.join(map(pickle.dumps, torch_before_zip))]


def _proposals():
    empty = results.from_coco(coco_content(), [])
    with tempfile.TemporaryDirectory() as folder:
        results.save(Path(folder) / 'x.npz', empty)
        return [(Path(folder) / 'x.npz').read_bytes()]


def _kept():
    batch = {
        'image': np.zeros((1, 4, 5, 3), np.uint8),
        'boxes': np.zeros((1, 2, 4), np.float32),
        'kind': np.zeros((1, 2), np.int32),
        'size': np.float32([[4, 5]]),
    }
    more = {'step': np.int64(3), 'image_ids': np.array(['a']), 'image_loss': np.float32([1])}
    more |= {'parts': np.array(['stem']), 'largest': np.float32([[1]])}
    return [_npz(**batch, **more)]


TARGETS = {
    'annotation': Target(voc.parse, 'x.xml', _annotations),
    'instances': Target(coco.parse, 'x.json', lambda: [json.dumps(coco_content()).encode()]),
    'list': Target(voc.listed, 'x.txt', lambda: [b'000001\n000002 -1\n', 'ä\n'.encode('utf-16')]),
    'labels': Target(_labels, 'x.txt', lambda: [b'0 .5 .5 .25 .5\n1 .1 .2 .9 .2 .5 .75\n']),
    'names': Target(_names, 'data.yaml', lambda: [b'names: [cat]\n', b'names:\n  0: &a cat\n']),
    'image': Target(_image, 'x.jpg', _pictures),
    'safetensors': Target(loading.load, 'x.safetensors', lambda: [save(_tensors())]),
    'npz weights': Target(loading.load, 'x.npz', lambda: [_npz(**_tensors())]),
    'pickle': Target(loading.load, 'x.pkl', _pickled),
    'proposals': Target(results.load, 'x.npz', _proposals),
    'results': Target(_results, 'x.json', _entries),
    'config': Target(_config, 'config.json', lambda: [b'{"model": {"depth": 50}, "seed": 0}']),
    'metrics': Target(_metrics, 'metrics.jsonl', lambda: [b'{"step": 1, "loss": 0.5}\n' * 3]),
    'batch': Target(nonfinite.read, 'x.npz', _kept),
}
