"""Short trainings: what a network learns of one batch, and what their traces say."""

import numpy as np
import pytest
from diagnosis.test_config_checks import config_of

from rpn_jax.diagnosis import doctor, probe_checks

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_the_short_trainings_show_a_rate_that_is_too_high_and_a_network_that_cannot_learn():
    healthy = doctor.diagnose(config_of(), seconds=15)
    assert not [each for each in healthy.findings if each.level == 'error']
    assert len(healthy.probe.rates) == doctor.probing.RATES
    assert healthy.probe.overfit.loss[-1] < 0.6 * healthy.probe.overfit.loss[0]
    assert {'head', 'conv3', 'stem'} <= {*healthy.probe.ratios}
    losses = np.linspace(1, 0.2, 9)
    trace = doctor.probing.Trace(0.01, *[losses] * 3)
    flat = trace._replace(loss=np.full(9, 1.0), rate=1e-5)
    rising = trace._replace(loss=np.linspace(1, 9, 9), rate=1.0)
    for rates, begins in (
        ([flat] * 5 + [trace] * 4, 'The learning rate is too low'),
        ([trace] * 4 + [rising] * 5, 'The learning rate is too high'),
        ([flat] * 9, 'The network cannot learn even one batch'),
    ):
        overfit = min(rates, key=lambda each: each.loss[-1])._replace(objectness=np.full(9, 0.693))
        probe = doctor.probing.Probe(rates, overfit, {'head': 1e-3}, 0.1)
        found = doctor.ranked(probe_checks.findings(probe, config_of()))
        assert found[0].level == 'error' and found[0].finding.startswith(begins)
