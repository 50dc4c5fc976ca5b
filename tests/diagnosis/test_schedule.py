"""The learning rate over a run is that of training, and its lines show where it is high."""

import json

import numpy as np
import pytest
from helpers import tiny_config, tiny_flags

import main
from rpn_jax.diagnosis import schedule
from rpn_jax.training.optim import make_optimizer


@pytest.mark.parametrize('kind', ['constant', 'step', 'cosine', 'cyclical', 'one_cycle'])
@pytest.mark.parametrize('points', [7, 2000])
def test_the_rates_are_those_that_each_step_learns_with(kind, points):
    optim = tiny_config(optim__schedule=kind, optim__warmup_steps=5).optim
    steps, rates = schedule.rates(optim, 40, points)
    _, rate = make_optimizer(**optim, steps=40)
    assert len(steps) == min(points, 40) and steps[0] == 1 and steps[-1] == 40
    expected = [float(rate(step - 1)) for step in steps]  # a run's first step has the rate of 0
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_runs_of_any_length_have_a_few_points():
    steps, rates = schedule.rates(tiny_config().optim, 2**31 - 1)
    assert len(steps) == len(rates) == schedule.MOST and steps[-1] == 2**31 - 1
    content = schedule.summary(steps, rates)
    assert len(content['steps']) == len(content['learning_rates']) == schedule.POINTS


def test_the_highest_rate_is_that_of_all_steps():
    optim = tiny_config(optim__schedule='cosine', optim__warmup_steps=2).optim
    assert schedule.summary(*schedule.rates(optim, 20_000))['highest_at'] == 3


def test_lines_have_bars_and_what_is_notable():
    steps, rates = np.arange(1, 101), np.linspace(0, 0.5, 100)
    lines = schedule.lines(steps, rates)
    assert len(lines) == schedule.ROWS + 2 and lines[1] == '   1  0'
    assert lines[-2] == ' 100  0.5            ' + '#' * schedule.BAR
    assert lines[-1] == 'highest 0.5 at step 100, mean 0.25, last 0.5'
    assert schedule.lines(np.array([1]), np.zeros(1))[-1].startswith('highest 0 at step 1')


def test_the_command_writes_the_rates_and_warns_of_a_schedule_that_is_ill(tmp_path, capsys):
    flags = tiny_flags(tmp_path, steps=200, optim__schedule='step', optim__schedule_steps=9000)
    assert main.main(['schedule', *flags]) == 0
    printed = capsys.readouterr().out
    assert 'The learning rate never falls' in printed and str(tmp_path / 'schedule.svg') in printed
    content = json.loads((tmp_path / 'schedule.json').read_text())
    assert len(content['steps']) == len(content['learning_rates']) == 200
    assert content['last'] == content['learning_rates'][-1]
    assert (tmp_path / 'schedule.svg').read_text().startswith('<svg')
    assert {path.name for path in tmp_path.iterdir()} == {'schedule.json', 'schedule.svg'}
    assert main.main(['schedule', *tiny_flags(tmp_path, steps=200)]) == 0
    assert 'nothing found' not in capsys.readouterr().out
