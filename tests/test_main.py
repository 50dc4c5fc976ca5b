"""The command line: which mode runs with which config, overrides by type, exit codes."""

import json
import os
import runpy
import sys

import pytest

import main
from configs import default, quickstart
from rpn_jax import commands
from rpn_jax.errors import InputError
from rpn_jax.training import workdir
from rpn_jax.training.progress import Interrupted

CONFIG = f'--config={quickstart.__file__}'


@pytest.fixture
def ran(monkeypatch):
    """Returns the list of (mode, config, folder) that main ran, while no mode does anything."""
    calls = []
    monkeypatch.setattr(commands, 'run', lambda *words, **_: calls.append(words))
    return calls


@pytest.fixture
def fails(monkeypatch):
    """Returns the function that makes every mode raise an error."""

    def install(error):
        def run(*_, **__):
            raise error

        monkeypatch.setattr(commands, 'run', run)

    return install


def value(config, key):
    """Returns what a config has at a dotted key."""
    for name in key.split('.'):
        config = config[name]
    return config


def test_a_config_alone_trains_it_in_its_own_folder(ran, capsys):
    assert main.main([CONFIG]) == 0
    (mode, config, folder), *more = ran
    assert (mode, str(folder), more) == ('train', 'runs/quickstart', [])
    assert config.to_dict() == quickstart.get_config().to_dict()
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('mode', commands.MODES)
def test_a_mode_runs_with_the_config_and_workdir_it_is_given(ran, tmp_path, mode):
    assert main.main([CONFIG, f'--mode={mode}', '--workdir', str(tmp_path)]) == 0
    assert ran[0][::2] == (mode, tmp_path)


@pytest.mark.parametrize('mode', [mode for mode in commands.MODES if mode != 'train'])
def test_other_modes_take_the_config_of_the_workdir(ran, tmp_path, mode):
    config = quickstart.get_config()
    config.steps, config.anchors.sizes = 7, (24,)
    workdir.begin(tmp_path, config)
    words = [f'--workdir={tmp_path}', f'--mode={mode}', '--config.data.batch_size=4']
    assert main.main(words) == 0
    config.data.batch_size = 4
    assert ran[0][1].to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ('key', 'text', 'expected'),
    [
        ('steps', '7', 7),
        ('targets.border', '-1', -1),
        ('optim.learning_rate', '0.5', 0.5),
        ('optim.learning_rate', '1e-3', 0.001),
        ('optim.learning_rate', '2', 2.0),
        ('data.flip', 'False', False),
        ('data.flip', 'true', True),
        ('data.path', 'a folder/with=signs', 'a folder/with=signs'),
        ('data.path', '007', '007'),
        ('data.train_split', '', ''),
        ('anchors.sizes', '(8,16)', (8, 16)),
        ('anchors.sizes', '8, 16', (8, 16)),
        ('anchors.sizes', '[8, 22.6]', (8, 22.6)),
        ('anchors.sizes', '8', (8,)),
        ('anchors.aspect_ratios', '(1, 2)', (1, 2)),
        ('data.mean', '()', ()),
        ('data.mean', '(1, 2.5, 3)', (1, 2.5, 3)),
        ('model.dilations', '(1, 1, 1, 2)', (1, 1, 1, 2)),
    ],
)
def test_an_override_is_read_as_the_type_of_its_key(ran, key, text, expected):
    assert main.main([CONFIG, f'--config.{key}={text}']) == 0
    config = ran[0][1]
    found = value(config, key)
    assert found == expected and type(found) is type(expected)
    before = dict(main._items(quickstart.get_config()))
    assert dict(main._items(config)) == before | {key: expected}


def test_the_last_of_two_overrides_counts(ran):
    assert main.main([CONFIG, '--config.steps=7', '--config.steps=8']) == 0
    assert ran[0][1].steps == 8


def test_configs_are_not_changed_by_overrides(ran):
    assert main.main([CONFIG, '--config.data.image_size=64', '--config.seed=5']) == 0
    assert main.main([CONFIG]) == 0
    assert ran[1][1].to_dict() == quickstart.get_config().to_dict()


def test_a_config_may_lie_anywhere(ran, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'from configs import default\n\n\ndef get_config():\n    config = default.get_config()\n'
        '    config.optim.learning_rate = 1\n    config.anchors.sizes = [16, 22.6]\n'
        '    return config\n'
    )
    assert main.main([f'--config={path}']) == 0
    _, config, folder = ran[0]
    assert (config.anchors.sizes, config.optim.learning_rate) == ((16, 22.6), 1)
    assert str(folder) == 'runs/mine' and config.data == default.get_config().data


def test_the_words_of_the_process_are_the_default(ran, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['main.py', CONFIG, '--config.steps=3'])
    assert main.main() == 0
    assert ran[0][1].steps == 3


def test_help_names_every_mode_and_the_overrides(ran, capsys):
    with pytest.raises(SystemExit) as leaving:
        main.main(['--help'])
    said = ' '.join(capsys.readouterr().out.split())
    assert leaving.value.code == 0 and not ran
    assert ', '.join(commands.MODES) in said and '--config.section.key=value' in said


def test_an_error_of_the_user_is_one_line(fails, capsys):
    fails(InputError('x.jpg: not an image; mend it'))
    assert main.main([CONFIG]) == 1
    assert capsys.readouterr() == ('', 'error: x.jpg: not an image; mend it\n')


def test_debug_lets_the_error_through(fails):
    fails(InputError('x.jpg: not an image'))
    with pytest.raises(InputError, match=r'x\.jpg: not an image'):
        main.main([CONFIG, '--debug'])
    with pytest.raises(InputError, match='no config key'):
        main.main([CONFIG, '--debug', '--config.no=1'])


@pytest.mark.parametrize('number', [2, 15])
def test_an_interrupted_run_says_so_with_the_code_of_its_signal(fails, capsys, number):
    fails(Interrupted(12, number))
    assert main.main([CONFIG]) == 128 + number
    out, said = capsys.readouterr()
    assert (out, said.count('\n')) == ('', 1) and 'interrupted at step 12' in said


def test_an_error_of_the_program_keeps_its_traceback(fails):
    fails(ZeroDivisionError('a bug'))
    with pytest.raises(ZeroDivisionError, match='a bug'):
        main.main([CONFIG])


def test_keys_younger_than_a_run_take_the_default(tmp_path):
    config = default.get_config().to_dict()
    del config['loss'], config['optim']['momentum']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    arguments, _ = main._parse([f'--workdir={tmp_path}', '--mode=evaluate'])
    filled = main._load(arguments)
    assert filled.loss.beta == 1 / 9 and filled.optim.momentum == 0.9


def test_debug_shows_the_traceback(tmp_path):
    words = [CONFIG, f'--workdir={tmp_path}', '--config.data.batch_size=3', '--debug']
    with pytest.raises(InputError, match='config key data.batch_size: 3') as error:
        main.main(words)
    assert 'check_divides' in [entry.name for entry in error.traceback]


def test_a_comparison_takes_no_config(capsys):
    words = ['--mode=compare', '--runs=a,b', '--config.seed=1']
    assert main.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: --config.seed=1: --mode=compare takes no config')
    assert said.count('\n') == 1


@pytest.mark.parametrize('words', [['--help'], [CONFIG]])
def test_a_reader_that_leaves_ends_the_program_quietly(fails, monkeypatch, capfd, words):
    reader, writer = os.pipe()
    os.close(reader)
    fails(BrokenPipeError())
    with os.fdopen(writer, 'w') as gone:
        monkeypatch.setattr(sys, 'stdout', gone)
        monkeypatch.setattr(sys, 'argv', ['main.py', *words])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(main.__file__, run_name='__main__')
        gone.flush()
    assert leaving.value.code == 128 + 13 and capfd.readouterr() == ('', '')
