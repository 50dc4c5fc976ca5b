"""Bounds of the config's numbers, checked before anything is read or compiled."""

import math

from rpn_jax.errors import InputError

LIMITS = {  # key: least and greatest value, both allowed
    'seed': (0, 2**32 - 1),
    'steps': (1, 2**31 - 1),
    'log_every': (1, math.inf),
    'targets.positive_iou': (0, 1),
    'targets.negative_iou': (0, 1),
    'targets.samples': (1, math.inf),
    'targets.positive_fraction': (0, 1),
    'loss.objectness_weight': (0, math.inf),
    'loss.box_weight': (0, math.inf),
    'loss.beta': (0, math.inf),
    'proposals.pre_nms': (1, math.inf),
    'proposals.post_nms': (1, math.inf),
    'proposals.nms_iou': (0, 1),
    'features.gigabytes': (0, math.inf),
    'optim.learning_rate': (0, 1e6),
    'optim.momentum': (0, 1),
    'optim.weight_decay': (0, math.inf),
    'optim.schedule_steps': (0, math.inf),
    'optim.warmup_steps': (0, math.inf),
    'checkpoint.every': (1, math.inf),
    'checkpoint.keep': (1, math.inf),
    'evaluation.every': (0, math.inf),
    'evaluation.images': (0, math.inf),
}


def check(config):
    """Raises InputError naming the first key whose value is out of bounds, or not a number."""
    for key, (least, greatest) in LIMITS.items():
        value = config
        for name in key.split('.'):
            value = value[name]
        if not least <= value <= greatest:
            bounds = f'at least {least}' if math.isinf(greatest) else f'{least} to {greatest:g}'
            raise InputError(f'config key {key}: {value} is out of bounds; it may be {bounds}')
