"""Short trainings: what a network learns of one batch, and what their traces say."""

import numpy as np
import pytest
from config_cases import config_of

from rpn_jax.diagnosis import doctor, probe_checks


@pytest.mark.slow
def test_the_short_trainings_show_a_rate_that_is_too_high_and_a_network_that_cannot_learn():
    healthy = doctor.diagnose(config_of(), seconds=8)
    assert not [each for each in healthy.findings if each.level != 'info']
    assert len(healthy.probe.rates) == doctor.probing.RATES
    assert healthy.probe.overfit.loss[-1] < 0.6 * healthy.probe.overfit.loss[0]
    assert {'head', 'conv3', 'stem'} <= {*healthy.probe.ratios}
    (lasting,) = healthy.probe.lasting  # at three times the rate: the rate itself is not tried
    assert lasting.rate == pytest.approx(0.03 * 10**0.5) and np.isfinite(lasting.loss).all()
    assert healthy.probe.after['scores'][0] - healthy.probe.after['scores'][1] > 0.3
    own = {'images': 3 * 96 * 96 * 3}  # three batches of one image for each of four devices
    assert healthy.memory == healthy.memory | own and healthy.memory['step memory'] > 1e6
    assert healthy.seconds.keys() >= {'input', 'step', 'compile', 'transfer', 'image evaluated'}
    assert healthy.advice.partition(':')[0].endswith('First')


@pytest.mark.slow
def test_a_rate_that_diverges_is_tried_itself():
    high = doctor.diagnose(config_of(optim__learning_rate=300.0), seconds=5).probe
    assert [trace.rate for trace in high.lasting] == pytest.approx([300 * 10**0.5, 300])
    found = [*probe_checks.lasting(high)]
    assert [each.level for each in found] == ['error'] and 'diverges.' in found[0].finding
