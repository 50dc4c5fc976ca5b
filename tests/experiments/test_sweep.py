"""The sweep: what it measures and predicts, its verdict, its picture."""

import pytest
from helpers import narrow

from experiments import bench_ours, sweep
from experiments.bench_ours import KINDS, Ours
from rpn_jax.models import rpn

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of an eighth of the width, and short measurements."""
    narrow(monkeypatch)
    monkeypatch.setattr(bench_ours, 'REST', 0)
    monkeypatch.setattr(sweep, 'LEAST', 1e-9)


def points(*seconds):
    return [sweep.Point(2**n, 2.0**n, s) for n, s in enumerate(seconds)]


def few(monkeypatch, **sizes):
    """Lets the sweeps have small cases only: name -> fields of the cases."""
    original = sweep.sweeps(26)
    chosen = {
        name: original[name]._replace(
            cases=[original[name].cases[0]._replace(**fields) for fields in cases]
        )
        for name, cases in sizes.items()
    }
    monkeypatch.setattr(sweep, 'sweeps', lambda depth: chosen)


def test_the_exponent_is_that_of_time_over_cost():
    assert sweep.exponent(points(1, 2, 4)) == pytest.approx(1)
    assert sweep.exponent(points(1, 4, 16)) == pytest.approx(2)
    assert sweep.exponent(points(3, 3, 3)) == pytest.approx(0)
    assert 'exponent 2.00, a fault' in next(sweep.lines('x', points(1, 4, 16)))
    assert [*sweep.lines('x', points(1, 2, 5))][-1].split() == ['4', '5', '5.00x', '4.00x']


def test_small_sweeps_run_and_are_drawn(monkeypatch, tmp_path, capsys):
    few(
        monkeypatch,
        anchors=[{'size': (64, 64)}, {'size': (128, 128)}],
        nms=[{'size': (64, 64), 'boxes': n, 'limit': n, 'depth': 26} for n in (20, 60, 200)],
    )
    monkeypatch.setattr(sweep, 'FAULT', 99)
    path = tmp_path / 'found.svg'
    assert sweep.main([f'--output={path}', '--repeats=2']) == 0
    out = capsys.readouterr().out
    assert out.count('as it should') == 2 and f'{path} shows them' in out
    amounts = [row.split()[0] for row in out.splitlines() if 'x  ' in row]
    assert amounts == ['240', '960', '20', '60', '200']
    picture = path.read_text()
    assert picture.count('id="axes_') == 2 and 'dc:date' not in picture
    monkeypatch.setattr(sweep, 'FAULT', -99)
    assert sweep.main([f'--output={path}', '--repeats=1', '--only=anchors']) == 1
    assert 'a fault' in capsys.readouterr().out


def test_what_a_step_should_cost_grows_with_its_images():
    step = sweep.sweeps(26)['batch'].cases[0]._replace(size=(64, 64))
    work = []
    for batch in (1, 2):
        case = step._replace(batch=batch)
        work.append(sweep.flops(case, KINDS['train'](case, Ours().arrays(case))))
    assert 1.8 * work[0] < work[1] < 2.2 * work[0]


def test_anchors_and_comparisons_are_counted():
    case = sweep.sweeps(50)['objects'].cases[0]
    model = rpn.build(sweep.config_of(case))
    assert sweep.anchors(case) == len(rpn.anchors_of(model, case.size)) == 36_480
    assert sweep.comparisons(case._replace(boxes=9), None) == 36_480 * 16


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--only=area,speed', "--only: no 'speed'; there are area, batch, anchors, objects, nms"),
        ('--output=a.gif', '--output=a.gif: not the name of an .svg or .png file in a folder'),
        ('--output=/no/where/a.svg', '--output=/no/where/a.svg: not the name of'),
    ],
)
def test_bad_arguments_are_a_line(flag, message, capsys):
    assert sweep.main([flag]) == 1
    out, error = capsys.readouterr()
    assert out == '' and error.startswith(f'error: {message}') and error.count('\n') == 1
