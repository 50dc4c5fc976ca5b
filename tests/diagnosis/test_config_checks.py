"""Faults of a config are found by the config alone; the configs of the project have none."""

import pytest
from config_cases import CONFIGS, FAULTS, ILL, config_of

from rpn_jax import config as configs
from rpn_jax.diagnosis import config_checks
from rpn_jax.diagnosis.finding import ranked


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_the_first_finding(name):
    changes, begins = FAULTS[name]
    found = ranked(config_checks.findings(config_of(**changes)))
    assert found[0].finding.startswith(begins) and found[0].level in ('error', 'warning')
    assert all(found[0])  # nothing of it is empty


def test_the_norm_of_a_pyramid_does_not_matter_where_there_is_none():
    assert [*config_checks.norms(config_of(model__fpn_norm='frozen'))] == []


@pytest.mark.parametrize('name', CONFIGS)
def test_the_configs_of_the_project_are_healthy_with_weights(name):
    config = configs.read(name)
    if config.model.norm == 'frozen':
        config.model.pretrained = config.model.pretrained or 'weights.pth'  # the user names them
    assert [each for each in config_checks.findings(config) if each.level == 'error'] == []


def test_the_recipe_of_the_forum_is_ill():
    found = ranked(config_checks.findings(configs.read(ILL)))
    begins = [each.finding.partition(' ')[0] for each in found if each.level == 'error']
    shown = ' '.join(each.finding for each in found)
    assert 'Batch norm takes its statistics' in shown and 'far too high for Adam' in shown
    assert 'Anchors near objects are never background' in shown and len(begins) == 2
