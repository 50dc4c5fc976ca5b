"""Several processes train like one, and end together, each with one line."""

import functools
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import host_cases
import jax
import numpy as np
import pytest
from data_files import write_voc
from helpers import ROOT, scratch, tiny_flags

from experiments import soak
from rpn_jax.errors import InputError
from rpn_jax.training import checkpoint, hosts, workdir

SECONDS = 900  # for processes on a machine that is busy
started = []  # processes, by the test that runs
# Cases with batch norm. On one CPU two processes gave the losses of one device to 2e-7, but those
# of four devices in one process to 1.3e-5, and their statistics to 1.2e-3.
ROUNDED = 'batch', 'canvases'


def free_port():
    """Returns a port for processes of this host; skips the test where Gloo cannot serve them."""
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError as error:
        pytest.skip(f'the name of this host has no address ({error})')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        return taken.getsockname()[1]


def start(*words, devices=2, within=(), **environment):
    """Starts Python with words in the root of the repository, with so many devices.

    within are words of a program that starts it.
    """
    count = f'--xla_force_host_platform_device_count={devices}'
    path = os.pathsep.join((str(ROOT), str(ROOT / 'tests')))
    own = {'XLA_FLAGS': count, 'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1'}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    command = [*within, sys.executable, *map(str, words)]
    started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | own | environment, **pipes))
    return started[-1]


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    while started:
        with started.pop() as process:
            process.kill()


def end(processes):
    """Waits for processes; returns (exit code, stdout, stderr) of each."""
    outputs = [process.communicate(timeout=SECONDS) for process in processes]
    return [(p.returncode, *both) for p, both in zip(processes, outputs, strict=True)]


def start_run(folder, *flags, of=(), programs=(['main.py'],) * 2, mode='train', **changes):
    """Starts the processes of one run, a program each; of[i] are words of process i alone."""
    port, count = free_port(), len(programs)
    together = [f'--coordinator=127.0.0.1:{port}', f'--processes={count}', *flags]
    words = [mode, *tiny_flags(folder, **changes), *together]
    own = of or [()] * count
    each = [(*programs[i], *words, f'--process={i}', *own[i]) for i in range(count)]
    return [start(*words) for words in each]


def errors(results):
    """Returns the lines of the processes' stderr that are errors; each must have ended by one."""
    found = []
    for code, out, error in results:
        (line,) = (line for line in error.splitlines() if line.startswith('error: '))
        assert code == 1 and 'Traceback' not in out + error
        found.append(line)
    return found


def wait_for(process, step):
    """Reads what a process prints until the line of a step."""
    assert any(re.match(rf'step +{step}/', line) for line in process.stdout)


@functools.cache
def of_two():
    """Returns the folder in which two processes of two devices have trained all cases."""
    folder = scratch()
    host_cases.write_pictures(folder)
    one = 'resumed by two'  # what one process begins
    host_cases.train(one, folder, one, jax.devices()[:1], steps=10)
    train_cases(folder, 2, [name for name in host_cases.CASES if name != 'resumed by four'])
    return folder


def train_cases(folder, count, names):
    """Trains cases on four devices of so many processes."""
    words = ROOT / 'tests/host_cases.py', f'127.0.0.1:{free_port()}', count
    processes = [start(*words, i, folder, *names, devices=4 // count) for i in range(count)]
    results = end(processes)
    assert [code for code, *_ in results] == [0] * count, results


@pytest.mark.slow
@pytest.mark.parametrize('devices', [4, 1])
@pytest.mark.parametrize('name', ['frozen', 'group', 'batch', 'canvases'])
def test_two_processes_train_as_one(name, devices):
    folder, run = of_two(), f'{name} on {devices}'
    state, _ = host_cases.train(name, folder, run, jax.devices()[:devices])
    own, theirs = host_cases.losses(folder / run), host_cases.losses(folder / name)
    assert len(own) == len(theirs) > 5
    rounded = devices == 4 and name in ROUNDED
    np.testing.assert_allclose(theirs, own, rtol=5e-5 if rounded else 1e-5)
    near = {'near': 5e-3, 'least': 2e-5} if rounded else {}
    assert_states_near(checkpoint.restore(folder / name)[0], state, **near)
    first, last = (checkpoint.restore(folder / name, step)[0] for step in (10, 20))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), first['params'], last['params'])
    assert any(jax.tree.leaves(moved))


def assert_states_near(saved, state, **near):
    """Checks the parameters and statistics of a checkpoint against those of a state."""
    for tree, ours in (('params', state.params), ('batch_stats', state.batch_stats)):
        assert jax.tree.structure(saved[tree]) == jax.tree.structure(ours)
        compare = functools.partial(assert_equal_but_for_rounding, **near)
        jax.tree.map(compare, saved[tree], ours)


def assert_equal_but_for_rounding(ours, theirs, near=1e-5, least=1e-8):
    """Allows `near` of the largest, and `least` for the rounding of biases that began at 0."""
    largest = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=near * largest + least)


@pytest.mark.slow
def test_the_hosts_had_unequal_numbers_of_objects_and_canvases_changed():
    config = host_cases.config_of('canvases', of_two())
    options = host_cases.loop.data.Options(**config.data)
    source = host_cases.loop.data.open_split(options, '')
    plan = host_cases.loop.data.train_batch(source, options, seed=0)
    steps = [plan.positions(step) for step in range(20)]
    assert {canvas for canvas, _ in steps} == {0, 1}
    objects = [[len(source.records[i].boxes) for i in rows] for _, rows in steps]
    assert any(sum(rows[:2]) != sum(rows[2:]) for rows in objects)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one_and_with_four_and_of_one_with_two():
    folder, name, four = of_two(), 'resumed by one', 'resumed by four'
    assert checkpoint.steps(folder / name) == [10]
    shutil.copytree(folder / name, folder / four)
    train_cases(folder, 4, [four])
    host_cases.train(name, folder, name, jax.devices(), steps=20)
    state, _ = host_cases.train(name, folder, 'whole', jax.devices()[:1], steps=20)
    for run in (name, 'resumed by two', four):
        assert checkpoint.steps(folder / run)[-1] == 20
        np.testing.assert_allclose(
            host_cases.losses(folder / run), host_cases.losses(folder / 'whole'), rtol=1e-5
        )
        assert_states_near(checkpoint.restore(folder / run)[0], state)


@pytest.mark.slow
def test_two_processes_evaluate_to_the_last_digit_as_one():
    folder = of_two()
    shutil.copytree(folder / 'batch', folder / 'evaluated')
    _, evaluation = host_cases.train('batch', folder, 'evaluated', jax.devices())
    assert evaluation.summary == json.loads((folder / 'batch/evaluation.json').read_text())
    lines = workdir.read_history(folder / 'batch')
    assert [line['step'] for line in lines if 'AR@10' in line] == [10]


@pytest.mark.slow
def test_two_processes_evaluate_and_predict_what_one_does(tmp_path):
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    flags = tiny_flags(alone)
    pictures = write_voc(tmp_path) / 'JPEGImages'
    (pictures / '000001.jpg').write_bytes(b'no image')
    assert end([start('main.py', 'train', *flags)])[0][0] == 0
    shutil.copytree(alone, together)
    (together / 'evaluation.json').unlink()
    (line,) = errors(end([start('main.py', 'predict', *flags, pictures)]))
    results = end(start_run(together, mode='evaluate'))
    assert [code for code, *_ in results] == [0, 0], results
    assert ['as other evaluators count' in out for _, out, _ in results] == [True, False]
    results = end(start_run(together, str(pictures), mode='predict'))
    assert [each.endswith(line.removeprefix('error: ')) for each in errors(results)] == [True] * 2
    assert sum(out.count(': skipped: ') for _, out, _ in results) == 1
    files = [path for path in alone.rglob('*') if path.suffix in ('.json', '.png')]
    assert len(files) > 10
    for path in files:
        assert path.read_bytes() == (together / path.relative_to(alone)).read_bytes()


LONG = {'steps': 1_000_000, 'evaluation__every': 0, 'log_every': 5, 'checkpoint__every': 10}


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'lost'), [('SIGKILL', 1), ('SIGSTOP', 1), ('SIGKILL', 0)])
def test_where_one_is_lost_the_other_ends_with_a_line_and_a_good_checkpoint(tmp_path, number, lost):
    processes = start_run(tmp_path, '--heartbeat-timeout=10', **LONG)
    wait_for(processes[0], 30)
    began = time.monotonic()
    processes[lost].send_signal(signal.Signals[number])
    _, error = processes[1 - lost].communicate(timeout=SECONDS)
    assert time.monotonic() - began < 60  # 10 + 10 and what a busy machine adds
    line = error.splitlines()[-1]
    assert processes[1 - lost].returncode == 1 and f'process {lost} (' in line
    assert line.startswith(f'error: process {1 - lost} (') and ' goes on from its newest ' in line
    messages = [message for _, message in checkpoint.verify(tmp_path)]
    assert messages and not any(messages)


@pytest.fixture
def network():
    """Connects two network namespaces, each a host of its own; yields their names."""
    names = [f'rpn_jax{os.getpid()}{x}' for x in 'ab']
    commands = [f'netns add {name}' for name in names]
    commands += [f'link add veth0 netns {names[0]} type veth peer name veth1 netns {names[1]}']
    for i, name in enumerate(names):
        commands += [f'-n {name} addr add 10.9.0.{i + 1}/24 dev veth{i}']
        commands += [f'-n {name} link set {device} up' for device in (f'veth{i}', 'lo')]
    try:
        for command in commands:
            try:
                subprocess.run(['ip', *command.split()], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f'network namespaces need Linux and root ({error})')
        yield names
    finally:
        for name in names if shutil.which('ip') else ():
            subprocess.run(['ip', 'netns', 'delete', name], check=False, capture_output=True)


def start_on_hosts(network, folder, named=True):
    """Starts a run of one process on each host of the network, which knows its own name or not."""
    words = ['main.py', 'train', *tiny_flags(folder, **LONG), '--coordinator=10.9.0.1:29500']
    words += ['--processes=2', '--heartbeat-timeout=10']
    processes = []
    for i, name in enumerate(network):  # the address as the name of the host: it needs no DNS
        host = f'10.9.0.{i + 1}' if named else f'unheard-of-{i}'
        script = f'hostname {host}; exec "$@"'
        within = ['ip', 'netns', 'exec', name, 'unshare', '-u', 'sh', '-c', script, 'sh']
        processes.append(start(*words, f'--process={i}', within=within))
    return processes


@pytest.mark.slow
def test_hosts_that_are_cut_off_from_each_other_end_both(network, tmp_path):
    processes = start_on_hosts(network, tmp_path)
    wait_for(processes[0], 30)
    subprocess.run(['ip', '-n', network[1], 'link', 'set', 'veth1', 'down'], check=True)
    first, second = errors(end(processes))
    assert re.search(r'process 0 \(.+\): process 1 \(10.9.0.2\) is lost: no sign of life', first)
    assert re.search(r'process 1 \(.+\): .*process 0 \(10.9.0.1\) is gone', second)
    messages = [message for _, message in checkpoint.verify(tmp_path)]
    assert messages and not any(messages)


@pytest.mark.slow
def test_a_host_whose_name_has_no_address_says_so(network, tmp_path):
    lines = errors(end(start_on_hosts(network, tmp_path, named=False)))
    assert all(f'unheard-of-{i}: this name of the host' in each for i, each in enumerate(lines))


@pytest.mark.slow
def test_twins_of_a_run_that_has_begun_end_and_one_that_is_slow_is_named_and_waited_for(tmp_path):
    processes = start_run(tmp_path, **LONG)
    wait_for(processes[0], 10)
    first, second = errors(end([start(*process.args[1:]) for process in processes]))
    assert 'process 0 cannot listen there' in first and 'its run has begun' in second
    wait_for(processes[0], 100)
    processes[1].send_signal(signal.SIGSTOP)
    lines = itertools.dropwhile(lambda line: 'waiting' not in line, processes[0].stdout)
    line = next(lines)
    processes[1].send_signal(signal.SIGCONT)
    assert re.match(r'warning: waiting for process 1 \(.+\), 1\d s so far$', line), line
    assert any(re.match(r'step +\d+/', line) for line in lines)
    processes[0].send_signal(signal.SIGTERM)
    assert [code for code, *_ in end(processes)] == [143, 143]


@pytest.mark.slow
def test_where_process_0_cannot_write_all_train_on_and_end_with_its_line(tmp_path):
    full = ['-c', soak.LIMITED, str(soak.REFUSED), sys.executable, 'main.py']
    results = end(start_run(tmp_path, programs=(full, ['main.py'])))
    lines = [line for line in results[0][1].splitlines() if line.startswith('warning: ')]
    warning = re.compile(
        r'warning: process 0 \(.+\): .+/2: the checkpoint cannot be .*; training go'
    )
    assert any(map(warning.match, lines)), lines
    first, second = errors(results)
    assert re.match(r'error: process 0 \(.+\): .+/8: the checkpoint cannot be written', first)
    assert re.match(r'error: process 1 \(.+\): process 0 \(.+\) has ended: .+/8: the chec', second)
    assert [line['step'] for line in workdir.read_history(tmp_path)][-1] == 8


LATE = """
import sys, time
from rpn_jax import cli
from rpn_jax.training import loop
init_state = loop.init_state
def late(*words):
    time.sleep(35)
    return init_state(*words)
loop.init_state = late
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_one_that_is_late_before_the_first_step_is_waited_for(tmp_path):
    """Longer than the 30 s in which Gloo must make its connections."""
    results = end(start_run(tmp_path, programs=(['main.py'], ['-c', LATE])))
    assert [code for code, *_ in results] == [0, 0], results


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_examined_by_process_0_and_told_by_all(tmp_path):
    changes = {'optim__learning_rate': 1e5, 'optim__warmup_steps': 0, 'steps': 60}
    lines = errors(end(start_run(tmp_path, **changes)))
    (path,) = (tmp_path / 'nonfinite').iterdir()
    for line in lines:
        assert 'largest activations: pixels ' in line and f'--batch={path}' in line
        assert 'the last good checkpoint is of step 2' in line


@pytest.mark.slow
def test_a_signal_to_one_ends_all_at_the_same_step_with_a_checkpoint(tmp_path):
    processes = start_run(tmp_path, **LONG)
    wait_for(processes[0], 10)
    processes[1].send_signal(signal.SIGTERM)
    results = end(processes)
    steps = [re.search(r'interrupted at step (\d+);', error)[1] for *_, error in results]
    assert [code for code, *_ in results] == [143, 143] and steps[0] == steps[1]
    assert checkpoint.steps(tmp_path)[-1] == int(steps[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('of', 'message'),
    [
        (((), ('--config.seed=1',)), r'process 1 \(.*\) has seed 1, process 0 \(.*\) has 0; all'),
        (((), ('--config.data.batch_size=3',)), r'process 1 \(.*\) has data.batch_size 3, proces'),
        ((('--config.data.batch_size=2',),) * 2, 'batch_size: 2 images cannot be divided among 4'),
        (((), ('--config=nowhere.py',)), r'nowhere\.py'),
    ],
)
def test_what_does_not_fit_is_a_line_of_every_process(tmp_path, of, message):
    lines = errors(end(start_run(tmp_path / 'run', of=of)))
    assert all(re.search(message, line) for line in lines), lines
    assert checkpoint.steps(tmp_path / 'run') == []


OLDER = """
import sys
from importlib import metadata
version = metadata.version
metadata.version = lambda name: '0.1' if name == 'jax' else version(name)
from rpn_jax import cli
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_another_version_is_a_line_of_every_process(tmp_path):
    lines = errors(end(start_run(tmp_path, programs=(['main.py'], ['-c', OLDER]))))
    assert all(re.search(r'process 1 \(.*\) has jax \'0\.1\', process 0', each) for each in lines)


@pytest.mark.slow
def test_other_data_are_a_line_of_every_process(tmp_path):
    copies = [write_voc(tmp_path / name) for name in 'ab']
    annotation = copies[1] / 'Annotations/000002.xml'
    annotation.write_text(re.sub('<xmin>20', '<xmin>22', annotation.read_text()))
    own = [(f'--config.data.path={copy}',) for copy in copies]
    changes = {'source': 'voc', 'train_split': 'train', 'eval_split': 'val'}
    changes = {f'data__{key}': value for key, value in changes.items()}
    lines = errors(end(start_run(tmp_path / 'run', of=own, **changes)))
    assert all(re.search(r'process 1 \(.*\) has training data ', each) for each in lines), lines


@pytest.fixture
def three(monkeypatch):
    """Stands for process 0 of three; returns what the others' values are made by."""
    monkeypatch.setattr(hosts, '_names', ['a', 'b', 'b'])
    values = {1: dict, 2: dict}
    monkeypatch.setattr(
        hosts, 'exchange', lambda own: [own, *(change(own) for change in values.values())]
    )
    return values


def test_all_differences_between_processes_are_named(three):
    hosts.agree({'seed': 1, 'jax': '0.10'})
    three[2] = lambda own: {**own, 'seed': 2, 'training data': 'x'}
    expected = (
        r'^process 2 \(b\) has seed 2, process 0 \(a\) has 1; process 2 \(b\) has training data '
        r"'x', process 0 \(a\) has None; all processes must be started alike$"
    )
    with pytest.raises(InputError, match=expected):
        hosts.agree({'seed': 1, 'jax': '0.10'})


def test_arrays_of_any_layout_are_sent_bit_for_bit(three, monkeypatch):
    monkeypatch.setattr(hosts.multihost_utils, 'broadcast_one_to_all', lambda tree: tree)
    arrays = [np.arange(6.0).reshape(2, 3).T, np.float32(-0.0), np.int32([[7]]), np.zeros((0, 2))]
    for sent, array in zip(hosts.broadcast(arrays), arrays, strict=True):
        assert sent.dtype == array.dtype and sent.shape == array.shape
        assert sent.tobytes() == array.tobytes()


def test_processes_that_do_not_see_the_workdir_are_named(three, tmp_path):
    three.update({1: lambda own: own, 2: lambda own: own})
    assert workdir.not_seen(tmp_path) == '' and list(tmp_path.iterdir()) == []
    three[2] = lambda own: own if isinstance(own, str) else False
    note = workdir.not_seen(tmp_path)
    assert note == f'{tmp_path} of process 0 (a) is not seen by process 2 (b)'


def test_processes_that_others_wait_for_are_named(three):
    pace = hosts.Pace()
    told = [{0: f'{n} {n}', 1: f'{n} {n}', 2: f'{n} {n}'} for n in range(3)]
    assert [pace.line(each, now) for now, each in enumerate(told)] == [''] * 3
    last = {}
    for now in range(3, 28):  # process 1 has begun fewer than the others, then it is silent, too
        told = {0: f'4 {now}', 1: f'3 {min(now, 10)}', 2: f'4 {now}'}
        last |= {line: now for line in [pace.line(told, now)] if line}
    assert last == {
        'waiting for process 1 (b), 10 s so far': 13,
        'waiting for process 1 (b), 20 s so far': 23,
    }
    for now in range(28, 40):  # all have begun as many; one is silent
        line = pace.line({0: f'5 {now}', 1: f'5 {now}', 2: '5 40'}, now)
        assert line == ('waiting for process 2 (b), 10 s so far' if now == 38 else '')
    for now in range(40, 60):  # all are at work, say on the report
        assert pace.line({each: f'5 {now}' for each in range(3)}, now) == ''


def test_one_process_does_everything_itself(caplog):
    caplog.set_level(logging.INFO)
    assert hosts.is_first() and not hosts.several() and hosts.prefix() == ''
    assert hosts.exchange([1]) == [[1]] and hosts.from_first(lambda: (1,)) == (1,)
    assert hosts.agree({'a': 1}) is None and hosts.broadcast({'a': 2}) == {'a': 2}
