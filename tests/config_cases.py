"""A config that is healthy for the doctor, and faults of it, for several test files."""

import json
from pathlib import Path

from helpers import tiny_config

from configs import default
from rpn_jax.config import items

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
            **dict(model__fpn_norm='frozen', model__fpn_stages=(2, 3), model__fpn_channels=16),
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


def differing(names, make, but):
    """Returns the names whose configs make(name) differ, and not only in the keys `but`."""
    values = [{k: v for k, v in items(make(name)).items() if k not in but} for name in names]
    return list(dict(zip(map(json.dumps, values), names, strict=True)).values())
