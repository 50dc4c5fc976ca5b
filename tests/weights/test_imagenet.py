"""torchvision's weights, fetched from a server on this machine; test_files.py tests downloads."""

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
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    monkeypatch.setattr(imagenet, 'ADDRESS', f'http://127.0.0.1:{server.server_port}/')
    monkeypatch.setattr(imagenet, 'FILES', {'imagenet': {50: NAME}})
    monkeypatch.setenv('RPN_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once_unless_it_is_damaged(server, tmp_path):
    path = imagenet.fetch('imagenet', 50)
    assert path == tmp_path / 'cache' / NAME and path.read_bytes() == CONTENT
    assert imagenet.fetch('imagenet', 50) == path and server.asked == 1
    path.write_bytes(CONTENT[:-1])
    assert imagenet.fetch('imagenet', 50).read_bytes() == CONTENT and server.asked == 2
    assert list((tmp_path / 'cache').iterdir()) == [path]


def test_a_config_names_them(server, tmp_path, monkeypatch, caplog):
    """model.pretrained='imagenet' reaches the server, the cache and the .pth reader."""
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


def test_what_cannot_be_fetched_can_be_put_there_by_hand(server, tmp_path, monkeypatch):
    server.content = b'x' + CONTENT[1:]
    path = tmp_path / 'cache' / NAME
    by_hand = f'fetch {imagenet.ADDRESS}{NAME} by other means and put it at {path}'
    with pytest.raises(InputError, match='another hash') as error:
        imagenet.fetch('imagenet', 50)
    assert str(error.value).endswith(by_hand) and list(path.parent.iterdir()) == []
    path.write_bytes(CONTENT)
    monkeypatch.setattr(imagenet, 'ADDRESS', 'http://127.0.0.1:9/')
    assert imagenet.fetch('imagenet', 50) == path


def test_another_depth_is_refused(server):
    with pytest.raises(InputError, match="'imagenet' has weights of ResNets of depth 50, not 26"):
        imagenet.fetch('imagenet', 26)
    assert server.asked == 0


def test_the_cache_is_the_platforms_unless_the_environment_names_one(monkeypatch):
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
