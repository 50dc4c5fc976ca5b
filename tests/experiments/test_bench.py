"""The benchmark beside torchvision: its line, its table, and its talk with the other side."""

import json
import re
import sys

import cv2
import jax
import numpy as np
import pytest
from helpers import loop_iou, narrow, noise

from experiments import program
from experiments.bench import __main__ as bench
from experiments.bench import costs, ours, pipeline, table
from experiments.bench.ours import Case
from experiments.bench.table import Row

CASE = Case('nms', 26, 'c4', 3, 1, (64, 64), 'float32', boxes=64, limit=16)
COSTS = costs.Costs(compilation=12.34, flops=6e9, bytes=1e9, planned=3 * 2**20)
# The other side without torch: a call takes half a second, and as much more in each later run.
WORKER = """
import json, sys
runs = 0
print(json.dumps({'ready': ' '.join(sys.argv[-2:])}), flush=True)
for line in sys.stdin:
    ((order, value),) = json.loads(line).items()
    runs += order == 'run'
    reply = {'seconds': 0.5 * runs} if order == 'run' else {}
    if order == 'report':
        reply = {'memory': 2**20, 'answer': [1, 2, 3]}
    CHANGE
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of an eighth of the width, and no rest."""
    narrow(monkeypatch)
    monkeypatch.setattr(ours, 'REST', 0)
    monkeypatch.setattr(ours, 'COUNTED', (3, 20, 2))
    monkeypatch.setattr(bench, 'LEAST', {'cpu': 1e-9})
    monkeypatch.setattr(bench, 'MATCHED', ((64, 64), 5))
    monkeypatch.setattr(table, 'MATRIX', {'cpu': 64})
    monkeypatch.setattr(table, 'COPY', 2**10)
    monkeypatch.setattr(pipeline, 'EACH', 8)


@pytest.fixture
def worker(tmp_path):
    """Returns a function that writes the other side as a script: (change) -> command."""

    def make(change='pass'):
        script = tmp_path / 'worker.py'
        script.write_text(WORKER.replace('CHANGE', change))
        return f"{sys.executable} '{script}'"

    return make


def run(words, capsys):
    """Returns the exit code, the lines of the output and those of the errors."""
    code = program.run(bench.main, words.split() if isinstance(words, str) else words)
    out, error = capsys.readouterr()
    return code, out.splitlines(), error.splitlines()


@pytest.mark.parametrize(
    'words',
    [
        'train --size 64 96',
        pytest.param('predict', marks=pytest.mark.slow),
        pytest.param('backbone --stage dc5 --dtype bfloat16', marks=pytest.mark.slow),
    ],
)
def test_json_is_one_line_of_ours_alone(words, capsys):
    code, (line,), progress = run(f'--json --repeats=3 --depth=26 --size=64 --only {words}', capsys)
    line, kind = json.loads(line), words.split()[0]
    assert code == 0 and len(progress) == 3
    assert 0 < line['least'] <= line['seconds'] <= line['most'] and line['repeats'] == 3
    case = [line[key] for key in ('kind', 'depth', 'frozen_stages', 'batch', 'size')]
    assert case == [kind, 26, 3, 1, [64, 96 if kind == 'train' else 64]]
    assert line['costs']['flops'] > 1e6 and line['costs']['planned'] > 1e5
    assert 'torch' not in sys.modules


def test_ours_alone_has_dashes_for_ratios(capsys):
    code, (machine, _, *rows), _ = run('--only=match,metrics --repeats=2', capsys)
    assert code == 0 and 'GFLOP/s' in machine and 'torch' not in machine
    assert [row.split('  ')[0] for row in rows] == ['match 5 objects', 'metrics 3 x 20 x 2']
    assert all(re.split('  +', row)[2:5] == ['-', '-', '-'] for row in rows)


def test_the_input_pipeline_stands_beside_another_loader(tmp_path, capsys):
    for number in range(9):
        cv2.imwrite(f'{tmp_path}/{number}.jpg', noise((60, 80)))
    words = f'--only=input --size=64 --batch=4 --repeats=1 --photographs={tmp_path}'
    code, (_, _, row), _ = run(words, capsys)
    row = re.split('  +', row)
    assert code == 0 and row[0] == 'input batch 4, beside two threads of PIL'
    assert float(row[3].split()[0]) > 0


def test_the_kept_boxes_are_those_of_a_greedy_loop():
    made = ours.suppression(CASE)
    boxes, scores = made.arrays.values()
    assert boxes.shape == (64, 4) and np.all(np.diff(scores) <= 0)
    assert np.all((boxes >= 0) & (boxes <= 64))
    kept = []
    for i, box in enumerate(boxes):
        if all(loop_iou(box, boxes[j]) <= 0.7 for j in kept):
            kept.append(i)
    assert made.answer(made.call()) == kept[:16] and 1 < len(kept) < 64


def test_who_begins_changes():
    log = []
    runs = [lambda side=side: log.append(side) or len(log) for side in 'ab']
    assert ours.alternate(runs, 3) == [[1, 4, 5], [2, 3, 6]]
    assert log == [*'abbaab']


def test_ratios_are_of_pairs_and_answers_are_compared(worker, capsys):
    words = ['--only=match', '--repeats=3', '--peer', worker()]
    code, (machine, _, row), progress = run(words, capsys)
    row = re.split('  +', row)
    assert code == 0 and machine.endswith('torchvision_worker.py cpu')
    assert row[2] == '2.5' and row[8] == '1'  # seconds of the fifth run, after three that warm
    least, most = sorted(float(x) for x in re.findall(r'[\d.]+', row[3])[1:])
    assert 0 <= least <= most < 1
    assert any('the answers differ' in line for line in progress)


def test_short_calls_are_measured_together():
    seconds = {0.001: 100, 0.04: 3, 0.1: 1, 7: 1}
    assert {s: ours.warmed(lambda calls, s=s: s, 0.1).args[0] for s in seconds} == seconds
    assert ours.warmed(lambda calls: 0, 0.1).args[0] > 1000


@pytest.mark.parametrize(
    ('change', 'code', 'cases', 'last'),
    [
        ("reply = {'error': 'no memory'}", 0, ['metrics', 'match'], '  torchvision: no memory'),
        ("if order == 'run': sys.exit('killed\\nout of luck')", 1, ['metrics'], 'out of luck'),
        ("print('hello', flush=True)", 1, ['metrics'], 'which is not JSON'),
    ],
)
def test_what_the_other_side_cannot_do_is_a_line(worker, capsys, change, code, cases, last):
    words = ['--only=metrics,match', '--repeats=1', '--peer', worker(change)]
    ended, (_, _, *rows), progress = run(words, capsys)
    assert ended == code and [row.split()[0] for row in rows] == cases
    problems = [line for line in progress if line.startswith(('error: --peer ', '  torchvision: '))]
    assert len(problems) == 1 and problems[0].endswith(last)
    assert all(re.split('  +', row)[3] == '-' for row in rows)


@pytest.mark.parametrize(
    ('words', 'part'),
    [
        ('--only=match --peer /no/such/python', '--peer /no/such/python'),
        (['--only=match', '--peer', f'{sys.executable} -c "print(1 +"'], '--peer'),
        ('--only train,nothing', '--only'),
        ('--json', '--json'),
        ('--json --only=train --peer python', '--json'),
        ('--size 16', '--size'),
        ('--only=match --device=gpu', '--device gpu'),
        ('--compile', '--compile'),
        ('--json --only=nms --image /no/image.jpg', '/no/image.jpg'),
        ('--json --only=input --photographs /no/folder', '/no/folder'),
        ('--only=input', '--photographs'),
    ],
)
def test_errors_of_a_user_are_a_line(words, part, capsys):
    code, out, (line,) = run(words, capsys)
    assert code == 1 and out == [] and line.startswith('error: ') and part in line


def test_the_table_of_canned_numbers():
    train = CASE._replace(kind='train', depth=101)
    peer = {'note': ', torch.compile', 'theirs': [6.0, 5.0, 5.0], 'memory': 2**29}
    rows = [Row(train, [3.0, 4.0, 5.0], COSTS, **peer), Row(CASE, [0.001], COSTS)]
    lines = table.table(rows, (3e9, 1e9)).splitlines()
    assert [re.split('  +', line) for line in lines] == [
        list(table.HEAD),
        ['train R101 c4 frozen 3 batch 1, torch.compile', '4', '5', '0.800 (0.500 to 1.000)']
        + ['2.00', '6', '1', '3', '512', '12.3'],
        ['nms 64 -> 16', '0.001', *'-----', '3', '-', '12.3'],
    ]
    assert re.split('  +', table.table(rows, (3e10, 1e9)).splitlines()[1])[4] == '4.00'  # memory
    lines = table.table(rows, (3e9, 1e9), markdown=True).splitlines()
    assert lines[1] == '|' + ' --- |' * 10 and lines[3].startswith('| nms 64 -> 16 | 0.001 | - |')


def test_cases_are_the_grid_or_what_is_asked_for():
    def names(*words):
        return [case.name for case in bench.cases(bench.parse(words))]

    first, *others = names('--only=train')
    assert first == 'train R101 c4 frozen 3 batch 1' and len(others) == 7
    words = '--only=predict,train', '--stage=dc5', '--batch=4', '--frozen-stages=1', '--depth=50'
    assert names(*words) == ['predict R50 dc5 batch 4', 'train R50 dc5 frozen 1 batch 4']
    expected = ['nms 6000 -> 1000', 'nms 6000 -> 6000', 'nms 1000 -> 1000']
    assert names('--only=nms', '--boxes', '6000', '1000') == expected
    assert names('--only=nms', '--size=64', '--boxes', '6000') == ['nms 240 -> 240']


@pytest.mark.slow
def test_a_compiled_backbone_is_a_side_of_its_own(worker, capsys):
    slow = worker("runs += 99 * (order == 'prepare' and value['compile'])")
    words = ['--only=match,predict', '--depth=50', '--size=64', '--stage=c4', '--batch=1']
    words += ['--repeats=1', '--compile', '--peer', slow]
    _, (_, _, *rows), _ = run(words, capsys)
    rows = [re.split('  +', row) for row in rows]
    names = ['match 5 objects', 'predict R50 c4 batch 1', 'predict R50 c4 batch 1, torch.compile']
    assert [row[0] for row in rows] == names
    assert rows[1][1] == rows[2][1]  # of ours one measurement
    assert float(rows[2][2]) - float(rows[1][2]) > 40


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
def test_flops_are_counted_of_a_program_of_any_device(platform):
    x = np.zeros((32, 64), np.float32)
    lowered = jax.jit(lambda x: x @ x.T).trace(x).lower(lowering_platforms=(platform,))
    assert costs.flops_of(lowered) == 2 * 32 * 64 * 32


@pytest.mark.xla
def test_the_loop_of_matching_is_counted_once():
    def flops(objects):
        return costs.costs(ours.matching(CASE._replace(boxes=objects)).lower).flops

    assert 'match' in table.LOOPS and flops(800) < 1.2 * flops(80)  # else it would have a floor
