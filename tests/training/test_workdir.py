"""A workdir belongs to one config and one process, its history to the newest checkpoint."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import ROOT, assert_same
from ml_collections import FrozenConfigDict

from configs import default
from rpn_jax.config import items
from rpn_jax.errors import InputError
from rpn_jax.training import workdir

FREE = (  # keys that may change when a run goes on; every other one makes it another run
    *'steps log_every model.remat model.conv optim.schedule_steps optim.skip_nonfinite'.split(),
    *'features.keep features.gigabytes'.split(),
    *'data.path data.images data.annotations data.eval_split data.scenes data.on_bad'.split(),
    *'data.eval_path data.eval_images data.eval_annotations'.split(),
    *'data.max_boxes proposals.pre_nms proposals.post_nms proposals.nms_iou'.split(),
    *'proposals.min_size checkpoint.every checkpoint.keep checkpoint.best'.split(),
    *'evaluation.every evaluation.images'.split(),
)


def other(value):
    """Returns another value of the same type."""
    if isinstance(value, bool):
        return not value
    return value + {str: 'x', tuple: (3,)}.get(type(value), 1)


OTHER = {key: other(value) for key, value in items(default.get_config()).items()}
IDENTITY = [key for key in OTHER if key not in FREE]


def changed(**changes):
    """Returns the default config with some dotted keys changed; pixels are settled."""
    config = default.get_config()
    config.data.pixels = 'torchvision'
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def folder(tmp_path):
    """Returns a workdir of the default config."""
    workdir.begin(tmp_path / 'runs' / 'x', changed())
    return tmp_path / 'runs' / 'x'


def test_another_config_is_refused_by_every_key_that_differs(folder):
    folder.with_name('x-2').mkdir()
    with pytest.raises(InputError) as error:
        workdir.check(folder, changed(**OTHER))
    message = str(error.value)
    for key in IDENTITY:
        assert f' {key} was ' in message and f', is {OTHER[key]!r};' in message
    assert message.count(' was ') == len(IDENTITY) and message.startswith(f'workdir {folder} ')
    assert f'; name another --workdir, such as --workdir={folder}-3, ' in message


def test_the_same_config_and_what_may_change_are_accepted(folder):
    config = changed().to_dict()
    for accepted in (config, json.loads(json.dumps(config)), FrozenConfigDict(changed())):
        workdir.check(folder, accepted)
    workdir.check(folder, changed(**{key: OTHER[key] for key in FREE}))
    assert workdir.read_config(folder) == config
    assert type(workdir.read_config(folder)['anchors']['sizes']) is tuple


@pytest.mark.parametrize('key', workdir.YOUNGER)
def test_a_key_that_an_older_workdir_lacks_has_the_value_that_it_stood_for(folder, key):
    assert key in IDENTITY and workdir.YOUNGER[key] == items(default.get_config())[key]
    config = workdir.read_config(folder)
    section, name = key.split('.')
    del config[section][name]
    (folder / 'config.json').write_text(json.dumps(config))
    workdir.check(folder, changed())
    with pytest.raises(InputError, match=f'{key} was '):
        workdir.check(folder, changed(**{key: OTHER[key]}))


def test_only_what_is_asked_for_is_compared(folder):
    config = changed(**{'seed': 5, 'optim.learning_rate': 1.0, 'data.flip': False})
    workdir.check(folder, config, workdir.NETWORK)
    for key, value in (('model.depth', 50), ('data.mean', (1.0, 2.0, 3.0))):
        expected = f': {key} was .*, is {re.escape(repr(value))}; .* --workdir={folder}-2, '
        with pytest.raises(InputError, match=expected):
            workdir.check(folder, changed(**{key: value}), workdir.NETWORK)


def test_a_file_that_is_not_that_of_the_checkpoints_is_refused(folder, monkeypatch):
    """Whatever may change in a run may change in the file; earlier versions saved no config."""
    saved = json.loads(json.dumps(workdir.identity(changed())))
    monkeypatch.setattr(workdir.checkpoint, 'config_of', lambda _, step: (saved, step or 8))
    workdir.begin(folder, changed(**{key: OTHER[key] for key in FREE}))
    workdir.check_file(folder)
    workdir.begin(folder, changed(**OTHER))
    with pytest.raises(InputError) as error:
        workdir.check_file(folder)
    for key in IDENTITY:
        assert f' {key} is {OTHER[key]!r}, but ' in str(error.value)
    assert str(error.value).count(' in the checkpoint of step 8') == len(IDENTITY) == len(saved)
    saved = {}
    workdir.check_file(folder)


def test_a_key_younger_than_the_run_does_not_matter_but_one_that_went_does(folder):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    del config['data']['canvases'], config['model']['init']
    path.write_text(json.dumps(config))
    workdir.check(folder, changed())
    path.write_text(json.dumps(config | {'model': config['model'] | {'old': 1}}))
    with pytest.raises(InputError, match='config: model.old was 1, is None; name another'):
        workdir.check(folder, changed())


@pytest.mark.parametrize('text', ['{"seed": 0,', '[3]', '\xff'])
def test_what_is_no_config_is_refused(tmp_path, text):
    with pytest.raises(InputError, match='config.json: no such file; name a --config'):
        workdir.read_config(tmp_path)
    (tmp_path / 'config.json').write_bytes(text.encode('latin1'))
    with pytest.raises(InputError, match='config.json: not a config'):
        workdir.read_config(tmp_path)


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    hold = (
        'import sys, time\n'
        'from rpn_jax.training import workdir\n'
        'with workdir.locked(sys.argv[1]):\n'
        '    print("locked", flush=True)\n'
        '    time.sleep(60)\n'
    )
    folder = tmp_path / 'runs' / 'x'
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', hold, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b'locked\n'
        try:
            with pytest.raises(InputError, match='another process trains in it'):
                with workdir.locked(folder):
                    pass
        finally:
            process.kill()
    with workdir.locked(folder):
        pass
    folder.rmdir()  # it is empty
    with workdir.locked(folder):
        assert folder.exists()
    assert not folder.exists()  # nothing was written


def test_lines_after_the_restored_step_are_cut_and_scalars_go_to_tensorboard(tmp_path):
    log = workdir.History(tmp_path, 0)
    for step in range(1, 7):
        log(step, {'loss': step / 2, 'AR@10': None, 'nested': {'list': [1, None]}})
    (events,) = (path.read_bytes() for path in tmp_path.glob('events*'))
    assert b'loss' in events and b'AR@10' not in events and b'nested' not in events
    written = (tmp_path / 'metrics.jsonl').read_text().splitlines(True)
    assert written[0] == '{"step": 1, "loss": 0.5, "AR@10": null, "nested": {"list": [1, null]}}\n'
    log = workdir.History(tmp_path, 4)
    assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(written[:4])
    log(5, {'loss': 9.0})
    lines = workdir.read_history(tmp_path)
    assert [line['step'] for line in lines] == [1, 2, 3, 4, 5] and lines[-1]['loss'] == 9
    workdir.History(tmp_path, 0)
    assert workdir.read_history(tmp_path) == []


def test_metrics_that_cannot_be_written_wait_until_they_can_be(tmp_path, caplog):
    """The file of a run that was moved away is not begun anew; what was told is not told again."""
    (tmp_path / 'run').mkdir()
    log = workdir.History(tmp_path / 'run', 0)
    log(1, {'loss': 1.0})
    (tmp_path / 'run').rename(tmp_path / 'away')
    for step in (2, 3):
        log(step, {'loss': 1.0})
    (told,) = caplog.messages
    assert 'metrics.jsonl: cannot be written (No such file or directory)' in told
    assert told.endswith('; training goes on, and tries again with the next line')
    with pytest.raises(OSError, match='cannot be written .No such file or directory.: .*s.jsonl'):
        log.flush()
    (tmp_path / 'away').rename(tmp_path / 'run')
    log(4, {'loss': 1.0})
    lines = workdir.read_history(tmp_path / 'run')
    assert [line['step'] for line in lines] == [1, 2, 3, 4]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize('end', ['{"step": 3, "lo', '\n\n', '{"step": 3, "loss": 1}garbage'])
def test_a_last_line_that_a_crash_cut_off_harms_nothing(tmp_path, end):
    lines = '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n'
    (tmp_path / 'metrics.jsonl').write_text(lines + end)
    assert [line['step'] for line in workdir.read_history(tmp_path)] == [1, 2]
    log = workdir.History(tmp_path, 2)
    log(3, {'loss': 3.0})
    assert [line['loss'] for line in workdir.read_history(tmp_path)] == [1, 2, 3]


def test_damaged_lines_are_left_out_and_counted_and_the_good_ones_kept(tmp_path, caplog):
    bad = '[1]', '{"loss": 1}', '{"step": "x"}', '{"step": 2, "loss": "0.1"}', '[' * 99_999, '\xff'
    bad += ('{"step": 1e999}',)
    good = [f'{{"step": {step}, "loss": 0.5}}' for step in range(len(bad))]
    lines = [line for both in zip(good, bad, strict=True) for line in both]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n', 'latin1')
    assert [line['step'] for line in workdir.read_history(tmp_path)] == list(range(len(bad)))
    (message,) = caplog.messages
    assert message.endswith('7 damaged lines are left out, the first of them line 2')


@pytest.mark.parametrize('content', ['', '[]', '{"6": 3}', '{"6": [{"loss": 1}]}', '[' * 99_999])
def test_a_damaged_file_of_unlogged_metrics_is_told_and_harms_nothing(tmp_path, caplog, content):
    assert workdir.read_unlogged(tmp_path, 6) == [] and not caplog.messages
    window = [{'loss': np.float32(0.1), 'anchors': {'iou': np.float32([1, np.nan])}}]
    workdir.write_unlogged(tmp_path, 6, window)
    assert_same(workdir.read_unlogged(tmp_path, 6), window)
    file = tmp_path / workdir.UNLOGGED
    for text in (content, file.read_text().replace('"loss": 0.1', '"loss": 0.3')):
        file.write_text(text)
        assert workdir.read_unlogged(tmp_path, 6) == []
        assert 'unlogged.json: is damaged' in caplog.messages.pop()
    workdir.write_unlogged(tmp_path, 6, window)
    assert len(workdir.read_unlogged(tmp_path, 6)) == 1


@pytest.mark.parametrize('own', ['', 'elsewhere'])
def test_compilations_are_kept_where_jax_is_told_or_in_the_cache_folder(monkeypatch, own):
    monkeypatch.setenv('RPN_JAX_CACHE', 'kept')
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update('jax_compilation_cache_dir', own or None)
        workdir.keep_compilations()
        expected = own or str(Path('kept') / 'compiled')
        assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
