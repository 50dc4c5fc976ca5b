"""Feature maps that are kept: the same losses, no image read twice, nothing wrong from a disk."""

import functools
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers import assert_same, compilations, last_state, messages, tiny_config, tiny_flags

import main
from rpn_jax import data
from rpn_jax.errors import InputError
from rpn_jax.files import cache_folder
from rpn_jax.training import loop
from rpn_jax.training.feature_cache import PLACES, DiskMaps, Features
from rpn_jax.training.parallel import place
from rpn_jax.training.step import init_state
from rpn_jax.training.workdir import read_history

pytestmark = pytest.mark.usefixtures('quick_compilation')
FROZEN = {'model__frozen_stages': 3, 'loss__box_weight': 1.0}
NUMBERS = 20  # of maps: ten scenes, each mirrored too


class Followed(NamedTuple):
    """What a few steps gave, and what they took."""

    losses: list
    read: list  # positions of the images, in the order in which they were read
    maps: Features
    said: list


def config_of(keep, **changes):
    """Returns the tiny config with its whole backbone frozen."""
    config = tiny_config(features__keep=keep, **FROZEN, **changes)
    config.data.pixels = 'torchvision'
    return config


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


def follow(keep, devices=1, steps=12, **changes):
    """Takes steps of the tiny config."""
    config, devices = config_of(keep or 'device', **changes), jax.devices()[:devices]
    with messages() as lines:
        maps, source, options = maps_of(config, devices)
        maps = maps if keep else None
    read, update = [], loop.update_of(config, *loop.build(config)[:2], devices)
    counted = source._replace(read=lambda i: read.append(i) or source.read(i))
    known = maps and maps.known
    batch_of = data.train_batch(counted, options, seed=config.seed, known=known)
    losses, state = [], place(first_state(), devices)
    with messages() as later:
        for step in range(steps):
            batch = batch_of(step)
            state, metrics = update(state, maps(batch) if maps else batch)
            each = [metrics[key] for key in ('loss_objectness', 'loss_box')]
            losses.append(jax.device_get(each))
    return Followed(losses, read, maps, lines + later)


@functools.cache
def plain():
    """Returns the same steps without any map kept."""
    return follow('')


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Returns an empty cache folder."""
    monkeypatch.setenv('RPN_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'features'


@pytest.mark.parametrize('keep', PLACES)
@pytest.mark.parametrize('devices', [1, 4])
def test_losses_are_those_without(keep, devices, cache):
    kept = follow(keep, devices)
    np.testing.assert_allclose(kept.losses, plain().losses, rtol=1e-5)
    assert np.ptp(kept.losses, axis=0).min() > 0.01  # or else nothing was compared
    assert len(plain().read) == 48 and len(kept.read) <= NUMBERS
    there = sum(kept.maps.known(number) is not None for number in range(NUMBERS))
    assert len(kept.read) - there in (
        0,
        1,
    )  # the end of an epoch may have an image twice in a batch


def test_a_limit_keeps_some_and_says_so():
    size = 8 * 8 * 64 * 4  # of a map of conv3, in bytes
    kept = follow('host', features__gigabytes=3.5 * size / 1e9)
    np.testing.assert_allclose(kept.losses, plain().losses, rtol=1e-5)
    assert sum(kept.maps.known(n) is not None for n in range(NUMBERS)) == 3
    assert kept.said[0].startswith("feature maps: 3 of 20 kept in the host's memory, ")
    assert kept.said[1].startswith('note: all of them take 0.000328 GB, more than features.gig')


def test_another_run_finds_what_is_on_disk(cache):
    first = follow('disk')
    again = follow('disk')
    np.testing.assert_array_equal(again.losses, first.losses)
    assert not again.read
    (folder,) = cache.iterdir()
    said = again.said[0]
    assert f' of 20 kept in {folder}, ' in said and said.endswith('; 19 are there')
    assert json.loads((folder / 'about.json').read_text())['images'] == 10


def folder_of(**changes):
    """Returns the folder in which a config's maps are kept."""
    return maps_of(config_of('disk', **changes), jax.devices()[:1])[0]._maps.folder


def test_a_folder_is_of_what_decides_the_numbers(cache, monkeypatch):
    other = [{'seed': 1}, {'model__stride_in_1x1': True}, {'data__mean': (1.0, 2.0, 3.0)}]
    folders = [folder_of(), *(folder_of(**changes) for changes in other)]
    assert len(set(folders)) == 4
    assert folder_of(optim__learning_rate=0.5, targets__samples=9) == folders[0]
    weights = first_state()
    changed = jax.tree.map(np.copy, weights)
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


@pytest.mark.parametrize(
    'harm', ['cut checksums', 'cut maps', 'changed map', 'no maps', 'noise', 'zeros']
)
def test_what_is_damaged_on_disk_is_made_again(tmp_path, harm):
    rows = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)
    like = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    first = DiskMaps(tmp_path, like, 5, {})
    for number in range(5):
        first[number] = rows[number]
    maps, sums = tmp_path / 'maps', tmp_path / 'checksums'
    if harm == 'cut checksums':
        sums.write_bytes(sums.read_bytes()[:-3])
    elif harm == 'cut maps':
        maps.write_bytes(maps.read_bytes()[:-9])
    elif harm == 'changed map':
        content = bytearray(maps.read_bytes())
        content[-100] ^= 1
        maps.write_bytes(content)
    elif harm == 'no maps':
        maps.unlink()
    elif harm == 'zeros':  # as after a power cut
        sums.write_bytes(bytes(4 * 5))
    else:
        sums.write_bytes(np.random.default_rng(0).bytes(801))
    for repaired in (False, True):
        kept = DiskMaps(tmp_path, like, 5, {})
        lost = [number for number in range(5) if kept.get(number) is None]
        if repaired:
            assert lost == [] and len(kept) == 5
        else:
            assert lost == ([0, 1, 2, 3, 4] if harm in ('no maps', 'noise', 'zeros') else [4])
        for number in {*range(5)} - {*lost}:
            np.testing.assert_array_equal(kept.get(number), rows[number])
        for number in lost:
            kept[number] = rows[number]


def test_a_damaged_map_is_mended_where_the_limit_is_reached(cache):
    limit = 3.5 * 8 * 8 * 64 * 4 / 1e9
    first = follow('disk', features__gigabytes=limit)
    (folder,) = cache.iterdir()
    content = bytearray((folder / 'maps').read_bytes())
    kept = np.flatnonzero(np.fromfile(folder / 'checksums', np.uint32))[0]
    content[8 * 8 * 64 * 4 * kept + 100] ^= 1
    (folder / 'maps').write_bytes(content)
    again = follow('disk', features__gigabytes=limit)
    assert len(follow('disk', features__gigabytes=limit).read) < len(again.read) < len(first.read)


def test_a_full_disk_ends_the_keeping_not_the_run(cache, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('rpn_jax.training.feature_cache.os.posix_fallocate', full)
    kept = follow('disk')
    np.testing.assert_allclose(kept.losses, plain().losses, rtol=1e-5)
    assert [line for line in kept.said if 'No space left' in line] == kept.said[1:]
    assert len(kept.said) == 2 and len(kept.read) == 48


def test_a_folder_that_cannot_be_used_is_named(cache):
    cache.parent.mkdir()
    cache.write_text('a file')
    with pytest.raises(
        InputError, match=r'features.*: feature maps cannot be kept there .*RPN_JAX'
    ):
        folder_of()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'features__keep': 'ram'}, "features.keep: 'ram' is not one of '', 'device', 'host', 'd"),
        ({'features__keep': 'host', 'model__frozen_stages': 2}, 'set model.frozen_stages=3'),
        ({'features__keep': 'host', 'data__resize': 'short_side'}, "set data.resize='square'"),
        ({'features__gigabytes': -1.0}, 'features.gigabytes: -1.0 is out of bounds'),
    ],
)
def test_what_cannot_be_kept_is_refused(changes, message, tmp_path, capsys):
    assert main.main(tiny_flags(tmp_path / 'run', **(FROZEN | changes))) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ') and said.count('\n') == 1 and message in said
    assert not (tmp_path / 'run').exists()


class Killed(Exception):
    """Ends a run at an unforeseen place."""


def test_a_run_that_died_ends_bit_for_bit_like_one_that_did_not(tmp_path, cache):
    def die(line):
        if line.startswith('step 6/8'):
            raise Killed

    config = tiny_config(features__keep='host', evaluation__every=0, **FROZEN)

    def train(folder, watch=None):
        with messages(watch) as lines:
            loop.train(config, folder)
        return lines

    with compilations() as compiled:
        train(tmp_path / 'whole')
    assert compiled.count('jit(compute)') == 4  # one for each device, of one program
    assert compiled.count('jit(_fun)') == 1  # the update
    with pytest.raises(Killed):
        train(tmp_path / 'died', die)
    lines = train(tmp_path / 'died')
    assert 'steps 4 to 8' in lines[0]
    assert any(
        line.startswith("feature maps: 20 of 20 kept in the host's memory") for line in lines
    )
    states = [last_state(config, tmp_path / name) for name in ('whole', 'died')]
    assert_same(*states)
    losses = [[x.get('loss') for x in read_history(tmp_path / name)] for name in ('whole', 'died')]
    assert losses[0] == losses[1] and len(losses[0]) == 8


def test_the_cache_folder_is_that_of_everything_else(cache):
    folder_of()
    assert cache.parent == cache_folder() and len(list(cache.iterdir())) == 1
