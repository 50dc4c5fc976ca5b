"""Faults of a config are found by the config alone; the configs of the project have none."""

from pathlib import Path

import pytest
from helpers import tiny_config

from configs import default
from rpn_jax import config as configs
from rpn_jax.diagnosis import config_checks
from rpn_jax.diagnosis.finding import ranked

HEALTHY = {
    'steps': 400,
    'anchors__sizes': (16, 24, 40),
    'data__image_size': 96,
    'data__scenes': (60, 6),
    'loss__box_weight': 1.0,
    'targets__samples': 64,
    'optim__learning_rate': 0.03,
    'optim__warmup_steps': 20,
}
ILL = 'forum_recipe'
CONFIGS = sorted({p.stem for p in Path(default.__file__).parent.glob('[!_]*.py')} - {ILL})
FAULTS = {  # changes of the config, and how the first finding begins
    'Adam at .01': (
        {'optim__optimizer': 'adam', 'optim__learning_rate': 0.01},
        'The learning rate is one of SGD',
    ),
    'rate 1e-6': ({'optim__learning_rate': 1e-6}, 'The learning rate is so low'),
    'rate 1e-7': ({'optim__learning_rate': 1e-7}, 'The learning rate is so low'),
    'rate 0': ({'optim__learning_rate': 0.0}, 'The learning rate is 0'),
    'rate 30 times': ({'optim__learning_rate': 0.9}, 'The learning rate is too high'),
    'random and frozen': ({'model__frozen_stages': 3}, 'Stages are frozen that nothing was'),
    'frozen norm of a pyramid': (
        {
            'anchors__sizes': ((16,), (24,), (40,)),
            **dict(model__fpn_norm='frozen', model__fpn_stages=(3, 4), model__fpn_channels=16),
        },
        'Frozen norms normalise nothing',
    ),
    'frozen norm': ({'model__norm': 'frozen'}, 'Frozen norms normalise nothing'),
    'positive_iou .9': ({'targets__positive_iou': 0.9}, 'Hardly any anchor is foreground'),
    'positive_iou .97': ({'targets__positive_iou': 0.97}, 'Hardly any anchor is foreground'),
    'negative_iou .05': ({'targets__negative_iou': 0.05}, 'Anchors near objects are never back'),
    'four samples': ({'targets__samples': 4}, 'A step learns from too few anchors'),
    'no foreground': ({'targets__positive_fraction': 0.0}, 'No foreground anchor is ever sampled'),
    'box weight 1000': ({'loss__box_weight': 1000.0}, 'The box loss outweighs the other'),
    'box weight 0': ({'loss__box_weight': 0.0}, 'Boxes never learn'),
    'objectness weight 0': ({'loss__objectness_weight': 0.0}, 'Objects are never told from'),
    'weight decay .5': ({'optim__weight_decay': 0.5}, 'Weight decay pulls all weights to zero'),
    'long warmup': ({'optim__warmup_steps': 4000}, 'The warmup is longer than the run'),
    'no decay': (
        {'optim__schedule': 'step', 'optim__schedule_steps': 9000},
        'The learning rate never falls',
    ),
    'momentum .999': ({'optim__momentum': 0.999}, 'The momentum is too high'),
    'momentum 1': ({'optim__momentum': 1.0}, 'The momentum is too high'),
    'momentum .98': ({'optim__momentum': 0.98, 'optim__learning_rate': 0.1}, 'The learning rate'),
    'only foreground': ({'targets__positive_fraction': 1.0}, 'An image with many foreground'),
    'no background': ({'targets__negative_iou': 0.0}, 'Anchors near objects are never back'),
    'crowds everywhere': ({'targets__crowd_overlap': 0.0}, 'In an image with a crowd no anchor'),
    'beta 1000': ({'loss__beta': 1000.0}, 'The box loss is flat near its goal'),
    'cosine to 1': (
        {'optim__schedule': 'cosine', 'optim__final_factor': 1.0},
        'The learning rate never falls',
    ),
    'no triangle': (
        {'optim__schedule': 'cyclical', 'optim__cycles': 0.0},
        'The learning rate never comes near',
    ),
    'decay at once': (
        {'optim__schedule': 'step', 'optim__decay_at': (0.0,)},
        'The learning rate never comes near',
    ),
    'decay to 0': (
        {'optim__schedule': 'step', 'optim__decay_at': (0.1,), 'optim__decay_factor': 0.0},
        'The learning rate is 0 for a good part',
    ),
    'short schedule': (
        {'optim__schedule': 'cosine', 'optim__schedule_steps': 40},
        'The learning rate is 0 for a good part',
    ),
    'warmup from 100': ({'optim__warmup_factor': 100.0}, 'The learning rate rises far above'),
    'levels reversed': (
        {
            'anchors__sizes': ((40,), (16,)),
            **dict(model__fpn_stages=(2, 3), model__fpn_channels=16, model__fpn_extra=0),
        },
        'Large anchors lie on the fine',
    ),
}


def config_of(**changes):
    """Returns a small healthy config with changes, as a run has it."""
    return tiny_config(**HEALTHY | changes)


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_the_first_finding(name):
    changes, begins = FAULTS[name]
    found = ranked(config_checks.findings(config_of(**changes)))
    assert found[0].finding.startswith(begins) and found[0].level in ('error', 'warning')
    assert all(found[0])  # nothing of it is empty


def test_the_norm_of_a_pyramid_does_not_matter_where_there_is_none():
    assert config_checks.norms(config_of(model__fpn_norm='frozen')) == []


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
