"""A workdir belongs to one config and one process, its history to the newest checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers import ROOT
from ml_collections import FrozenConfigDict

from configs import default
from rpn_jax.config import items
from rpn_jax.errors import InputError
from rpn_jax.training import workdir
from rpn_jax.training.workdir import History

FREE = (  # keys that may change when a run goes on; every other one makes it another run
    *'steps log_every model.remat optim.schedule_steps features.keep features.gigabytes'.split(),
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


@pytest.mark.parametrize('key', IDENTITY)
def test_another_config_is_refused_by_the_name_of_its_key(folder, key):
    with pytest.raises(InputError) as error:
        workdir.check(folder, changed(**{key: OTHER[key]}))
    message = str(error.value)
    assert f': {key} was ' in message and f', is {OTHER[key]!r}; name another' in message
    assert message.count(' was ') == 1 and str(folder) in message


def test_every_key_that_differs_is_named_at_once_and_a_free_folder_is_offered(folder):
    folder.with_name('x-2').mkdir()
    with pytest.raises(InputError) as error:
        workdir.check(folder, changed(**OTHER))
    for key in IDENTITY:
        assert f'{key} was ' in str(error.value)
    assert f'--workdir={folder}-3, ' in str(error.value)


def test_the_same_config_and_what_may_change_are_accepted(folder):
    config = changed().to_dict()
    for accepted in (config, json.loads(json.dumps(config)), FrozenConfigDict(changed())):
        workdir.check(folder, accepted)
    workdir.check(folder, changed(**{key: OTHER[key] for key in FREE}))
    assert workdir.read_config(folder) == config
    assert type(workdir.read_config(folder)['anchors']['sizes']) is tuple


def test_only_the_sections_asked_for_are_compared(folder):
    config = changed(**{'seed': 5, 'optim.learning_rate': 1.0})
    workdir.check(folder, config, ('model', 'anchors'))
    with pytest.raises(InputError, match='model.depth was 101, is 50'):
        workdir.check(folder, changed(**{'model.depth': 50}), ('model', 'anchors'))


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
        '    time.sleep(600)\n'
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', hold, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b'locked\n'
        with pytest.raises(InputError, match='another process trains in it'):
            with workdir.locked(tmp_path):
                pass
        process.kill()
        process.wait()
    with workdir.locked(tmp_path):
        (tmp_path / 'config.json').write_text('')
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_lines_after_the_restored_step_are_cut(tmp_path):
    with History(tmp_path, 0) as history:
        for step in range(1, 7):
            history.log(step, {'loss': step / 2, 'AR@10': None})
    written = (tmp_path / 'metrics.jsonl').read_text()
    assert written.splitlines()[0] == '{"step": 1, "loss": 0.5, "AR@10": null}'
    with History(tmp_path, 4) as history:
        assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(written.splitlines(True)[:4])
        history.log(5, {'loss': 9.0})
    lines = workdir.read_history(tmp_path)
    assert [line['step'] for line in lines] == [1, 2, 3, 4, 5] and lines[-1]['loss'] == 9
    with History(tmp_path, 0):
        assert workdir.read_history(tmp_path) == []


@pytest.mark.parametrize('end', ['{"step": 3, "lo', '{', '\n\n', '{"step": 3, "loss": 1}garbage'])
def test_a_last_line_that_a_crash_cut_off_harms_nothing(tmp_path, end):
    with History(tmp_path, 0) as history:
        history.log(1, {'loss': 1.0})
        history.log(2, {'loss': 2.0})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(end)
    assert [line['step'] for line in workdir.read_history(tmp_path)] == [1, 2]
    with History(tmp_path, 2) as history:
        history.log(3, {'loss': 3.0})
    assert [line['loss'] for line in workdir.read_history(tmp_path)] == [1, 2, 3]


def test_scalars_go_to_tensorboard_as_well(tmp_path):
    with History(tmp_path, 0) as history:
        history.log(1, {'loss': 1.0, 'undefined': None, 'nested': {'list': [1, None]}})
    (events,) = tmp_path.glob('events*')
    content = events.read_bytes()
    assert b'loss' in content and b'undefined' not in content and b'nested' not in content
    assert workdir.read_history(tmp_path)[0]['nested'] == {'list': [1, None]}


def test_a_key_younger_than_the_run_does_not_matter(folder):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    del config['data']['canvases'], config['model']['init']
    path.write_text(json.dumps(config))
    workdir.check(folder, changed())


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
