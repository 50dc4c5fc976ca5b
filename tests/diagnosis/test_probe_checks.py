"""What short trainings show is found in their traces."""

import numpy as np
import pytest
from config_cases import config_of

from rpn_jax.diagnosis import probe, probe_checks
from rpn_jax.diagnosis.finding import ranked

LOSSES = np.linspace(1, 0.2, 9)
LEARNS = probe.Trace(0.01, LOSSES, np.linspace(0.693, 0.1, 9), LOSSES / 9)
STAYS = LEARNS._replace(loss=np.full(9, 1.0))
GROWS = LEARNS._replace(loss=np.linspace(1, 9, 9))
ENDS = LEARNS._replace(loss=np.array([1, 0.5, 0.3, 8, *[np.nan] * 5]))
LOOK = {
    'dead': {'conv2': 0.0, 'head': 0.1},
    'gradients': {'objectness': 2.0, 'box': 1.0},
    'box': 0.1,
    'box_at_zero': 0.1,
    'scores': (0.9, 0.1),
}
HEALTHY = probe.Probe(
    [STAYS] * 3 + [LEARNS] * 6, LEARNS, {'head': 1e-3}, 0.1, [LEARNS], LOOK, LOOK, (0.5, 0.5)
)
FAULTS = {  # changes of the probe, how the first finding begins, its level
    'rather low': (
        {'rates': [LEARNS._replace(loss=np.linspace(1, 0.99, 9))] * 5 + [LEARNS] * 4},
        'The learning rate is too low',
        'warning',
    ),
    'too low': ({'rates': [STAYS] * 5 + [LEARNS] * 4}, 'The learning rate is too low', 'error'),
    'too high': ({'rates': [LEARNS] * 4 + [GROWS] * 5}, 'The learning rate is too high', 'error'),
    'diverges': ({'lasting': [ENDS, GROWS]}, 'The learning rate is too high: training', 'error'),
    'diverges at three times': ({'lasting': [ENDS, LEARNS]}, 'The learning rate is', 'warning'),
    'cannot learn': ({'overfit': STAYS}, 'The network cannot learn even one batch', 'error'),
    'not finite': (
        {'overfit': LEARNS._replace(loss=np.full(9, np.nan))},
        'The loss of the untrained network is not finite',
        'error',
    ),
    'sure': (
        {'overfit': LEARNS._replace(objectness=np.full(9, 5.0))},
        'The untrained network is already sure',
        'error',
    ),
    'wild': ({'before': LOOK | {'box': 9.0}}, 'The untrained network moves boxes', 'error'),
    'still': ({'ratios': {'stem': 0, 'head': 1e-9}}, 'A step hardly moves', 'warning'),
    'one loss': (
        {'before': LOOK | {'gradients': {'objectness': 1.0, 'box': 1e3}}},
        'The box loss drowns',
        'error',
    ),
    'dead': (
        {'before': LOOK | {'dead': {'conv2': 0.95, 'head': 0.0}}},
        'Much of the network is dead',
        'error',
    ),
    'half dead': (
        {'before': LOOK | {'dead': {'conv2': 0.6, 'head': 0.0}}},
        'Much of the network is dead',
        'warning',
    ),
    'alike': ({'after': LOOK | {'scores': (0.06, 0.05)}}, 'The scores of all anchors', 'error'),
    'one size': ({'spreads': (0.01, 0.5)}, 'Proposals have collapsed to one size', 'warning'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_what_a_probe_shows_is_found(name):
    changes, begins, level = FAULTS[name]
    found = ranked(probe_checks.findings(HEALTHY._replace(**changes), config_of()))
    assert found[0].finding.startswith(begins) and found[0].level == level
    assert all(found[0])


def test_a_healthy_probe_has_no_findings():
    assert [*probe_checks.findings(HEALTHY, config_of())] == []
    few = HEALTHY._replace(spreads=(0.0, 0.1))  # the objects are alike, too
    assert [*probe_checks.findings(few, config_of())] == []
    none = HEALTHY._replace(after=LOOK | {'scores': (np.nan, 0.02)})  # no foreground is sampled
    assert [*probe_checks.findings(none, config_of())] == []
    low = HEALTHY._replace(after=LOOK | {'scores': (0.03, 0.02)})  # after few steps
    assert [*probe_checks.findings(low, config_of())] == []


def test_a_trace_diverges_where_its_loss_grows_or_ends():
    ill = [probe.diverges(trace) for trace in (LEARNS, STAYS, GROWS, ENDS)]
    assert ill == [False, False, True, True]
