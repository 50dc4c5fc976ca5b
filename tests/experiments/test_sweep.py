"""The sweep: what it measures and expects, its verdict, its picture."""

import pytest
from helpers import narrow

from experiments import program, sweep
from experiments.bench import ours


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of an eighth of the width, and short measurements."""
    narrow(monkeypatch)
    monkeypatch.setattr(ours, 'REST', 0)
    monkeypatch.setattr(sweep, 'LEAST', 1e-9)


def points(*seconds):
    return [(2**n, 2.0**n, s) for n, s in enumerate(seconds)]


def test_the_exponent_is_that_of_time_over_cost():
    assert sweep.exponent(points(1, 2, 4)) == pytest.approx(1)
    assert sweep.exponent(points(1, 4, 16)) == pytest.approx(2)
    assert sweep.exponent(points(3, 3, 3)) == pytest.approx(0)
    assert 'exponent 2.00, a fault' in next(sweep.lines('x', points(1, 4, 16)))
    assert [*sweep.lines('x', points(1, 2, 5))][-1].split() == ['4', '5', '5.00x', '4.00x']


def test_small_sweeps_run_and_are_drawn(monkeypatch, tmp_path, capsys):
    known = sweep.sweeps(26)
    case = next(iter(known['nms'].cases.values()))._replace(size=(64, 64))
    boxes = {n: case._replace(boxes=n, limit=n) for n in (20, 60, 200)}
    grids = {240 * n * n: case._replace(boxes=9, size=(64 * n, 64 * n)) for n in (1, 2)}
    few = {
        'anchors': known['anchors']._replace(cases=grids),
        'nms': known['nms']._replace(cases=boxes),
    }
    monkeypatch.setattr(sweep, 'sweeps', lambda depth: few)
    monkeypatch.setattr(sweep, 'FAULT', 99)
    path = tmp_path / 'sweep.svg'
    assert sweep.main([f'--output={path}', '--repeats=2']) == 0
    out = capsys.readouterr().out
    assert out.count('as expected') == 2 and str(path) in out
    amounts = [row.split()[0] for row in out.splitlines() if 'x  ' in row]
    assert amounts == ['240', '960', '20', '60', '200']
    picture = path.read_text()
    assert picture.count('id="axes_') == 2 and 'dc:date' not in picture
    monkeypatch.setattr(sweep, 'FAULT', -99)
    assert sweep.main([f'--output={path}', '--repeats=1', '--only=anchors']) == 1
    assert 'a fault' in capsys.readouterr().out


def test_expected_costs_grow_with_what_grows():
    known = sweep.sweeps(26)
    assert list(known['anchors'].cases)[2] == len(ours.anchors_of(known['anchors'].cases[61440]))
    case = next(iter(known['objects'].cases.values()))
    assert sweep.comparisons(case._replace(boxes=9), None) == 36_480 * 16
    step = next(iter(known['batch'].cases.values()))._replace(size=(64, 64))
    one, two = (sweep.flops(c, ours.train(c)) for c in (step, step._replace(batch=2)))
    assert 1.8 * one < two < 2.2 * one


@pytest.mark.parametrize('flag', ['--only=area,speed', '--output=a.gif', '--output=/no/a.svg'])
def test_bad_arguments_are_a_line(flag, capsys):
    assert program.run(sweep.main, [flag]) == 1
    out, error = capsys.readouterr()
    assert out == '' and error.startswith('error: ') and error.count('\n') == 1
    assert flag.partition('=')[0] in error
