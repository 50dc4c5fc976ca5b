"""Checks a config without its data: what cannot work, whatever these are.

Each function takes a resolved config and yields Findings. The bounds are those of the recipes that
people publish, with room on both sides.
"""

import numpy as np

from rpn_jax.diagnosis import measuring_checks
from rpn_jax.diagnosis.finding import (
    ANCHORS,
    LOSS,
    RATE,
    SCHEDULE,
    TARGETS,
    WEIGHTS,
    Finding,
)
from rpn_jax.diagnosis.schedule import rates as rates_of

# Learning rates that recipes have: for SGD per image of a batch, at a momentum of .9 (torchvision
# and Detectron .00125, here up to .0075, and .015 of a pyramid), for Adam of the whole batch.
USUAL_RATES = {'sgd': (2e-5, 1e-2), 'adam': (3e-6, 1e-3)}
OF_PYRAMIDS = 2  # times the highest, for a pyramid

COSINES = 'cosine', 'one_cycle'
HIGHEST_MOMENTUM = 0.98
FAR = 3  # times beyond a bound from which a warning becomes an error


def findings(config):
    """Yields the Findings of all checks of a config."""
    own = thresholds, sampling, losses, rate, momentum, decay, schedule, frozen, norms, levels
    for check in (*own, *measuring_checks.CHECKS):
        yield from check(config)


def thresholds(config):
    """Checks the IoU thresholds of foreground and background (Faster R-CNN: .7 and .3)."""
    high, low = config.targets.positive_iou, config.targets.negative_iou
    if not 0.4 <= high <= 0.8:
        what = (
            'Hardly any anchor is foreground but for the best one of each object: the foreground '
            'threshold is too high.'
            if high > 0.8
            else 'Anchors that hardly touch an object are foreground: the foreground threshold is '
            'too low.'
        )
        yield Finding(
            'warning' if 0.25 <= high < 0.4 else 'error',
            what,
            f'targets.positive_iou is {high:g}',
            '0.5 to 0.7',
            'config.targets.positive_iou = 0.7',
            TARGETS + 2,
        )
    if low < 0.25:
        yield Finding(
            'error' if low < 0.15 else 'warning',
            'Anchors near objects are never background, so nothing teaches the network to '
            'rank a loose box below a tight one: the background threshold is too low.',
            f'targets.negative_iou is {low:g}; anchors from there to {high:g} are ignored',
            '0.3',
            'config.targets.negative_iou = 0.3',
            TARGETS + 1,
        )
    if (overlap := config.targets.crowd_overlap) <= 0.05:
        yield Finding(
            'warning',
            'In an image with a crowd no anchor is background, wherever the crowd is.',
            f'targets.crowd_overlap is {overlap:g}',
            '0.5',
            'config.targets.crowd_overlap = 0.5',
            TARGETS,
        )


def sampling(config):
    """Checks how many anchors of an image are sampled, and how many of them foreground."""
    samples, share = config.targets.samples, config.targets.positive_fraction
    if samples < 48:
        yield Finding(
            'error' if samples < 16 else 'warning',
            'A step learns from too few anchors of an image.',
            f'targets.samples is {samples}',
            '128 to 512',
            'config.targets.samples = 256',
            TARGETS,
        )
    if int(samples * share) == 0:
        yield Finding(
            'error',
            'No foreground anchor is ever sampled.',
            f'targets.positive_fraction {share:g} of {samples} samples is 0',
            '0.5',
            'config.targets.positive_fraction = 0.5',
            TARGETS + 3,
        )
    elif share > 0.9:
        yield Finding(
            'warning',
            'An image with many foreground anchors teaches no background.',
            f'targets.positive_fraction is {share:g}',
            '0.25 to 0.5',
            'config.targets.positive_fraction = 0.5',
            TARGETS,
        )


def losses(config):
    """Checks the weights of the two losses against each other, and where smooth L1 is linear."""
    weights = {'objectness': config.loss.objectness_weight, 'box': config.loss.box_weight}
    verbs = {'objectness': 'Objects are never told from background', 'box': 'Boxes never learn'}
    for name, weight in weights.items():
        other = weights['box' if name == 'objectness' else 'objectness']
        key = f'loss.{name}_weight'
        if weight == 0:
            yield Finding(
                'error',
                f'{verbs[name]}: the weight of the {name} loss is 0.',
                f'{key} is 0',
                '1',
                f'config.{key} = 1.0',
                LOSS,
            )
        elif other and weight / other > 20:
            yield Finding(
                'error' if weight / other > 60 else 'warning',
                f'The {name} loss outweighs the other: only one of the two is learnt.',
                f'{key} is {weight:g}, {weight / other:g} times the other',
                '0.1 to 10 times',
                f'config.{key} = 1.0',
                LOSS,
            )
    if (beta := config.loss.beta) > 2:
        yield Finding(
            'error' if beta > 10 else 'warning',
            'The box loss is flat near its goal, so that boxes hardly learn.',
            f'loss.beta is {beta:g}, and offsets of boxes are below 1: the slope of the loss '
            f'is an offset / {beta:g}',
            '0 to 1',
            'config.loss.beta = 1 / 9',
            LOSS,
        )


def rate(config):
    """Checks the learning rate against the optimizer and the batch size."""
    optim, batch = config.optim, config.data.batch_size
    given, per_image = optim.learning_rate, optim.optimizer == 'sgd'
    compared, (low, high) = given / (batch if per_image else 1), USUAL_RATES[optim.optimizer]
    high *= OF_PYRAMIDS if config.model.fpn_stages else 1
    usual = f'{low:g} to {high:g}' + (' for each image of a batch' if per_image else '')
    shown = f'{optim.optimizer}, learning_rate {given:g}, batches of {batch}'
    if per_image and optim.momentum <= HIGHEST_MOMENTUM:  # a step is repeated 1 / (1 - momentum)
        compared *= 0.1 / (1 - optim.momentum)
        usual += ' at a momentum of 0.9'
        shown += f', momentum {optim.momentum:g}'
    if low <= compared <= high:
        return
    target = f'{0.00125 * batch if per_image else 1e-4:g}'
    remedy = f'config.optim.learning_rate = {target}'
    if compared == 0:
        yield Finding('error', 'The learning rate is 0.', shown, usual, remedy, RATE + 2)
    elif compared < low:
        level = 'error' if compared < low / FAR else 'warning'
        what = 'The learning rate is so low that hardly anything is learnt.'
        yield Finding(level, what, shown, usual, remedy, RATE + 1)
    else:
        level = 'error' if compared > high * FAR else 'warning'
        what = 'The learning rate is too high.'
        if not per_image:
            what = 'The learning rate is one of SGD, far too high for Adam.'
            remedy += ', or config.optim.optimizer = "sgd"'
        yield Finding(level, what, shown, usual, remedy, RATE + 1)


def momentum(config):
    """Checks the momentum, by which a gradient goes on to move the weights in later steps."""
    given = config.optim.momentum
    if given > HIGHEST_MOMENTUM:
        lasting = f'for some {1 / (1 - given):.0f} steps' if given < 1 else 'for ever'
        yield Finding(
            'error' if given >= 0.995 else 'warning',
            'The momentum is too high: gradients of long ago still move the weights.',
            f'optim.momentum is {given:g}: a gradient lasts {lasting}',
            '0.9 (10 steps)',
            'config.optim.momentum = 0.9',
            RATE + 3,
        )


def decay(config):
    """Checks the weight decay, which is 1e-4 to 5e-4 in published recipes."""
    given = config.optim.weight_decay
    if given >= 0.005:
        yield Finding(
            'error' if given >= 0.05 else 'warning',
            'Weight decay pulls all weights to zero faster than the losses move them.',
            f'optim.weight_decay is {given:g}',
            '0 to 0.001',
            'config.optim.weight_decay = 0.0005',
            RATE,
        )


def schedule(config):
    """Checks that the learning rate reaches its height within the run, and falls."""
    _, rates = rates_of(config.optim, config.steps, points=400)
    highest, given = rates.max(), config.optim.learning_rate
    if given == 0:
        return
    warmup = config.optim.warmup_steps
    is_endless = warmup >= config.steps
    if warmup > config.steps / 3:
        yield Finding(
            'error' if is_endless else 'warning',
            'The warmup is longer than the run: the learning rate never reaches its height.'
            if is_endless
            else 'The warmup takes more than a third of the run.',
            f'optim.warmup_steps is {warmup}, steps {config.steps}; the highest rate is '
            f'{highest:.2g} of {given:g}',
            'a tenth of the run at most',
            f'config.optim.warmup_steps = {min(1000, config.steps // 20)}',
            SCHEDULE,
        )
        return
    for is_wrong, level, what, shown, usual, remedy in _shapes(config, rates):
        if is_wrong:
            yield Finding(level, what, shown, usual, remedy, SCHEDULE)
            return


def _shapes(config, rates):
    """Yields (whether it is wrong, level, finding, evidence, usual, remedy) of rates over a run."""
    optim, given, highest = config.optim, config.optim.learning_rate, rates.max()
    length, kind = optim.schedule_steps or config.steps, optim.schedule
    keys = {'step': ('decay_at', 'decay_factor'), 'cosine': ('final_factor',)}
    keys |= {'one_cycle': ('low_factor', 'final_factor'), 'cyclical': ('low_factor', 'cycles')}
    names = 'schedule', 'schedule_steps', *keys.get(kind, ()), 'warmup_steps', 'warmup_factor'
    shown = ', '.join(f'{name} {optim[name]!r}' for name in names)
    yield (
        highest > 1.5 * given,
        'error',
        'The learning rate rises far above its own height.',
        f'the highest rate is {highest:.2g}, optim.learning_rate {given:g}; {shown}',
        f'{given:g} at most',
        'factors of optim between 0 and 1: warmup_factor, decay_factor, final_factor, low_factor',
    )
    yield (
        highest < 0.5 * given,
        'error' if highest < 0.2 * given else 'warning',
        'The learning rate never comes near its height.',
        f'the highest rate is {highest:.2g} of {given:g}; {shown}',
        f'{given:g}',
        'config.optim.schedule_steps = 0, decay_at = (0.75,), cycles = 2.0',
    )
    still = np.mean(rates < 1e-3 * highest)
    yield (
        still > 0.2,
        'error' if still > 0.5 else 'warning',
        'The learning rate is 0 for a good part of the run.',
        f'below a thousandth of its height in {still:.0%} of the {config.steps} steps; {shown}',
        'none, but for the first and last steps',
        'config.optim.decay_factor = 0.1; config.optim.schedule_steps = 0',
    )
    yield (
        kind in ('step', *COSINES) and config.steps > 100 and rates[-1] > 0.9 * highest,
        'warning',
        'The learning rate never falls: its decay is not reached.',
        f'{shown}; of {length} steps, and the run ends at {config.steps}',
        'a fall at two thirds or three quarters of the run',
        'config.optim.decay_at = (0.75,), final_factor = 0.0, schedule_steps = 0',
    )


def levels(config):
    """Checks that the anchors of a pyramid grow from its fine to its coarse levels."""
    sizes = config.anchors.sizes
    if not all(isinstance(each, tuple | list) and each for each in sizes):
        return
    means = np.array([np.exp(np.mean(np.log(each))) for each in sizes])
    if not np.all(np.diff(means) >= 0):
        yield Finding(
            'error',
            'Large anchors lie on the fine levels of the pyramid, small ones on the coarse.',
            f'anchors.sizes is {tuple(map(tuple, sizes))}, from the finest level to the coarsest',
            'sizes that grow with the stride: a cell of the coarsest level holds several objects',
            f'config.anchors.sizes = {tuple(sorted(map(tuple, sizes)))}',
            ANCHORS + 2,
        )


def frozen(config):
    """Checks which stages are frozen, and what that leaves to learn."""
    model = config.model
    last = model.last_stage
    if model.frozen_stages > 0 and not model.pretrained:
        yield Finding(
            'error',
            'Stages are frozen that nothing was pretrained for: they stay random for ever.',
            f'model.frozen_stages is {model.frozen_stages}, model.pretrained is empty',
            'weights of ImageNet, or nothing frozen',
            'config.model.pretrained = "imagenet", or config.model.frozen_stages = 0',
            WEIGHTS + 2,
        )
    elif model.frozen_stages >= last and model.pretrained:
        what = 'pyramid and head' if model.fpn_stages else 'head'
        yield Finding(
            'warning',
            f'The whole backbone is frozen: only the {what} can learn.',
            f'model.frozen_stages is {model.frozen_stages}, the last stage conv{last}',
            f'{min(3, last - 1)} or less',
            f'config.model.frozen_stages = {min(3, last - 1)}',
            WEIGHTS,
        )


def norms(config):
    """Checks the norms against the pretrained weights and the batch size."""
    model, batch = config.model, config.data.batch_size
    used = ('norm', 'fpn_norm') if model.fpn_stages else ('norm',)
    key = next((key for key in used if model[key] == 'frozen'), '')
    if key and not model.pretrained:
        yield Finding(
            'error',
            'Frozen norms normalise nothing: their statistics were never measured.',
            f"model.{key} is 'frozen', model.pretrained is empty",
            'weights of ImageNet, or a live norm',
            f'config.model.pretrained = "imagenet", or config.model.{key} = "batch"',
            WEIGHTS + 1,
        )
    elif model.norm == 'batch' and batch < 4:
        level = 'error' if model.pretrained else 'warning'
        yield Finding(
            level,
            'Batch norm takes its statistics from too few images'
            + (', and spoils those of the pretrained weights.' if model.pretrained else '.'),
            f"model.norm is 'batch', data.batch_size {batch}",
            "'frozen' with pretrained weights, 'group' without, or batches of 8 and more",
            f'config.model.norm = "{"frozen" if model.pretrained else "group"}"',
            WEIGHTS,
        )
