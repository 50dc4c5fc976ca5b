"""torchvision's weights, fetched from a server on this machine; test_files.py tests downloads."""

import hashlib
import logging
import re
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from data_files import write_weights

from rpn_jax import files, weights
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


def test_names_end_with_eight_digits_of_the_hash():
    depths = [list(names) for names in published.FILES.values()]
    assert depths == [[50, 101, 152]] * 2 + [[50]] * 2
    names = [name for each in published.FILES.values() for name in each.values()]
    names += published.WITHOUT_EPSILON
    assert all(re.fullmatch(r'\w+-[0-9a-f]{8}\.pth', name) for name in names)
    assert (
        len({name.rpartition('-')[2] for name in names}) == 8 + len(published.WITHOUT_EPSILON) - 1
    )


def test_norms_that_were_trained_without_an_epsilon_compute_the_same_with_ours(tmp_path):
    """torchvision sets it to 0 for these files; a channel that is always 0 has no variance."""
    variance = np.float32([1.4e-45, 1e-30, 1e-9, 1e-5, 0.5, 3])
    norm = {'weight': np.float32([1e-20, 1e-12, 0.1, 1, 2, -3]), 'running_var': variance}
    tensors = {f'backbone.body.bn1.{part}': values for part, values in norm.items()}
    for name, epsilon in {
        'fasterrcnn_resnet50_fpn_coco-258fb6c6.pth': 0,
        'other.pth': 1e-5,
    }.items():
        loaded = weights.load(write_weights(tmp_path / name, 'pth', tensors))
        scale, new = (loaded[f'bn1.{part}'].astype(np.float64) for part in norm)
        factor = norm['weight'] / np.sqrt(variance.astype(np.float64) + epsilon)
        np.testing.assert_allclose(scale / np.sqrt(new + 1e-5), factor, rtol=1e-6)
        np.testing.assert_array_equal(new, variance)
