"""The command line: which mode runs with what, what it prints, exit codes."""

import fcntl
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
from unittest import mock

import jax
import pytest
from helpers import ROOT

import main as program
from configs import quickstart
from rpn_jax import cli, commands
from rpn_jax import config as configs
from rpn_jax.cli import main
from rpn_jax.errors import InputError, Interrupted
from rpn_jax.training import hosts, workdir

CONFIG = f'--config={quickstart.__file__}'
HOSTS = '--workdir=x --coordinator=a:1 --processes=2'
TIMEOUTS = {'meet_timeout': 5, 'heartbeat_timeout': 9}


@pytest.fixture(autouse=True)
def handlers_of_the_process():
    """Restores what the command line does to the process where it runs in that of the tests."""
    numbers = signal.SIGINT, signal.SIGTERM
    before, hook = [*map(signal.getsignal, numbers)], sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def ran(monkeypatch):
    """Returns the list of (mode, keywords) that main ran, while no mode does anything."""
    calls = []
    for mode in cli.MODES:
        run = lambda mode=mode, **keywords: calls.append((mode, keywords))  # noqa: E731
        monkeypatch.setattr(commands, f'{mode}_mode', run)
    return calls


@pytest.fixture
def fails(monkeypatch):
    """Returns the function that makes training raise an error."""
    return lambda error: monkeypatch.setattr(commands, 'train_mode', mock.Mock(side_effect=error))


def test_a_device_that_is_full_is_one_line(fails, capsys):
    error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying ..')
    fails(error)
    assert main([CONFIG]) == 1
    line = capsys.readouterr().err
    assert line.startswith('error: the memory of a device is full') and line.count('\n') == 1
    with pytest.raises(jax.errors.JaxRuntimeError):
        main([CONFIG, '--debug'])


def test_where_nothing_is_installed_a_line_says_what_to_run():
    start = 'import runpy, sys; sys.modules["ml_collections"] = None; runpy.run_path("main.py", '
    words = [sys.executable, '-c', f'{start}run_name="__main__")']
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.count('\n') == 1
    assert ended.stderr.startswith('error: ') and 'make demo' in ended.stderr


def test_a_config_alone_trains_it_in_its_own_folder(ran, capsys):
    for words in ([CONFIG], ['--config=quickstart'], ['--mode', 'train', CONFIG]):
        assert main(words) == 0
        (mode, keywords) = ran.pop()
        assert mode == 'train' and keywords.keys() == {'config', 'folder', 'strict'}
        assert str(keywords['folder']) == 'runs/quickstart'
        assert keywords['config'].to_dict() == quickstart.get_config().to_dict()
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('mode', [mode for mode in cli.MODES if mode != 'compare'])
def test_a_mode_takes_the_config_of_a_file_or_of_its_workdir(ran, tmp_path, mode):
    config = quickstart.get_config()
    config.steps = 7
    workdir.begin(tmp_path, config)
    for words in ([f'--mode={mode}', CONFIG], [mode]):
        assert main([*words, '--workdir', str(tmp_path), '--config.data.batch_size=4']) == 0
    (first, file), (second, run) = ran
    assert first == second == mode and file['folder'] == run['folder'] == tmp_path
    assert (file['config'].steps, run['config'].steps) == (800, 7)
    assert file['config'].data.batch_size == run['config'].data.batch_size == 4


def test_options_reach_the_modes_that_take_them(ran, tmp_path):
    assert main(['evaluate', CONFIG, '--step=3', '--output', 'x.json']) == 0
    assert main(['predict', CONFIG, 'a b.jpg', 'folder']) == 0
    assert main(['--mode=predict', CONFIG, 'train', '--config.steps', '3', 'x.png']) == 0
    assert main(['compare', f'--runs=a, {tmp_path},', '--output=c.html']) == 0
    evaluate, predict, other, compare = (keywords for _, keywords in ran)
    assert (evaluate['step'], evaluate['output'], evaluate['strict']) == (3, 'x.json', False)
    assert predict['paths'] == ['a b.jpg', 'folder'] and predict['step'] is None
    assert other['paths'] == ['train', 'x.png'] and other['config'].steps == 3
    assert compare == {'runs': ['a', str(tmp_path)], 'output': 'c.html'}


def test_overrides_come_with_a_sign_or_a_space_and_the_last_one_counts(ran):
    words = '--config.steps=7 --config.steps 8 --config.targets.border -1'.split()
    assert main([CONFIG, *words, '--config.data.mean', '(1, 2, 3)']) == 0
    config = ran[0][1]['config']
    assert (config.steps, config.targets.border, config.data.mean) == (8, -1, (1, 2, 3))


@pytest.mark.parametrize(
    ('words', 'complaint'),
    [
        ('', 'name a --config'),
        ('--workdir=/no/where', '/no/where/config.json: no such file'),
        ('--workdir=~nobody_here/x', 'nobody_here/x/config.json: no such file'),
        ('--mode=dance', "no mode 'dance'; there are train, evaluate, compare"),
        ('evalute --workdir=x', "no mode 'evalute'; did you mean evaluate?"),
        ('--conf=x.py', "unknown argument '--conf=x.py'"),
        ('--workdir=x steps=3', "unknown argument 'steps=3'"),
        ('--workdir=x evaluate', 'the mode comes first, or as --mode=evaluate'),
        ('--workdir=x predict a.jpg', 'the mode comes first, or as --mode=predict'),
        ('--config.steps', '--config.steps needs a value'),
        ('--config.steps --debugs', '--config.steps needs a value'),
        ('evaluate --step=x', "argument --step: invalid int value: 'x'"),
        ('train --batch=x', '--batch=x belongs to inspect, not to the mode train'),
        ('inspect --output=x', '--output=x belongs to evaluate, compare, predict, export, not to'),
        ('train --step=3', '--step=3 belongs to evaluate, predict, export, not to'),
        (
            'inspect --strict',
            '--strict belongs to train, evaluate, doctor, not to the mode inspect',
        ),
        ('train --step=0', '--step=0 belongs to'),
        ('train --runs=a', '--runs=a belongs to compare, not to'),
        ('--mode=compare --runs=a,b --config.seed=1', 'compare takes no config'),
        ('--config=quickstart --config.steps=0', 'config key steps: 0 is out of bounds'),
        ('inspect --workdir=x --distributed', '--distributed belongs to train, evaluate, predict,'),
        ('--workdir=x --processes=2 --mode=doctor', '--processes belongs to train, evaluate, pred'),
        ('--workdir=x --coordinator=a:1', '--coordinator needs --processes and --process, too'),
        ('--workdir=x --processes=2 --process=0', '--processes needs --coordinator, too'),
        (f'{HOSTS} --process=2', '--process=2 is not one of --processes=2; they are counted from'),
        (f'{HOSTS} --process=-1', '--process=-1 is not one of --processes=2'),
        (f'{HOSTS} --process=1 --meet-timeout=0', '--meet-timeout=0 is not from 1 to 1000000 sec'),
        (f'{HOSTS} --process=1 --heartbeat-timeout=9999999', '--heartbeat-timeout=9999999 is not'),
        ('--workdir=x --meet-timeout=5', '--meet-timeout needs --distributed or --coordinator'),
        (f'{HOSTS} --process=x', "argument --process: invalid int value: 'x'"),
    ],
)
def test_a_wrong_command_line_is_refused(refuse, ran, words, complaint):
    assert complaint in refuse(words.split())
    assert not ran


@pytest.mark.parametrize(
    ('words', 'started'),
    [
        ('', None),
        ('--coordinator=a:1 --processes=1 --process=0', None),
        (f'{HOSTS} --process=1 --print-config', None),
        ('--distributed', {}),
        (f'{HOSTS} --process=0', {'coordinator': 'a:1', 'processes': 2, 'process': 0}),
        (
            f'{HOSTS} --process=1 --meet-timeout=5 --heartbeat-timeout=9 --distributed',
            {'coordinator': 'a:1', 'processes': 2, 'process': 1, **TIMEOUTS},
        ),
    ],
)
def test_processes_are_started_before_a_config_is_read(ran, monkeypatch, words, started):
    calls, read = [], configs.read
    monkeypatch.setattr(hosts, 'start', lambda **keywords: calls.append(keywords))
    monkeypatch.setattr(configs, 'read', lambda file: calls.append('read') or read(file))
    assert main([CONFIG, *words.split()]) == 0
    defaults = {'meet_timeout': 300, 'heartbeat_timeout': 45}
    assert calls == ['read'] if started is None else [defaults | started, 'read']


def test_the_words_of_the_process_are_the_default(ran, monkeypatch):
    monkeypatch.setattr(workdir, 'keep_compilations', kept := mock.Mock())
    monkeypatch.setattr(sys, 'argv', ['main.py', CONFIG, '--config.steps=3'])
    assert main() == 0
    assert ran[0][1]['config'].steps == 3 and kept.called


def test_help_names_every_mode_option_and_key_with_its_comment(ran, capsys):
    assert main(['--help']) == main(['evaluate', '-h']) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert not ran and len({*lines}) > 80
    for mode in cli.MODES:
        assert any(line.startswith(f'  {mode} ') for line in lines)
        assert hasattr(commands, f'{mode}_mode')
    for key, comment in configs.comments().items():
        assert any(f'--config.{key}=' in line and line.endswith(comment) for line in lines), key
    assert '--config.model.depth=101 ' in out and out.isascii()


def test_a_key_without_effect_is_told(ran, capsys):
    assert main([CONFIG, '--config.data.path=/mine']) == 0
    assert capsys.readouterr().out.startswith('warning: data.path has no effect: data.source is ')


def test_print_config_shows_where_each_value_comes_from(ran, capsys, tmp_path):
    assert main([CONFIG, f'--workdir={tmp_path}', '--print-config', '--config.seed=5']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(configs.KEYS) and not ran
    assert 'seed = 5  # command line' in lines
    assert f'steps = 800  # --config {quickstart.__file__}' in lines
    assert "data.pixels = 'torchvision'  # auto" in lines
    assert 'targets.border = -1  # default' in lines


# What happens to messages and errors


def test_messages_are_plain_and_warnings_are_called_so(monkeypatch, capsys):
    def run(**_):
        logger = logging.getLogger('rpn_jax.data')
        logger.info('read 3 images')
        logger.warning('they are odd')
        logger.debug('in detail')

    monkeypatch.setattr(commands, 'train_mode', run)
    assert main([CONFIG]) == 0
    assert capsys.readouterr() == ('read 3 images\nwarning: they are odd\n', '')
    assert not logging.getLogger('rpn_jax').handlers


def test_a_terminal_without_unicode_gets_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(commands, 'train_mode', lambda **_: print('0.1 ±0.2'))
    monkeypatch.setattr(sys, 'stdout', stream)
    assert main([CONFIG]) == 0
    assert stream.buffer.getvalue() == b'0.1 \\xb10.2\n'


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (InputError('x\n.jpg: not an image'), 'error: x\\n.jpg: not an image'),
        (OSError(28, 'No space left', 'x'), 'error: x: No space left; make room on the disk'),
        (OSError(24, 'Too many', 'x'), 'error: x: Too many; raise the limit of open files (ulimit'),
        (OSError(28, 'No space left'), 'error: [Errno 28] No space left (--debug shows where)'),
        (Interrupted(12, 15), 'interrupted at step 12'),
        (KeyboardInterrupt(), 'interrupted'),
        (KeyboardInterrupt(15), 'interrupted'),
    ],
)
def test_an_error_of_the_user_is_one_line(fails, capsys, error, line):
    fails(error)
    code = 128 + 15 if 15 in error.args or isinstance(error, Interrupted) else 128 + 2
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    assert main([CONFIG]) == (code if stopped else 1)
    out, text = capsys.readouterr()
    assert out == '' and text.startswith(line) and text.count('\n') == 1


def test_debug_lets_the_error_through_and_a_bug_always_passes(fails):
    with pytest.raises(InputError, match='no config key'):
        main([CONFIG, '--debug', '--config.no=1'])
    fails(ZeroDivisionError('a bug'))
    with pytest.raises(ZeroDivisionError, match='a bug'):
        main([CONFIG])


def test_a_run_that_another_process_trains_is_refused(refuse, tmp_path):
    with (tmp_path / '.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a lock belongs to an open file, not to a process
        line = refuse([CONFIG, f'--workdir={tmp_path}'])
    assert line.startswith(f'workdir {tmp_path}: another process trains in it')
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


@pytest.mark.parametrize('words', [['--help'], [CONFIG]])
def test_a_reader_that_leaves_ends_the_program_quietly(fails, monkeypatch, capfd, words):
    reader, writer = os.pipe()
    os.close(reader)
    fails(BrokenPipeError())
    monkeypatch.setattr(workdir, 'keep_compilations', lambda: None)
    with os.fdopen(writer, 'w') as gone:
        monkeypatch.setattr(sys, 'stdout', gone)
        monkeypatch.setattr(sys, 'argv', ['main.py', *words])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(program.__file__, run_name='__main__')
        gone.flush()
    assert leaving.value.code == 128 + 13 and capfd.readouterr() == ('', '')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no full device')
@pytest.mark.parametrize('words', [['--help'], [CONFIG, '--print-config']])
def test_an_output_that_is_full_is_one_line(words):
    with open('/dev/full', 'w') as full:
        command = [sys.executable, program.__file__, *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert 'No space left on device' in done.stderr


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
@pytest.mark.parametrize('module', ['ml_collections', 'cv2'])
def test_a_signal_while_importing_ends_in_one_line(tmp_path, module, name):
    """Extensions turn the exception into another, or crash."""
    (tmp_path / f'{module}.py').write_text(f"""
import os, signal, time
try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError('an error while initializing the extension')
""")
    command = [sys.executable, program.__file__, 'statistics', CONFIG]
    environment = os.environ | {'PYTHONPATH': str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (128 + signal.Signals[name], 'interrupted\n')


@pytest.mark.parametrize('lost', ['', 'in a callback', 'in a library'])
def test_sigterm_ends_any_mode_in_one_line(lost):
    """Also where its exception gets lost: a callback of gc has nowhere to raise it.

    The end of the interpreter, which can crash while threads compile, is left out.
    """
    text = f"""
import atexit, gc, os, signal, sys, time
atexit.register(print, 'the end', file=sys.stderr)
sys.path.insert(0, {str(ROOT)!r})
from rpn_jax import cli, commands
def kill(*_):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
def mode(**_):
    try:
        gc.callbacks.insert(0, kill) if {lost == 'in a callback'} else kill()
        gc.collect()
    except BaseException:
        if {lost != 'in a library'}:
            raise
    time.sleep(60)
commands.statistics_mode = mode
sys.argv = ['main.py', 'statistics', {CONFIG!r}]
sys.exit(cli.main())
"""
    done = subprocess.run([sys.executable, '-c', text], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (128 + 15, 'interrupted\n')
