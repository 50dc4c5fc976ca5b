"""What is kept of a step that is not finite, and how it is read and shown again."""

import jax
import numpy as np
import pytest
from helpers import tiny_config, tiny_flags

import main
from rpn_jax import data
from rpn_jax.data.normalization import pixel_family
from rpn_jax.errors import InputError
from rpn_jax.training import loop, nonfinite
from rpn_jax.training.step import init_state

PIXELS = pixel_family('torchvision')


def batch_of(step=6, **changes):
    """Returns the batch of a step of the tiny run, and the ids of its images."""
    options = data.options(**tiny_config(**changes).data)
    source = data.open_split(options, options.train_split, seed=0)
    batch = data.train_batch(source, options, seed=0)(step - 1)
    return batch, [source.records[i].image_id for i in batch['index']]


def kept(step=6):
    batch, ids = batch_of(step)
    loss = np.float32([1, np.nan, 2, np.inf])
    return nonfinite.Kept(step, ids, loss, {'stem': np.float32([1, 2, 3, 4e9])}, batch)


@pytest.mark.parametrize(
    'changes',
    [
        {'model__remat': (3,)},
        {'model__fpn_stages': (2, 3), 'model__fpn_extra': 0, 'anchors__sizes': ((8,), (16,))},
    ],
)
def test_the_largest_activations_are_those_of_the_parts(changes):
    config = tiny_config(model__last_stage=3, **changes)
    model, optimizer, _ = loop.build(config)
    state, (batch, _) = init_state(model, optimizer, 0), batch_of()
    batch['image'][1] = 0
    found = nonfinite.make_largest(model, PIXELS)(state.variables, batch)
    fpn = ['fpn'] if config.model.fpn_stages else []
    assert list(found) == ['pixels', 'stem', 'conv2', 'conv3', *fpn, 'head']
    normalised = np.float32(PIXELS.mean) / PIXELS.std
    np.testing.assert_allclose(found['pixels'][1], np.max(np.abs(normalised)), rtol=1e-5)
    images = nonfinite.normalise(batch['image'], batch['size'], PIXELS)
    apply = jax.jit(model.apply, static_argnames='method')
    maps = apply(state.variables, images, method='backbone_maps')
    expected = np.abs(maps[-1]).max(axis=(1, 2, 3))
    assert np.all(found['conv3'] >= expected * (1 - 1e-4))  # it is that of its convolutions, too
    logits, deltas = apply(state.variables, images)
    expected = np.maximum(np.abs(logits).max(1), np.abs(deltas).max((1, 2)))
    np.testing.assert_allclose(found['head'], expected, rtol=1e-4)
    params = jax.tree.map(lambda x: x, state.params)
    params['backbone']['conv3_block0']['conv1']['kernel'] *= np.nan
    found = nonfinite.make_largest(model, PIXELS)(state.variables | {'params': params}, batch)
    assert np.isfinite(found['conv2']).all() and np.isnan(found['conv3']).all()
    text = nonfinite.line(found, [0, 2])
    assert ', conv3 not finite' in text and 'conv2 not' not in text


def test_what_is_kept_comes_back_and_not_without_end(tmp_path):
    own = kept()
    where = nonfinite.keep(tmp_path, own)
    path = tmp_path / 'nonfinite' / 'step_6.npz'
    assert where.endswith(f'--mode=inspect --workdir={tmp_path} --batch={path}')
    back = nonfinite.read(path)
    assert (back.step, back.image_ids) == (6, own.image_ids)
    np.testing.assert_array_equal(back.image_loss, own.image_loss)
    np.testing.assert_array_equal(back.largest['stem'], own.largest['stem'])
    for key, value in back.batch.items():
        np.testing.assert_array_equal(value, own.batch[key])
    for step in range(1, 20):
        text = nonfinite.keep(tmp_path, own._replace(step=step))
        assert nonfinite.read(path.with_name(f'step_{step}.npz')).step == step
    names = {f'step_{step}.npz' for step in (*range(1, nonfinite.MOST), 19)}
    assert {each.name for each in path.parent.iterdir()} == names and 'step_19.npz' in text


def test_a_disk_that_is_full_is_part_of_the_text(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device', 'x')

    monkeypatch.setattr(nonfinite, 'write_atomically', full)
    assert 'not kept' in (text := nonfinite.keep(tmp_path, kept())) and 'No space' in text


@pytest.mark.parametrize(
    'spoil',
    [
        lambda arrays: {k: v for k, v in arrays.items() if k != 'kind'},
        lambda arrays: arrays | {'own': np.zeros(3)},
        lambda arrays: arrays | {'image': arrays['image'].astype(np.float32)},
        lambda arrays: arrays | {'image': arrays['image'][:3]},
        lambda arrays: arrays | {'boxes': arrays['boxes'][:, :3]},
        lambda arrays: arrays | {'step': np.int64(0)},
        lambda arrays: arrays | {'step': np.int64(2**62)},
        lambda arrays: arrays | {'image_ids': np.frombuffer(b'\xff' * 16, '<U1')},
        lambda arrays: arrays | {'parts': np.array(['a', 'b'])},
        lambda arrays: arrays | {'image_ids': np.array([{}], object)},
    ],
)
def test_a_file_that_is_no_batch_is_refused(tmp_path, spoil):
    nonfinite.keep(tmp_path, kept())
    with np.load(tmp_path / 'nonfinite/step_6.npz') as file:
        arrays = dict(file)
    np.savez(tmp_path / 'spoiled.npz', **spoil(arrays))
    with pytest.raises(
        InputError, match=r'--batch=.*spoiled\.npz: not a batch that a run has kept'
    ):
        nonfinite.read(tmp_path / 'spoiled.npz')


def test_inspect_shows_a_batch_beside_the_data(tmp_path, capsys):
    own = kept()
    own.batch['image'][1, 3, 4] += 1
    nonfinite.keep(tmp_path, own)
    flags = ['inspect', *tiny_flags(tmp_path), f'--batch={tmp_path}/nonfinite/step_6.npz']
    assert main.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('step 6: ')
    rows = [line.split() for line in lines[2:6]]
    assert [row[0] for row in rows] == own.image_ids
    assert [row[1:-1] for row in rows] == [
        *(['1', '1'], ['not', 'finite', '2'], ['2', '3'], ['not', 'finite', '4e+09']),
    ]
    assert [row[-1] for row in rows] == ['yes', 'no', 'yes', 'yes']
    assert (tmp_path / 'inspect/step_0006.png').exists()
    assert main.main([*flags, '--config.seed=1']) == 1
    error = capsys.readouterr().err
    assert 'step 6 had the images ' in error and 'give the --workdir of its run' in error
