"""Checks what a training costs at its own size: time, compilations and memory.

Each function yields Findings; what to change first is in them.
"""

import os

import jax
import numpy as np

from rpn_jax.data.batches import THREADS
from rpn_jax.diagnosis.finding import TIME, Finding

CANVASES = 8  # static shapes, each of which is compiled


def findings(config, seconds, memory, plan, options, evaluated):
    """Yields the Findings on seconds {'input', 'step', 'compile', 'image evaluated'} and memory.

    memory is a forecast's, plan the data.Canvases of the training split, options data.Options,
    evaluated the number of images in the split that is evaluated.
    """
    yield from waiting(seconds)
    yield from compiling(config, seconds, plan)
    yield from evaluating(config, seconds, evaluated)
    yield from cached(config, options)
    yield from too_large(memory, config)


def advice(seconds, plan, options, frozen):
    """Says what to change first for a faster run, in a sentence; frozen says of the backbone."""
    if seconds['input'] > seconds['step']:
        return 'First: the input, for which a step waits (features.keep, smaller files, threads).'
    if frozen and options.resize == 'square':
        return 'First: the cache of the frozen backbone’s maps, features.keep = "disk".'
    if len(plan.shapes) > CANVASES:
        return 'First: fewer canvases, each of which is compiled.'
    padding = plan.padding
    if padding > 0.3:
        return f'First: more canvases or another canvas_multiple, {padding:.0%} is padding.'
    return (
        'The step itself takes the time. First: smaller images (image_size) or fewer stages that '
        'learn (model.frozen_stages); a larger batch helps on GPUs, hardly on CPUs.'
    )


def canvases(plan, options):
    """Checks the number of static shapes, for each of which the update is compiled."""
    count = len(plan.shapes)
    if count > CANVASES:
        images = np.bincount(plan.of, minlength=count)
        rare = ', '.join(f'{plan.shapes[i]}: {images[i]}' for i in np.argsort(images)[:3])
        yield Finding(
            'error' if count > 2 * CANVASES else 'warning',
            'Nearly every step has a new shape, for which the update is compiled again.',
            f'{count} canvases for {len(plan.of)} images; those with the fewest images, (height, '
            f'width): images, are {rare}',
            f'{CANVASES} or fewer',
            'config.data.canvases = 4, or config.data.resize = "square"',
            TIME + 5,
        )


def waiting(seconds):
    """Checks that a step does not wait for its images."""
    wait, step = seconds['input'], seconds['step']
    if wait >= step:
        yield Finding(
            'error' if wait > 3 * step and wait > 1 else 'warning',
            'Training waits for its images.',
            f'a batch takes {wait:.2g} s to read and resize with {THREADS} threads, a step some '
            f'{step:.2g} s',
            'less than the step',
            'config.features.keep = "disk" with a frozen backbone; smaller files, a faster disk, '
            'or more cores (threads follow them)',
            TIME + 4,
        )


def compiling(config, seconds, plan):
    """Checks that the time to compile the update for each canvas is small beside the run's."""
    total, run = seconds['compile'] * len(plan.shapes), seconds['step'] * config.steps
    if len(plan.shapes) > 1 and total >= max(0.3 * run, 60):
        shapes = ', '.join(f'{height} x {width}' for height, width in plan.shapes[:6])
        yield Finding(
            'warning',
            'Compiling takes a good part of the run.',
            f'{seconds["compile"]:.2g} s for each of {len(plan.shapes)} canvases ({shapes}), '
            f'beside {run:.2g} s of steps',
            'a tenth at most',
            'config.data.canvases: fewer, or config.data.resize = "square"',
            TIME + 3,
        )


def evaluating(config, seconds, evaluated):
    """Checks that evaluations during training do not take most of its time."""
    every, images = config.evaluation.every, config.evaluation.images or evaluated
    once, between = images * seconds['image evaluated'], every * seconds['step']
    if every and once >= between:
        yield Finding(
            'warning',
            'Evaluations take more time than training.',
            f'{images} images are some {once:.2g} s, {every} steps between them {between:.2g} s',
            'a tenth',
            'config.evaluation.every: higher, or config.evaluation.images: lower',
            TIME + 2,
        )


def cached(config, options):
    """Says that the maps of a wholly frozen backbone need to be computed only once."""
    is_frozen = config.model.frozen_stages >= config.model.last_stage
    if is_frozen and options.resize == 'square' and not config.features.keep:
        yield Finding(
            'info',
            'The frozen backbone makes the same maps of an image in every epoch.',
            "features.keep is ''",
            'maps that are kept: most of a step is saved',
            'config.features.keep = "disk"',
            TIME,
        )


def forecast(state_bytes, step_bytes, image_bytes, features):
    """Returns the bytes of a training {'state', 'step memory', 'images', 'kept maps', 'device'}.

    All are those of one device: of the state, of what XLA plans for a step beside it, and of the
    images of a batch, of which three wait. `device` is what there is.
    """
    there = ('device', 'host') if jax.default_backend() == 'cpu' else ('device',)
    kept = features.gigabytes * 1e9 if features.keep in there else 0
    return {
        'state': state_bytes,
        'step memory': step_bytes,
        'images': 3 * image_bytes,
        'kept maps': kept,
        'device': capacity(),
    }


def capacity():
    """Returns the bytes of memory of the first device; of a CPU those of the machine, 0 unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit']
    try:
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (ValueError, OSError, AttributeError):
        return 0


def too_large(memory, config):
    """Checks that a step fits the memory of the device."""
    needed, there = sum(memory.values()) - memory['device'], memory['device']
    if not there or needed < 0.8 * there:
        return
    remedies = {
        'kept maps': 'config.features.keep = "disk"',
        'state': 'config.optim.optimizer = "sgd", or a smaller config.model.depth',
        'images': 'config.data.batch_size: lower',
        'step memory': 'config.data.batch_size: lower, or config.data.image_size; or '
        f'config.model.remat = ({min(4, config.model.last_stage)},), dtype = "bfloat16"',
    }
    parts = {name: memory[name] for name in remedies}
    shown = ', '.join(f'{name} {size / 2**30:.2g}' for name, size in parts.items() if size)
    yield Finding(
        'error' if needed > there else 'warning',
        'Training will not fit the memory.' if needed > there else 'Training just fits the memory.',
        f'some {needed / 2**30:.2g} GiB ({shown}); the device has {there / 2**30:.2g}',
        'less than 80 %',
        remedies[max(parts, key=parts.get)],
        TIME + 6,
    )
