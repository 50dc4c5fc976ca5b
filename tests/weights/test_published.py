"""torchvision's weights, fetched from a server on this machine; test_files.py tests downloads."""

import hashlib
import logging
import re
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from data_files import write_weights

from rpn_jax import files
from rpn_jax.errors import InputError
from rpn_jax.training import pretrained
from rpn_jax.weights import published


@pytest.fixture
def imagenet_server(server, monkeypatch, tmp_path):
    """Serves a ResNet-50 of one tensor, whose hash is known; its `path` is where it has to be."""
    tensors = {'conv1.weight': np.ones((2, 3, 7, 7), np.float32)}
    server.content = write_weights(tmp_path / 'x.pth', 'pth', tensors).read_bytes()
    server.length = len(server.content)
    digest = hashlib.sha256(server.content).hexdigest()[:8]
    server.path = tmp_path / 'cache' / f'resnet50-{digest}.pth'
    monkeypatch.setattr(published, 'ADDRESS', server.url.removesuffix('x.tar'))
    monkeypatch.setattr(published, 'FILES', {'imagenet': {50: f'resnet50-{digest}.pth'}})
    monkeypatch.setenv('RPN_JAX_CACHE', str(tmp_path / 'cache'))
    return server


def test_a_config_names_them_and_they_are_fetched_once(imagenet_server, caplog):
    """model.pretrained='imagenet' reaches the server, the cache and the .pth reader."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        loaded = pretrained.load('imagenet', 50, (0.5, 1, 2))
        np.testing.assert_array_equal(loaded['conv1.weight'], np.ones((2, 3, 7, 7)))
    assert caplog.messages[0].startswith('fetching http') and imagenet_server.asked == 1
    assert list(imagenet_server.path.parent.iterdir()) == [imagenet_server.path]


def test_what_has_another_hash_is_refused_and_can_be_put_there_by_hand(imagenet_server):
    whole, path = imagenet_server.content, imagenet_server.path
    imagenet_server.content = b'x' + whole[1:]
    by_hand = f'fetch {published.ADDRESS}{path.name} by other means and put it at {path}'
    with pytest.raises(InputError, match='another hash') as error:
        published.fetch('imagenet', 50)
    assert str(error.value).endswith(by_hand)
    path.write_bytes(whole)
    assert published.fetch('imagenet', 50) == path and imagenet_server.asked == 1


def test_another_depth_is_refused():
    with pytest.raises(InputError, match='has weights of ResNets of depth 50, 101, 152, not 26'):
        published.fetch('imagenet', 26)


def test_the_cache_is_the_platforms_unless_the_environment_names_one(monkeypatch):
    monkeypatch.delenv('RPN_JAX_CACHE', raising=False)
    assert files.cache_folder() == platformdirs.user_cache_path('rpn_jax')
    monkeypatch.setenv('RPN_JAX_CACHE', '~/weights')
    assert files.cache_folder() == Path.home() / 'weights'


def test_the_hashes_are_eight_digits():
    assert [list(digests) for digests in published.FILES.values()] == [[50, 101, 152]] * 2
    hashes = {digest for digests in published.FILES.values() for digest in digests.values()}
    assert len(hashes) == 6 and all(re.fullmatch('[0-9a-f]{8}', digest) for digest in hashes)
