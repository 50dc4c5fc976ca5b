"""Checkpoints keep every bit, the newest ones, and open on any devices."""

import os
import shutil
import threading
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same

from rpn_jax.errors import InputError, Interrupted
from rpn_jax.training import checkpoint
from rpn_jax.training.checkpoint import Checkpoints
from rpn_jax.training.parallel import replicate
from rpn_jax.training.step import TrainState


def state_of(step, devices=4):
    """Returns a small state, placed, whose numbers are different at every step."""
    random = np.random.default_rng(step)
    params = {
        'backbone': {'kernel': jnp.asarray(random.normal(size=(3, 4)), jnp.float32)},
        'head': {'bias': jnp.asarray(random.normal(size=5), jnp.bfloat16)},
    }
    opt_state = ({'trace': jnp.ones(4)}, {'count': jnp.int32(1)})
    state = TrainState(jnp.int32(step), params, {'mean': jnp.arange(3.0)}, opt_state)
    return replicate(state, jax.devices()[:devices])


def write(folder, steps, keep=3, devices=4):
    """Saves states of these steps, one after the other."""
    with Checkpoints(folder, every=1, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step, devices))


def test_a_workdir_without_checkpoints_gives_the_state_back(tmp_path):
    state = state_of(0)
    with Checkpoints(tmp_path, every=1, keep=1) as checkpoints:
        assert checkpoints.latest is None
        assert checkpoints.load(state) is state
    assert checkpoint.steps(tmp_path) == [] and checkpoint.steps(tmp_path / 'nowhere') == []
    with pytest.raises(InputError, match='no checkpoint; train first'):
        checkpoint.restore(tmp_path)


@pytest.mark.parametrize(('saved_on', 'loaded_on'), [(4, 1), (1, 2)])
def test_a_state_comes_back_bit_for_bit_on_other_devices(tmp_path, saved_on, loaded_on):
    write(tmp_path, [7], devices=saved_on)
    template = state_of(8, loaded_on)
    with Checkpoints(tmp_path, every=1, keep=3) as checkpoints:
        assert checkpoints.latest == 7
        state = checkpoints.load(template)
    assert_same(state, state_of(7))
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(state))


def test_the_newest_are_kept_and_restored_as_numpy_arrays(tmp_path):
    write(tmp_path, [1, 2, 10], keep=2)
    assert checkpoint.steps(tmp_path) == [2, 10]
    for step, wanted in ((10, None), (2, 2)):
        state, found = checkpoint.restore(tmp_path, wanted)
        assert found == step and state['step'] == step
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(state['params']))
        assert_same(state['params'], jax.device_get(state_of(step).params))
        assert jax.tree.leaves(state['opt_state']) == [...] * 2  # not read
    assert checkpoint.variables(tmp_path, 2)[0].keys() == {'params', 'batch_stats'}
    with pytest.raises(InputError, match='checkpoints: no checkpoint of step 4; there are 2, 10'):
        checkpoint.restore(tmp_path, 4)


def test_the_best_is_kept_beside_the_newest(tmp_path):
    """Steps without a figure are never the best."""
    figures = {1: 0.3, 2: 0.8, 3: None, 5: 0.7, 6: 0.1}
    for steps in (range(1, 5), range(5, 8)):  # the second run resumes
        with Checkpoints(tmp_path, every=1, keep=2, best='AR@100') as checkpoints:
            for step in steps:
                own = {'AR@100': figures[step], 'AR@10': 1 - step} if step in figures else {}
                assert checkpoints.is_best(own) == (step in (1, 2)), step
                checkpoints.save(step, state_of(step), own)
    assert checkpoint.steps(tmp_path) == [2, 6, 7]
    assert checkpoint.restore(tmp_path)[1] == 7  # the newest is still what is restored
    for best, figure in (('AR@100', 0.8), ('', 1.0)):  # as good as the best, and not asked for
        with Checkpoints(tmp_path, every=1, keep=2, best=best) as checkpoints:
            assert not checkpoints.is_best({'AR@100': figure})


def test_a_step_that_exists_is_left_alone(tmp_path):
    write(tmp_path, [3])
    with Checkpoints(tmp_path, every=1, keep=3) as checkpoints:
        checkpoints.save(3, state_of(99))
    assert checkpoint.restore(tmp_path)[0]['step'] == 3


def test_a_checkpoint_that_was_cut_off_does_not_count(tmp_path):
    write(tmp_path, [1, 2])
    root = checkpoint.folder(tmp_path)
    shutil.copytree(root / '2', root / '3.orbax-checkpoint-tmp')  # Orbax renames it last
    (root / 'notes').write_text('something else')
    assert checkpoint.steps(tmp_path) == [1, 2]
    write(tmp_path, [3])
    assert checkpoint.restore(tmp_path)[1] == 3
    (root / '4').write_text('something else')
    assert checkpoint.steps(tmp_path) == [1, 2, 3]


def test_what_is_being_written_does_not_follow_the_state(tmp_path):
    following = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = replicate({'step': jnp.int32(1), 'params': jnp.ones((300, 300))}, jax.devices())
    with Checkpoints(tmp_path, every=1, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state)
            state = following(state)
    for step in (1, 2, 3):
        with Checkpoints(tmp_path, every=1, keep=3) as checkpoints:
            saved = checkpoints._checkpointer.load(step, state)
        assert saved['step'] == step and np.all(np.asarray(saved['params']) == step)


def test_saves_leave_no_threads_and_no_descriptors(tmp_path):
    state, counts = state_of(1), []
    with Checkpoints(tmp_path, every=1, keep=2) as checkpoints:
        for step in range(1, 21):
            checkpoints.save(step, state)
            counts.append(len(os.listdir('/proc/self/fd')))
    assert max(counts) < counts[1] + 12  # each save had left three


@pytest.mark.parametrize(
    'error',
    [OSError(28, 'No space left on device'), ValueError("EXHAUSTED: x\n[os_error_code='28']")],
)
def test_a_save_that_fails_is_told_at_the_next_step(tmp_path, monkeypatch, error):
    response = Future()
    with pytest.raises(InputError) as caught, Checkpoints(tmp_path, every=1, keep=2) as checkpoints:
        checkpoints.save(1, state_of(1))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._checkpointer, 'save_async', lambda *_, **__: response)
            checkpoints.save(2, state_of(2))
        checkpoints.check()  # it is still being written
        response.set_exception(error)
        checkpoints.check()
    expected = (
        '2: the checkpoint cannot be written (No space left on device); make room on the disk; '
        'the newest checkpoint is of step 1, the same command goes on from there'
    )
    assert expected in str(caught.value)


def test_a_save_that_the_disk_refuses_is_one_line_of_all_threads(tmp_path, caplog):
    resource = pytest.importorskip('resource')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    numbers = np.random.default_rng(0).normal(size=(5, 9999))
    state = replicate(dict(enumerate(numbers.astype(np.float32))), jax.devices()[:1])
    with pytest.raises(InputError, match='.File too large.; raise the limit .*; there is no check'):
        with Checkpoints(tmp_path, every=1, keep=2) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9999, limits[1]))
            try:
                checkpoints.save(1, state)
                checkpoints.finish()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text == ''
    others = [type(thread).__module__ for thread in threading.enumerate()]
    assert not any(name.startswith('orbax') for name in others)


@pytest.mark.parametrize('error', [InputError('not finite'), Interrupted(2, 15), OSError()])
def test_a_save_that_fails_at_the_end_hides_no_other_error(tmp_path, caplog, error):
    with pytest.raises(InputError) as caught, Checkpoints(tmp_path, every=1, keep=2) as checkpoints:
        checkpoints._saving = 2, Future()
        checkpoints._saving[1].set_exception(OSError(28, 'No space left on device'))
        raise error
    told = caplog.text if isinstance(error, InputError) else str(caught.value)
    assert 'cannot be written (No space left on device); make room' in told
    assert (caught.value is error) == isinstance(error, InputError)


def test_a_folder_that_is_gone_is_an_error_not_made_again(tmp_path):
    with pytest.raises(InputError, match='cannot be written .No such file or directory.; if it'):
        with Checkpoints(tmp_path, every=1, keep=2) as checkpoints:
            shutil.rmtree(checkpoint.folder(tmp_path))
            checkpoints.save(1, state_of(1))
    assert not checkpoint.folder(tmp_path).exists()


def flip(path):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def swap(path, **changes):
    """Puts another state of the same step in place of a checkpoint's: only hashes can tell."""
    other, step = path.parents[3] / 'other', int(path.parent.name)
    changes = changes or state_of(9).__dict__ | {'step': state_of(step).step}
    with Checkpoints(other, every=1, keep=1) as checkpoints:
        checkpoints.save(step, state_of(step).replace(**changes))
    shutil.rmtree(path)
    shutil.copytree(checkpoint.folder(other) / str(step) / 'state', path)


DAMAGE = {
    'flip': ('state/**/d/*', flip),
    'truncate': ('state/**/d/*', lambda path: os.truncate(path, path.stat().st_size // 2)),
    'zero': ('state/manifest.ocdbt', lambda path: path.write_bytes(bytes(path.stat().st_size))),
    'empty': ('state/_METADATA', lambda path: path.write_bytes(b'')),
    'remove': ('_CHECKPOINT_METADATA', os.unlink),
    'all': ('state', shutil.rmtree),
    'swap': ('state', swap),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_newest_good_one_taken(tmp_path, kind, caplog):
    tmp_path = tmp_path / 'run'
    write(tmp_path, [1, 2])
    pattern, damage = DAMAGE[kind]
    root = checkpoint.folder(tmp_path)
    for path in list((root / '2').glob(pattern)):
        damage(path)
    ((_, good), (_, bad)) = checkpoint.verify(tmp_path)
    assert good == '' and '2: a damaged checkpoint (' in bad and '\n' not in bad
    state, step = checkpoint.restore(tmp_path)
    assert step == 1 and caplog.messages[-1] == f'{bad}; the newest good one, of step 1, is taken'
    assert_same(state['params'], jax.device_get(state_of(1).params))
    with pytest.raises(InputError, match='2: a damaged checkpoint .*; there are 1, 2'):
        checkpoint.restore(tmp_path, 2)
    with Checkpoints(tmp_path, every=1, keep=3) as checkpoints:
        assert_same(checkpoints.load(state_of(0)), state_of(1))
        assert caplog.messages[-1].endswith('it is now 2.damaged; the run goes on from step 1')
        checkpoints.save(2, state_of(2))
    assert [*checkpoint.verify(tmp_path)] == [(1, ''), (2, '')]


def test_a_signal_while_reading_is_no_damage(tmp_path, monkeypatch):
    def read(*_):  # as Orbax does
        try:
            raise KeyboardInterrupt(2)
        except BaseException as error:
            raise Exception('Encountered error while reading array') from error

    write(tmp_path, [1, 2])
    monkeypatch.setattr(checkpoint, '_load_variables', read)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.restore(tmp_path)


def test_the_config_is_saved_with_a_checkpoint(tmp_path):
    write(tmp_path, [1])
    assert checkpoint.config_of(tmp_path) == ({}, None)
    with Checkpoints(tmp_path, every=1, keep=3, config={'seed': 3, 'data.mean': (1.5,)}) as saved:
        saved.save(2, state_of(2))
        saved.save(3, state_of(3))
    path = checkpoint.folder(tmp_path) / '3/_CHECKPOINT_METADATA'
    path.write_text(path.read_text().replace('seed', 'seec'))
    config = {'seed': 3, 'data.mean': [1.5]}
    assert checkpoint.config_of(tmp_path) == checkpoint.config_of(tmp_path, 2) == (config, 2)
    assert '(its config is not what was saved)' in [*checkpoint.verify(tmp_path)][2][1]


def test_an_optimizers_state_that_is_not_what_was_saved_is_not_gone_on_from(tmp_path, caplog):
    """An evaluation does not read it."""
    write(tmp_path / 'run', [1, 2])
    path = checkpoint.folder(tmp_path / 'run') / '2/state'
    trace, *rest = state_of(2).opt_state
    swap(path, opt_state=({'trace': trace['trace'] + 1}, *rest))
    assert checkpoint.restore(tmp_path / 'run')[1] == 2
    assert 'opt_state/0/trace is not what was saved' in [*checkpoint.verify(tmp_path / 'run')][1][1]
    with Checkpoints(tmp_path / 'run', every=1, keep=3) as checkpoints:
        assert checkpoints.load(state_of(0)).step == 1
    assert 'opt_state/0/trace is not what was saved' in caplog.text


def test_a_checkpoint_under_another_steps_name_is_damaged(tmp_path):
    write(tmp_path, [1])
    root = checkpoint.folder(tmp_path)
    shutil.copytree(root / '1', root / '5')
    with Checkpoints(tmp_path, every=1, keep=3) as checkpoints:
        assert_same(checkpoints.load(state_of(0)), state_of(1))
    assert (root / '5.damaged').exists()
    (root / '1').rename(root / '3')
    with pytest.raises(InputError, match='.it holds step 1.; there is no good'):
        checkpoint.restore(tmp_path)
