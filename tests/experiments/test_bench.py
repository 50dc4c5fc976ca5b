"""The benchmark beside torchvision: its line, its tables, and its talk with the other side."""

import json
import re
import sys
import types

import jax
import numpy as np
import pytest
from helpers import narrow

from experiments import bench, bench_costs, bench_ours, bench_peer
from experiments.bench_costs import Costs
from experiments.bench_ours import Case

pytestmark = pytest.mark.usefixtures('quick_compilation')
CASE = Case('nms', 26, 'c4', 3, 1, (64, 64), 'float32', boxes=64, limit=16)
# What the other side says, without torch: it takes half a second a call, a run more each time.
WORKER = """
import json, sys
runs, prelude = 0, sys.argv[-2:]
print(json.dumps({'ready': ' '.join(prelude)}), flush=True)
for line in sys.stdin:
    ((order, value),) = json.loads(line).items()
    runs += order == 'run'
    say = {'seconds': 0.5} if order == 'prepare' else {'seconds': 0.5 * runs, 'calls': value}
    if order == 'report':
        say = {'memory': 2**20, 'answer': [1, 2, 3]}
    CHANGE
    print(json.dumps(say), flush=True)
"""


class Side:
    """Takes a second a call, and writes down when it is called."""

    costs = None

    def __init__(self, log, seconds=1.0):
        self.log, self.seconds = log, seconds

    def arrays(self, case):
        return {'boxes': np.zeros((3, 4), np.float32)}

    def prepare(self, case, arrays):
        return self.seconds

    def run(self, calls):
        self.log.append(('ours', calls))
        return self.seconds

    def report(self):
        return {'memory': 3 * 2**20, 'answer': [1, 2, 4]}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of an eighth of the width, and no rest."""
    narrow(monkeypatch)
    monkeypatch.setattr(bench_ours, 'REST', 0)
    monkeypatch.setattr(bench, 'LEAST', {'cpu': 1e-9})
    monkeypatch.setattr(bench, 'MATCHED', ((64, 64), 5))
    monkeypatch.setattr(bench_ours, 'COUNTED', (3, 20, 2))
    monkeypatch.setattr(bench, 'MATRIX', {'cpu': 64})
    monkeypatch.setattr(bench, 'COPY', 2**10)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Returns a function that makes the other side a script of ours: (change) -> command."""

    def make(change='pass'):
        script = tmp_path / 'worker.py'
        script.write_text(WORKER.replace('CHANGE', change))
        return f"{sys.executable} '{script}'"

    return make


def connect(command):
    arguments = types.SimpleNamespace(device='cpu', channels_last=False)
    return bench_peer.Peer(command, arguments)


def error_of(capsys, *words):
    """Returns the only line of stderr of a run that fails."""
    assert bench.main(list(words)) == 1
    out, error = capsys.readouterr()
    assert out == '' and error.startswith('error: ') and error.count('\n') == 1
    return error


def test_json_is_one_line_of_ours_alone(capsys):
    words = ['--json', '--only=train', '--repeats=3', '--depth=26', '--size', '64', '96']
    assert bench.main(words) == 0
    out, error = capsys.readouterr()
    line = json.loads(out)
    assert out.count('\n') == 1 and error.count('\n') == 3
    assert 0 < line['least'] <= line['seconds'] <= line['most'] and line['repeats'] == 3
    case = ['kind', 'depth', 'stage', 'frozen_stages', 'batch', 'size', 'dtype']
    assert [line[key] for key in case] == ['train', 26, 'c4', 3, 1, [64, 96], 'float32']
    assert line['costs']['flops'] > 1e6 and line['costs']['planned'] > 1e5
    assert 'torch' not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize('words', ['predict', 'backbone', 'predict --stage dc5 --dtype bfloat16'])
def test_the_other_networks_run(words, capsys):
    words = f'--json --depth=26 --size=64 --repeats=1 --only {words}'.split()
    assert bench.main(words) == 0
    assert json.loads(capsys.readouterr().out)['costs']['flops'] > 1e6


def test_ours_alone_has_dashes_for_ratios(capsys):
    assert bench.main(['--only=match,metrics', '--repeats=2']) == 0
    out, _ = capsys.readouterr()
    machine, *lines = out.splitlines()
    assert 'GFLOP/s' in machine and 'torch' not in machine
    assert [line.split('  ')[0] for line in lines[1:3]] == ['match 5 objects', 'metrics 3 x 20 x 2']
    assert all(line.split()[-3:] == ['-', '-', '-'] for line in lines[1:3])


def test_the_loop_of_matching_is_counted_once():
    def flops(objects):
        arrays = np.zeros((100, 4), np.float32), np.zeros((objects, 4), np.float32)
        lowered = jax.jit(bench_ours.match).lower(*arrays, np.ones(objects, np.int32))
        return lowered.compile().cost_analysis()['flops']

    assert 'match' in bench.LOOPS and flops(800) < 1.2 * flops(80)  # else it would have a floor


def test_both_sides_get_the_same_boxes_and_keep_the_right_ones():
    ours = bench_ours.Ours()
    arrays = ours.arrays(CASE)
    boxes, scores = arrays['boxes'], arrays['scores']
    assert boxes.shape == (64, 4) and np.all(np.diff(scores) <= 0)
    assert np.all((boxes >= 0) & (boxes <= 64))
    assert ours.prepare(CASE, arrays) > 0
    kept = []
    for i, one in enumerate(boxes):
        if all(bench_ours.metrics.iou(one[None], boxes[j, None])[0, 0] <= 0.7 for j in kept):
            kept.append(i)
    assert ours.report()['answer'] == kept[:16]
    assert 1 < len(kept) < 64


def test_who_begins_changes_and_ratios_are_of_pairs(worker, capsys):
    log, peer = [], connect(worker())
    run = peer.run
    peer.run = lambda calls: log.append(('theirs', calls)) or run(calls)
    (row,) = bench.measure(CASE, Side(log), [peer], 3)
    assert [name for name, _ in log] == ['ours', 'theirs', 'theirs', 'ours', 'ours', 'theirs']
    assert row.ours == [1, 1, 1] and row.theirs == [0.5, 1, 1.5]
    assert bench.ratio(row) == (1, pytest.approx(2 / 3), 2)
    assert row.memory == (3 * 2**20, 2**20)
    assert 'answers differ: 1 of 3, first 4 and 3' in capsys.readouterr().err
    peer.close()


def test_short_calls_are_measured_together(monkeypatch):
    monkeypatch.setattr(bench, 'LEAST', {'cpu': 0.1})
    assert [bench.calls_of(s) for s in (0.001, 0.04, 0.1, 7)] == [100, 3, 1, 1]
    assert bench.calls_of(0) > 1000


def test_a_case_that_the_other_side_refuses_is_left_out(worker, capsys):
    peer = connect(worker("say = {'error': 'no memory'}"))
    (row,) = bench.measure(CASE, Side([]), [peer], 2)
    peer.close()
    assert row.ours == [1, 1] and row.theirs == [] and bench.ratio(row) is None
    assert 'torchvision: no memory' in capsys.readouterr().err


def test_its_death_is_a_line_after_what_was_measured(worker, capsys):
    dies = worker("if order == 'run': sys.exit('killed\\nout of luck')")
    assert bench.main(['--only=metrics,match', '--repeats=1', '--peer', dies]) == 1
    out, error = capsys.readouterr()
    assert error.splitlines()[-1].startswith('error: --peer ')
    assert error.splitlines()[-1].endswith('ended with code 1: out of luck')
    assert 'metrics 3 x 20 x 2' in out and 'match' not in out


def test_errors_of_a_user_are_a_line(worker, tmp_path, capsys):
    for words, said in [
        (['--peer', '/no/such/python', '--only=match'], '/no/such/python: cannot be started'),
        (['--peer', f'{sys.executable} /no/script.py'], 'No such file'),
        (['--only', 'train,nothing'], "no 'nothing'; there are train, predict"),
        (['--json'], 'name it, as in --only train'),
        (['--size', '16'], 'of at least 32 pixels'),
        (['--repeats', '0'], '--repeats: 0 is not at least 1'),
        (['--stage', 'c9'], 'see bench.py --help'),
        (['--only=match', '--device=gpu'], '--device gpu: JAX cannot use it'),
        (['--compile'], '--compile is of torch; name a --peer'),
        (['--json', '--only=nms', '--image', f'{tmp_path}/none.jpg'], 'no such image'),
    ]:
        assert said in error_of(capsys, *words)
    talks = worker("print('hello', flush=True)")
    with pytest.raises(bench.InputError, match="said 'hello', which is not JSON"):
        peer = connect(talks)
        try:
            peer.prepare(CASE, {})
        finally:
            peer.close()


def test_a_floor_is_the_slower_of_arithmetic_and_memory():
    costs = Costs(cold=1, warm=1, flops=6e9, bytes=1e9, planned=0)
    assert bench.floor(costs, (3e9, 1e9)) == 2
    assert bench.floor(costs, (3e10, 1e9)) == 1


def test_tables_of_canned_numbers():
    costs = Costs(cold=12.34, warm=1.26, flops=6e9, bytes=1e9, planned=3 * 2**20)
    train = CASE._replace(kind='train', depth=101)
    rows = [
        bench.Row(train, '', [3.0, 4.0, 5.0], [6.0, 5.0, 5.0], costs, (2**30, 2**29)),
        bench.Row(CASE, '', [0.001], [], costs, (2**20, None)),
    ]
    assert bench.tables(rows, (3e9, 1e9)).splitlines() == [
        'case                            ours, s  torchvision, s      ours / torchvision  '
        'ours / floor',
        'train R101 c4 frozen 3 batch 1        4               5  0.800 (0.500 to 1.000)  '
        '        2.00',
        'nms 64 -> 16                      0.001               -                       -  '
        '           -',
        '',
        'case                            compile, s  .. again  GFLOP  GB  planned, MiB  '
        'ours, MiB  torchvision, MiB',
        'train R101 c4 frozen 3 batch 1        12.3       1.3      6   1             3  '
        '     1024               512',
        'nms 64 -> 16                          12.3       1.3      -   -             3  '
        '        1                 -',
    ]
    lines = bench.tables(rows, (3e9, 1e9), markdown=True).splitlines()
    assert lines[1] == '| --- | --- | --- | --- | --- |'
    row = '| train R101 c4 frozen 3 batch 1 | 4 | 5 | 0.800 (0.500 to 1.000) | 2.00 |'
    assert lines[2] == row


def test_cases_are_the_grid_or_what_is_asked_for():
    def names(*words):
        return [case.name for case in bench.cases(bench.parse(words))]

    train = names('--only=train')
    assert len(train) == 8 and train[0] == 'train R101 c4 frozen 3 batch 1'
    assert train[-1] == 'train R101 dc5 frozen 0 batch 2'
    words = '--only=predict,train', '--stage=dc5', '--batch=4', '--frozen-stages=1', '--depth=50'
    assert names(*words) == ['predict R50 dc5 batch 4', 'train R50 dc5 frozen 1 batch 4']
    assert names('--only=nms', '--boxes', '6000', '1000') == [
        'nms 6000 -> 1000',
        'nms 6000 -> 6000',
        'nms 1000 -> 1000',
    ]
    assert names('--only=nms', '--size=64', '--boxes', '6000') == ['nms 240 -> 240']


def test_a_compiled_backbone_is_a_side_of_its_own(worker, capsys):
    says = worker("runs += 99 * (order == 'prepare' and value['compile'])")
    words = ['--only=match,predict', '--depth=50', '--size=64', '--stage=c4', '--batch=1']
    assert bench.main([*words, '--repeats=1', '--compile', '--peer', says]) == 0
    out, _ = capsys.readouterr()
    table = out.split('\n\n')[0].splitlines()[2:]
    assert [line.split('  ')[0] for line in table] == [
        'match 5 objects',
        'predict R50 c4 batch 1',
        'predict R50 c4 batch 1, torch.compile',
    ]
    eager, compiled = (re.split('  +', line)[1:3] for line in table[1:])
    assert eager[0] == compiled[0]  # of ours one measurement
    assert (eager[1], compiled[1]) == ('1', '50')  # as the worker says
    assert float(table[1].split()[-1]) > 0  # times the floor


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
def test_flops_are_counted_of_a_program_of_any_device(platform):
    x = np.zeros((32, 64), np.float32)
    lowered = jax.jit(lambda x: x @ x.T).trace(x).lower(lowering_platforms=(platform,))
    assert bench_costs.flops_of(lowered) == 2 * 32 * 64 * 32
