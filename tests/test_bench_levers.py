"""The levers: without each the step computes the same, and all of them are timed."""

import contextlib

import pytest
from test_bench import narrow
from test_end_to_end import quick_compilation

from configs import default
from experiments import bench_levers
from experiments.bench_ours import Case
from rpn_jax import convolution

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures(quick_compilation.__name__)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of an eighth of the width, wide enough all the same; fewer samples than cells."""
    narrow(monkeypatch)
    monkeypatch.setattr(convolution, 'WIDE', 8)
    original = default.get_config

    def few():
        config = original()
        config.targets.samples = 12
        return config

    monkeypatch.setattr(default, 'get_config', few)


def looked_at(context):
    """Returns the losses of a step made inside a context, and its program as text."""
    case = Case('train', 26, 'c4', 2, 1, (64, 64), 'float32')
    with context:
        program = bench_levers.made(case, contextlib.nullcontext())
        text = program.lower().as_text()
    found = program.call()
    return [float(found[key]) for key in ('loss', 'loss_box')], text


def test_a_step_without_a_lever_computes_the_same_in_another_way():
    losses, text = looked_at(contextlib.nullcontext())
    assert looked_at(contextlib.nullcontext())[1] == text
    for name, lack in bench_levers.LEVERS.items():
        found, other = looked_at(lack())
        assert found == pytest.approx(losses, rel=1e-4), name
        assert other != text, name


def test_all_of_them_are_timed(capsys):
    assert not bench_levers.main(['--depth=26', '--size=64', '--repeats=1'])
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith('train R26 c4 frozen 3 batch 1: ')
    assert [row.strip().partition('  ')[0] for row in rows] == list(bench_levers.LEVERS)
