"""Keys that only an evaluation reads: ill values are found, those of the configs are not."""

import pytest
from config_cases import config_of

from rpn_jax.diagnosis import measuring_checks

FAULTS = {  # changes of the config, how the finding begins, its level
    'nms_iou .05': ({'proposals__nms_iou': 0.05}, 'NMS drops proposals', 'error'),
    'nms_iou .25': ({'proposals__nms_iou': 0.25}, 'NMS drops proposals', 'warning'),
    'nms_iou .99': ({'proposals__nms_iou': 0.99}, 'NMS leaves many copies', 'error'),
    'pre_nms 10': ({'proposals__pre_nms': 10}, 'So few anchors enter NMS', 'error'),
    'post_nms 5': ({'proposals__post_nms': 5}, 'So few proposals', 'error'),
    'pre < post': (
        {'proposals__pre_nms': 200, 'proposals__post_nms': 300},
        'Fewer anchors enter NMS than',
        'warning',
    ),
    'eval = train': ({'data__eval_split': 'train'}, 'The evaluation is on the images', 'error'),
    'three images': ({'evaluation__images': 3}, 'An evaluation has so few images', 'warning'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_what_spoils_an_evaluation_is_found(name):
    changes, begins, level = FAULTS[name]
    config = config_of(**changes)
    (found,) = [finding for check in measuring_checks.CHECKS for finding in check(config)]
    assert found.finding.startswith(begins) and found.level == level


def test_the_same_list_of_another_folder_is_held_out():
    config = config_of(data__eval_split='train', data__source='voc', data__eval_path='/other')
    assert [*measuring_checks.held_out(config)] == []
    assert [f for check in measuring_checks.CHECKS for f in check(config_of())] == []
