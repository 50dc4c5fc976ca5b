"""The plots of learning rates are drawn of any numbers that the modes have."""

import numpy as np
import pytest

from rpn_jax.diagnosis import lr_range
from rpn_jax.report import rate_plots


@pytest.mark.parametrize('losses', [np.linspace(1, 0.2, 140), np.ones(140), [1.0, np.nan]])
def test_a_range_test_is_drawn_with_what_it_suggests(losses):
    rates = np.geomspace(lr_range.LOWEST, lr_range.HIGHEST, lr_range.STEPS)[: len(losses)]
    found = lr_range.RangeTest(rates, np.array(losses), lr_range.moving_average(losses))
    summary = lr_range.summary(found)
    text = rate_plots.range_test(found, summary).decode()
    assert text.startswith('<svg') and 'averaged (thick)' in text
    if summary['suggested']:
        assert f'{summary["suggested"]["learning_rate"]:g}; in cycles from' in text
    else:
        assert 'in cycles' not in text


@pytest.mark.parametrize('rates', [np.zeros(1), np.linspace(1, 0, 50)])
def test_a_schedule_is_drawn(rates):
    text = rate_plots.over_steps(np.arange(1, len(rates) + 1), rates).decode()
    assert text.startswith('<svg') and 'learning rate' in text
