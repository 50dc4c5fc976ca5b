"""torchvision's weights, fetched from a server on this machine: whole, cut off, or others."""

import hashlib
import logging
import threading
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from data_files import CONTENT, Server, write_weights

from rpn_jax import files
from rpn_jax.errors import InputError
from rpn_jax.training import pretrained
from rpn_jax.weights import imagenet

NAME = f'resnet50-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth'


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Server(('127.0.0.1', 0), Server.RequestHandlerClass)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(imagenet, 'ADDRESS', f'http://127.0.0.1:{server.server_port}/')
    monkeypatch.setattr(imagenet, 'FILES', {'imagenet': {50: NAME}})
    monkeypatch.setenv('RPN_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch():
    return imagenet.fetch('imagenet', 50)


def cached(folder):
    return [path for path in (folder / 'cache').rglob('*')]


def test_a_file_is_fetched_once(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = fetch()
    assert path == tmp_path / 'cache' / NAME and path.read_bytes() == CONTENT
    assert caplog.messages == [f'fetching {imagenet.ADDRESS}{NAME} to {tmp_path / "cache"}']
    assert fetch() == path and server.asked == 1
    assert cached(tmp_path) == [path]


def test_a_config_names_them(server, tmp_path, monkeypatch, caplog):
    """model.pretrained='imagenet' goes through the server, the cache and the .pth reader."""
    tensors = {'conv1.weight': np.ones((2, 3, 7, 7), np.float32)}
    server.content = write_weights(tmp_path / 'x.pth', 'pth', tensors).read_bytes()
    server.length = len(server.content)
    name = f'resnet50-{hashlib.sha256(server.content).hexdigest()[:8]}.pth'
    monkeypatch.setattr(imagenet, 'FILES', {'imagenet': {50: name}})
    caplog.set_level(logging.INFO)
    for _ in range(2):
        loaded = pretrained.load('imagenet', 50, (0.5, 1, 2))
        np.testing.assert_array_equal(loaded['conv1.weight'], tensors['conv1.weight'])
    assert caplog.messages[0].startswith('fetching http') and server.asked == 1


def test_a_length_need_not_be_told(server, tmp_path):
    server.length = 0
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        (dict(content=CONTENT[:-1]), '3499999'),
        (dict(content=b''), 'cannot be fetched'),
        (dict(content=CONTENT[:-1], length=0), 'another hash'),
        (dict(content=b'x' + CONTENT[1:]), 'another hash'),
        (dict(length=2**40), '1048576 MiB'),
        (dict(length=-5), 'cannot be fetched'),
        (dict(length='abc'), 'cannot be fetched'),
        (dict(status=404), 'the server answered 404'),
        (dict(status=500), 'the server answered 500'),
    ],
    ids=lambda part: part if isinstance(part, str) else '',
)
def test_what_is_not_whole_is_not_kept(server, tmp_path, change, complaint):
    for key, value in change.items():
        setattr(server, key, value)
    with pytest.raises(InputError) as error:
        fetch()
    message = str(error.value)
    assert complaint in message and '\n' not in message
    by_hand = f'fetch {imagenet.ADDRESS}{NAME} by other means and put it at {tmp_path}/cache/{NAME}'
    assert message.endswith(by_hand)
    assert cached(tmp_path) == []


def test_an_endless_answer_is_cut_short(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'LARGEST', 1000)
    server.length = 0
    with pytest.raises(InputError, match='more than 0 MiB'):
        fetch()
    assert cached(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_fetched_anew(server, tmp_path):
    fetch().write_bytes(CONTENT[:-1])
    assert fetch().read_bytes() == CONTENT and server.asked == 2


def test_a_file_put_there_by_hand_needs_no_network(server, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, 'ADDRESS', 'http://127.0.0.1:9/')
    with pytest.raises(InputError, match=r'cannot be fetched \(.*refused.*\); fetch'):
        fetch()
    (tmp_path / 'cache' / NAME).write_bytes(CONTENT)
    assert fetch() == tmp_path / 'cache' / NAME


def test_a_cache_that_cannot_be_is_told(server, tmp_path):
    (tmp_path / 'cache').write_text('a file')
    with pytest.raises(InputError, match='cannot be fetched .*exists'):
        fetch()


def test_another_depth_is_refused(server):
    with pytest.raises(InputError, match="'imagenet' has ResNets of depth 50, not 26"):
        imagenet.fetch('imagenet', 26)
    assert server.asked == 0


def test_the_cache_is_the_platforms_unless_said(monkeypatch):
    monkeypatch.delenv('RPN_JAX_CACHE', raising=False)
    assert files.cache_folder() == platformdirs.user_cache_path('rpn_jax')
    monkeypatch.setenv('RPN_JAX_CACHE', '~/weights')
    assert files.cache_folder() == Path.home() / 'weights'


def test_the_names_end_in_a_hash():
    for names in imagenet.FILES.values():
        assert names.keys() == {50, 101, 152}
        for depth, name in names.items():
            start, digits = name.removesuffix('.pth').split('-')
            assert start == f'resnet{depth}' and len(digits) == 8 and int(digits, 16)
