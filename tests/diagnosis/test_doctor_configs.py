"""The doctor finds no error in the configs of the project."""

import pytest
from config_cases import CONFIGS, differing

from rpn_jax import config as configs
from rpn_jax.diagnosis import doctor

# Keys that a short training on drawn scenes does not see.
OF_LONG_RUNS = 'steps', 'log_every', 'data.name', 'data.path', 'checkpoint.every'


def small(name):
    """Returns a config of the project for a small network on drawn scenes, from nothing."""
    config = configs.read(name)
    config.model.update(depth=26, width=8, fpn_channels=32, pretrained='')
    if config.model.norm == 'frozen':
        config.model.update(norm='group', frozen_stages=0)
    stages = config.model.fpn_stages
    levels = len(stages) + config.model.fpn_extra if stages else 0
    smallest = 8 if levels > 2 else 16  # pixels; objects have 13 to 42
    sizes = tuple((smallest * 2**level,) for level in range(levels))
    config.anchors.sizes = sizes or (12, 24, 48)
    config.data.update(source='shapes', train_split='train', eval_split='val', scenes=(40, 8))
    config.data.update(image_size=96, max_size=128, max_boxes=16)
    return configs.resolve(config)


@pytest.mark.slow
@pytest.mark.parametrize('name', differing(CONFIGS, small, OF_LONG_RUNS))
def test_the_configs_of_the_project_have_no_error_at_small_size(name):
    study = doctor.diagnose(small(name), seconds=10)
    assert [each for each in study.findings if each.level == 'error'] == []
