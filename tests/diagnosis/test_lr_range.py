"""The range test finds where a loss falls and where it grows, and names rates between the two."""

import json

import numpy as np
import pytest
from config_cases import HEALTHY
from helpers import tiny_flags

import main
from rpn_jax.diagnosis import lr_range

RATES = np.geomspace(lr_range.LOWEST, lr_range.HIGHEST, lr_range.STEPS)


def measured(losses):
    """Returns the RangeTest of losses, one for each of the first rates."""
    losses = np.asarray(losses, float)
    return lr_range.RangeTest(RATES[: len(losses)], losses, lr_range.moving_average(losses))


def falling(lowest=0.05, diverges=0.5):
    """Returns losses that fall from a rate of 1e-3, are lowest at one, and grow beyond another."""
    losses = 1 - 0.7 * np.clip(np.log(RATES / 1e-3) / np.log(lowest / 1e-3), 0, 1)
    losses[RATES > diverges] = 20
    ends = np.flatnonzero(lr_range.moving_average(losses) > 4 * losses.min())
    return losses[: ends[0] + 1] if len(ends) else losses


def test_the_moving_average_is_a_weighted_mean_of_what_came_before():
    losses = np.random.default_rng(0).uniform(0, 1, 9)
    for n, value in enumerate(lr_range.moving_average(losses), start=1):
        weights = lr_range.DECAY ** np.arange(n)[::-1]
        assert value == pytest.approx(np.average(losses[:n], weights=weights))


def test_rates_are_suggested_between_where_the_loss_falls_and_where_it_grows():
    found = lr_range.summary(measured(falling()))
    assert 1e-3 < found['falls_from'] < 5e-3
    assert 0.05 < found['lowest_at'] <= 0.5 < found['diverges_at'] < 1
    rate, low = found['suggested'].values()
    assert rate == pytest.approx(found['lowest_at'] / lr_range.MARGIN, rel=0.05)
    assert low * rate == pytest.approx(found['falls_from'], rel=0.1)
    first, _, *flags = lr_range.lines(found, 0.01)
    assert (
        f'from a learning rate of {found["falls_from"]:g} on' in first and 'grows 4-fold' in first
    )
    assert f'--config.optim.learning_rate={rate:g}' in flags[0]
    assert f'--config.optim.low_factor={low:g}' in flags[1]


def test_a_loss_that_does_not_diverge_or_never_falls_is_told():
    found = lr_range.summary(measured(falling(diverges=np.inf)))
    assert found['diverges_at'] is None
    assert 'does not diverge by 10' in lr_range.lines(found, 0.01)[0]
    flat = lr_range.summary(measured(np.ones(len(RATES))))
    assert flat['suggested'] is None and flat['falls_from'] is None
    assert lr_range.lines(flat, 0.01)[0].startswith('the loss falls at no learning rate')


@pytest.mark.parametrize('seed', range(8))
def test_noise_is_no_fall_and_the_fall_begins_after_it(seed):
    noise = np.random.default_rng(seed).normal(0, 0.15, len(RATES))
    assert lr_range.summary(measured(0.7 + noise))['suggested'] is None
    losses = falling(diverges=np.inf) + noise
    assert 5e-4 < lr_range.summary(measured(losses))['falls_from'] < 2e-2


def test_the_rate_of_the_config_is_put_beside_them():
    found = lr_range.summary(measured(falling()))
    for given, words in ((1e-5, 'lies below'), (0.02, 'may stay'), (3.0, 'lies above')):
        assert f'the config has {given:g}, which' in (line := lr_range.lines(found, given)[1])
        assert words in line


def test_a_loss_that_is_not_finite_ends_it_and_json_holds_it():
    found = lr_range.summary(measured([*falling()[:60], np.nan]))
    assert found['losses'][-1] is None and found['diverges_at'] == lr_range.rounded(RATES[60])
    json.dumps(found, allow_nan=False)


def test_the_command_trains_with_rates_that_grow_and_stops_where_the_loss_does(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(lr_range, 'STEPS', 30)
    flags = tiny_flags(tmp_path, **HEALTHY | {'data__scenes': (20, 4), 'steps': 5})
    assert main.main(['lr_range', *flags]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / 'lr_range.json').read_text())
    assert content['learning_rates'][0] == lr_range.LOWEST and len(content['losses']) <= 30
    assert content['losses'][0] == pytest.approx(0.7, rel=0.2)  # of a head that knows nothing
    assert content['lowest_loss'] < 0.9 * content['losses'][0]
    assert f'--config.optim.learning_rate={content["suggested"]["learning_rate"]:g}' in printed
    assert (tmp_path / 'lr_range.svg').read_text().startswith('<svg')
    assert {path.name for path in tmp_path.iterdir()} == {'lr_range.json', 'lr_range.svg'}


def test_a_loss_that_is_never_finite_is_a_line(monkeypatch, refuse, tmp_path):
    monkeypatch.setattr(lr_range, 'STEPS', 3)
    flags = tiny_flags(tmp_path, data__mean=(3e38,) * 3, data__std=(255.0,) * 3)
    assert refuse(['lr_range', *flags]).startswith('the loss is not finite before anything')
    assert list(tmp_path.iterdir()) == []
