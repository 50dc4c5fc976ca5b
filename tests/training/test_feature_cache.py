"""Feature maps that are kept: the same losses, no image read twice, nothing wrong from a disk."""

import functools
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers import assert_same, compilations, last_state, lines_of, messages, shape_of, tiny_config

from rpn_jax import data
from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.errors import InputError
from rpn_jax.training import loop
from rpn_jax.training.feature_cache import DiskMaps, Features
from rpn_jax.training.parallel import replicate
from rpn_jax.training.step import init_state

NUMBERS = 20  # of maps: ten scenes, each mirrored too
SIZE = 8 * 8 * 64 * 4  # bytes of a map of conv3
LIMIT = 3.5 * SIZE / 1e9  # gigabytes


class Followed(NamedTuple):
    """What a few steps gave, and what they took."""

    losses: np.ndarray  # [steps, 2]
    read: list  # positions of the images, in the order in which they were read
    maps: Features
    logged: list


def config_of(keep, **changes):
    """Returns the tiny config with its whole backbone frozen."""
    frozen = {'model__frozen_stages': 3, 'loss__box_weight': 1.0}
    return tiny_config(features__keep=keep, **frozen | changes)


@functools.cache
def first_state():
    """Returns the state before the first step, in NumPy."""
    config = config_of('')
    return jax.device_get(init_state(*loop.build(config)[:2], config.seed))


def maps_of(config, devices):
    """Returns the Features of a config, and the source and options of its batches."""
    options = data.Options(**config.data)
    source, model = data.open_split(options, 'train', seed=config.seed), loop.build(config)[0]
    return loop.feature_cache_of(config, model, first_state(), source, devices), source, options


@functools.cache
def update_of(devices):
    config = config_of('')
    return loop.update_of(config, *loop.build(config)[:2], jax.devices()[:devices])


def follow(keep, devices=1, **changes):
    """Takes twelve steps of the tiny config."""
    config, read, losses = config_of(keep or 'device', **changes), [], []
    with messages() as lines:
        maps, source, options = maps_of(config, jax.devices()[:devices])
        counted = source._replace(read=lambda i: read.append(i) or source.read(i))
        known = maps.known if keep else None
        batch_of = data.train_batch(counted, options, seed=config.seed, known=known)
        state = replicate(first_state(), jax.devices()[:devices])
        for step in range(12):
            batch = batch_of(step)
            state, metrics = update_of(devices)(state, maps(batch) if keep else batch)
            losses.append([metrics['loss_objectness'], metrics['loss_box']])
    return Followed(np.float32(losses), read, maps, lines)


@functools.cache
def plain():
    """Returns the same steps without any map kept."""
    return follow('')


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Returns an empty cache folder."""
    monkeypatch.setenv('RPN_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'features'


def count_of(kept):
    return sum(kept.maps.known(number) is not None for number in range(NUMBERS))


@pytest.mark.parametrize(('keep', 'devices'), [('device', 4), ('host', 1), ('disk', 4)])
def test_losses_are_those_without(keep, devices, cache):
    kept = follow(keep, devices)
    np.testing.assert_allclose(kept.losses, plain().losses, rtol=1e-5)
    assert np.ptp(kept.losses, axis=0).min() > 0.01  # or else nothing was compared
    assert len(plain().read) == 48 and len(kept.read) <= NUMBERS
    # The end of an epoch may have an image twice in a batch.
    assert len(kept.read) - count_of(kept) in (0, 1)


def test_the_maps_under_a_pyramid_are_kept_together():
    changes = {'model__fpn_stages': (2, 3), 'anchors__sizes': ((16,), (32,), (64,))}
    config = config_of('host', **changes)
    model, optimizer, _ = loop.build(config)
    state, options = init_state(model, optimizer, config.seed), data.Options(**config.data)
    source = data.open_split(options, 'train', seed=config.seed)
    kept = loop.feature_cache_of(config, model, state, source, jax.devices()[:1])
    batch_of = data.train_batch(source, options, seed=config.seed, known=kept.known)
    plain = data.train_batch(source, options, seed=config.seed)(0)
    images = normalise(plain['image'], plain['size'], pixel_family('torchvision'))
    expected = jax.jit(functools.partial(model.apply, method='backbone_maps'))
    for _ in range(2):  # made, then kept
        maps = kept(batch_of(0))['features']
        for ours, theirs in zip(maps, expected(state.variables, images), strict=True):
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-5)
    assert [x.shape[2:] for x in maps] == [(16, 16, 32), (8, 8, 64)]


def test_a_limit_keeps_some_and_says_so():
    kept = follow('host', features__gigabytes=LIMIT)
    np.testing.assert_allclose(kept.losses, plain().losses, rtol=1e-5)
    assert count_of(kept) == 3
    assert kept.logged[0].startswith("feature maps: 3 of 20 kept in the host's memory, ")
    assert kept.logged[1].startswith('note: all of them take 0.000328 GB, more than features.gig')
    with messages() as logged:
        maps_of(config_of('device', data__flip=False), jax.devices()[:1])
    assert logged[0].startswith("feature maps: 10 of 10 kept in the device's memory, ")


def test_another_run_finds_what_is_on_disk(cache):
    first, again = follow('disk'), follow('disk')
    np.testing.assert_array_equal(again.losses, first.losses)
    assert not again.read
    (folder,) = cache.iterdir()
    assert f' of 20 kept in {folder}, ' in again.logged[0]
    assert again.logged[0].endswith('; 19 are there')
    assert json.loads((folder / 'about.json').read_text())['images'] == 10


def folder_of(**changes):
    """Returns the folder in which a config's maps are kept."""
    return maps_of(config_of('disk', **changes), jax.devices()[:1])[0]._maps.folder


def test_a_folder_is_of_what_decides_the_numbers(cache, monkeypatch):
    other = [{'seed': 1}, {'model__stride_in_1x1': True}, {'data__mean': (1.0, 2.0, 3.0)}]
    folders = [folder_of(), *(folder_of(**changes) for changes in other)]
    assert len(set(folders)) == 4
    assert folder_of(optim__learning_rate=0.5, targets__samples=9) == folders[0]
    changed = jax.tree.map(np.copy, first_state())
    changed.params['backbone']['stem_conv']['kernel'][0, 0, 0, 0] += 1
    monkeypatch.setitem(globals(), 'first_state', lambda: changed)
    assert folder_of() not in folders


def test_a_folder_is_of_these_image_files(cache, monkeypatch):
    original, stamps = data.open_split, ['1', '1', '2']

    def with_files(*arguments, **keywords):
        source, stamp = original(*arguments, **keywords), stamps.pop(0)
        files = data.records.Files([f'{n}.png' for n in range(10)], None, lambda position: stamp)
        return source._replace(files=files)

    monkeypatch.setattr(data, 'open_split', with_files)
    first, same, later = (folder_of() for _ in range(3))
    assert first == same != later


ALL = [0, 1, 2, 3, 4]
HARMS = {  # a file, what becomes of its bytes, and the maps that are lost
    'cut checksums': ('checksums', lambda old: old[:-3], [4]),
    'cut maps': ('maps', lambda old: old[:-9], [4]),
    'changed map': ('maps', lambda old: old[:-100] + bytes([old[-100] ^ 1]) + old[-99:], [4]),
    'no maps': ('maps', lambda old: b'', ALL),
    'noise': ('checksums', lambda old: np.random.default_rng(0).bytes(801), ALL),
    'a power cut': ('checksums', lambda old: bytes(len(old)), ALL),
}


@pytest.mark.parametrize('harm', HARMS)
def test_what_is_damaged_on_disk_is_made_again(tmp_path, harm):
    rows = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)
    file, damage, lost = HARMS[harm]

    def fill(expected):
        kept = DiskMaps(tmp_path, shape_of(*rows.shape[1:]), 5, {})
        assert [number for number in ALL if kept.get(number) is None] == expected
        for number in expected:
            kept[number] = rows[number]
        np.testing.assert_array_equal([kept.get(number) for number in ALL], rows)
        assert len(kept) == 5

    fill(ALL)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    fill(lost)
    fill([])


def test_a_damaged_map_is_mended_where_the_limit_is_reached(cache):
    first = follow('disk', features__gigabytes=LIMIT)
    (folder,) = cache.iterdir()
    content = bytearray((folder / 'maps').read_bytes())
    kept = np.flatnonzero(np.fromfile(folder / 'checksums', np.uint32))[0]
    content[SIZE * kept + 100] ^= 1
    (folder / 'maps').write_bytes(content)
    again, third = (follow('disk', features__gigabytes=LIMIT) for _ in range(2))
    assert len(third.read) < len(again.read) < len(first.read)


def test_a_full_disk_ends_the_keeping_not_the_run(cache, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('rpn_jax.training.feature_cache.os.posix_fallocate', full)
    kept = follow('disk')
    np.testing.assert_allclose(kept.losses, plain().losses, rtol=1e-5)
    assert [line for line in kept.logged if 'No space left' in line] == kept.logged[1:]
    assert len(kept.logged) == 2 and len(kept.read) == 48


def test_a_folder_that_cannot_be_used_is_named(cache):
    cache.parent.mkdir()
    cache.write_text('a file')
    with pytest.raises(InputError, match='features.*: feature maps cannot be kept there .*RPN_JAX'):
        folder_of()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'keep': 'ram'}, "^keep: 'ram' is not one of '', 'device', 'host', 'disk'$"),
        ({'model__frozen_stages': 2}, 'set model.frozen_stages=3'),
        ({'data__resize': 'short_side'}, "set data.resize='square'"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        loop.train(config_of(**{'keep': 'host'} | changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


class Killed(Exception):
    """Ends a run at an unforeseen place."""


def test_a_run_that_died_ends_bit_for_bit_like_one_that_did_not(tmp_path):
    def die(line):
        if line.startswith('step 6/8'):
            raise Killed

    config = config_of('host', evaluation__every=0)
    with compilations() as compiled:
        loop.train(config, tmp_path / 'whole')
    assert compiled.count('jit(compute)') == 4  # one for each device, of one program
    assert compiled.count('jit(_fun)') == 1  # the update
    with pytest.raises(Killed), messages(die):
        loop.train(config, tmp_path / 'died')
    with messages() as lines:
        loop.train(config, tmp_path / 'died')
    assert 'steps 4 to 8' in lines[0]
    assert any(x.startswith("feature maps: 20 of 20 kept in the host's memory") for x in lines)
    assert_same(*(last_state(config, tmp_path / name) for name in ('whole', 'died')))
    whole, died = (lines_of(tmp_path / name) for name in ('whole', 'died'))
    assert whole == died and len(whole) == 8
