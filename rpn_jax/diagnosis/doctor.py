"""Diagnoses why a config and its data learn slowly or not at all, the worst cause first."""

import itertools
import time
from typing import Any, NamedTuple

import numpy as np

from rpn_jax import data
from rpn_jax.data.normalization import normalise, pixel_family
from rpn_jax.data.records import Kind
from rpn_jax.diagnosis import (
    alignment,
    anchor_grid,
    checks,
    config_checks,
    inspect,
    second_reading,
    truth_checks,
)
from rpn_jax.diagnosis import probe as probing
from rpn_jax.diagnosis.finding import BUILD, INPUT, PROBE, RATE, TIME, WEIGHTS, Finding, ranked
from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training import pretrained

IMAGES = 48  # whose pixels are examined
SIDE = 320  # pixels of the canvas of the short trainings, at most
SECONDS = 80  # of their steps, about
CANVASES = 8  # static shapes, each of which is compiled


class Study(NamedTuple):
    """The findings of a diagnosis and what they rest on; None where something was not examined."""

    findings: list
    batches: list  # (image uint8 [H, W, 3], boxes [n, 4] of its objects), as the network gets them
    alignment: dict | None  # what alignment.compare returned
    probe: Any  # probe.Probe
    seconds: dict  # of a step at the config's size, and of the input of a batch


def diagnose(config, *, seconds=SECONDS):
    """Returns the Study of a resolved config: its findings, worst first, and what shows them.

    What cannot be built or read is the first finding, and the rest is examined as far as it can be.
    seconds is about how long the steps of the short trainings take; 0 does without.
    """
    found = config_checks.findings(config)
    study = {'batches': [], 'alignment': None, 'probe': None, 'seconds': {}}
    model = source = tensors = None
    for part in ('network', 'weights', 'data'):
        try:
            if part == 'network':
                model = rpn.build(config.model, config.anchors)
            elif part == 'weights' and model is not None:
                tensors = _weights(config, model, found)
            elif part == 'data':
                options = data.check(data.Options(**config.data))
                source = data.open_split(options, options.train_split, seed=config.seed)
        except InputError as error:
            found.append(
                Finding(
                    'error',
                    f'The {part} cannot be {"built" if part == "network" else "read"}.',
                    str(error),
                    'no error',
                    'see the evidence',
                    BUILD,
                )
            )
    if source is not None:
        plan = data.train_plan(source, options)
        found += truth_checks.findings(source.records, plan.sizes, options.max_boxes)
        found += _canvases(plan)
        try:
            _examine(config, source, options, plan, model, found, study)
            if seconds and model is not None and any(len(b) for _, b in study['batches']):
                study['probe'] = _probe(config, source, options, tensors, seconds)
                found += probe_findings(study['probe'], config)
                found += _time(study, options)
        except InputError as error:
            what = 'An image cannot be read.'
            found.append(Finding('error', what, str(error), 'no error', 'see the evidence', BUILD))
    return Study(ranked(found), **study)


def unbuildable(message):
    """Returns the Study of a config of which an error's message is all that is known."""
    what = 'The config cannot be used.'
    finding = Finding('error', what, message, 'no error', 'see what was found', BUILD)
    return Study([finding], [], None, None, {})


def _weights(config, model, found):
    """Returns the tensors that training starts from, None without; finds what contradicts them."""
    where, key = config.model.pretrained, config.model.pretrained_key
    ratios = config.anchors.aspect_ratios
    if not where:
        return None
    for section, keys in pretrained.expects(where, ratios, key).items():
        for name, value in keys.items():
            if (given := config[section].get(name, value)) not in (value, 'auto', ()):
                found.append(
                    Finding(
                        'error',
                        f'The weights were trained otherwise: {section}.{name}.',
                        f'{section}.{name} is {given!r}, the weights {where} want {value!r}',
                        repr(value),
                        f'config.{section}.{name} = {value!r}',
                        WEIGHTS + 5,
                    )
                )
    tensors = pretrained.load(where, config.model.depth, ratios, key)
    pretrained.check(where, tensors, model)
    return tensors


def _canvases(plan):
    """Returns a Finding where there are too many static shapes."""
    count = len(plan.shapes)
    if count <= CANVASES:
        return []
    return [
        Finding(
            'error' if count > 2 * CANVASES else 'warning',
            'Nearly every step has a new shape, for which the update is compiled again.',
            f'{count} canvases for {len(plan.of)} images',
            f'{CANVASES} or fewer',
            'config.data.canvases = 4, or config.data.resize = "square"',
            TIME + 5,
        )
    ]


def _examine(config, source, options, plan, model, found, study):
    """Adds Findings on the training input: its pixels, boxes, anchors, and the time it takes."""
    pixels = pixel_family(config.data.pixels, config.data.mean, config.data.std)
    steps = range(max(2, -(-IMAGES // options.batch_size)))
    shapes, originals, normalised, waits = set(), [], [], []
    upright = options._replace(flip=False)  # so that what was done to boxes can be undone
    batches = data.train_batches(source, upright, seed=config.seed, steps=steps)
    began = time.monotonic()
    for batch in batches:
        waits.append(time.monotonic() - began)
        shapes.add(batch['image'].shape[1:3])
        if len(normalised) < 4:
            inputs = np.asarray(normalise(batch['image'], batch['size'], pixels))
            normalised += [
                x[: int(h), : int(w)] for x, (h, w) in zip(inputs, batch['size'], strict=False)
            ]
        for image, (h, w), boxes, kind, index in zip(
            *(batch[k] for k in ('image', 'size', 'boxes', 'kind', 'index')), strict=True
        ):
            shown = image[: int(h), : int(w)]
            study['batches'].append((shown, boxes[kind == Kind.OBJECT]))
            originals.append(source.records[index].size)
        began = time.monotonic()
    study['seconds']['input'] = float(np.mean(waits[1:])) if waits[1:] else waits[0]
    found += _pixels(np.concatenate([x.reshape(-1, 3) for x in normalised]), config)
    found += _alignment(study, originals)
    if model is None:
        return
    examples = inspect.examples(
        model,
        source,
        options,
        targets=config.targets,
        seed=config.seed,
        steps=range(min(4, len(steps))),
        pixels=pixels,
    )
    evidence = [each.evidence for each in itertools.chain.from_iterable(examples)]
    for check in checks.verdicts(evidence, second_reading.differences(source)):
        if check.passed is False:
            found.append(
                Finding(
                    'error',
                    f'The training input is not what its files hold: {check.name}.',
                    check.text,
                    checks.CLAIMS[check.name],
                    'python main.py inspect .. shows the images',
                    INPUT + 5,
                )
            )
    if len((objects := anchor_grid.objects_of(source, options)).boxes):
        found += truth_checks.anchors(objects, model, config.targets)


def _pixels(values, config):
    """Returns a Finding where normalised pixels [n, 3] are not on the scale of the network."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    is_caffe = config.data.pixels == 'caffe'
    low, high, off = (30, 110, 80) if is_caffe else (0.3, 2.0, 1.5)
    if np.all((std >= low) & (std <= high)) and np.all(np.abs(mean) <= off):
        return []
    shown = f'mean {_channels(mean)}, deviation {_channels(std)}'
    what = 'Pixels do not reach the network on the scale that it expects'
    if not is_caffe and np.any(std > 20):
        what += ': they are 0..255, not normalised'
    return [
        Finding(
            'error' if np.any(std > 3 * high) or np.any(std < low / 3) else 'warning',
            f'{what}.',
            shown,
            f'a mean within {off:g} of 0, a deviation of {low:g} to {high:g}',
            'config.data.mean = (); config.data.std = ()',
            INPUT + 3,
        )
    ]


def _channels(values):
    return ', '.join(f'{value:.2f}' for value in values)


def _alignment(study, originals):
    """Returns a Finding where boxes do not lie on objects, with what was done to them if known."""
    images, boxes = ([each[i] for each in study['batches']] for i in (0, 1))
    measured = study['alignment'] = alignment.compare(images, boxes, originals)
    (own, error, count), (chance, chance_error, _) = (
        measured[way] for way in ('as they are', 'of other images')
    )
    if count < alignment.ENOUGH:
        return []
    noise = np.hypot(error, chance_error)
    others = {way: measured[way] for way in alignment.WAYS}
    best = max(others, key=lambda way: np.nan_to_num(others[way][0], nan=-np.inf))
    score, best_error, _ = others[best]
    is_better = score - own > alignment.CLEARLY * np.hypot(error, best_error)
    if own - chance > alignment.CLEARLY * noise and not is_better:
        return []
    shown = (
        f'edges along the borders of {count} boxes score {own:.2f}; boxes of other images '
        f'{chance:.2f} (noise {noise:.2f})'
    )
    if is_better and score - chance > alignment.TYPICAL:
        what, shown = f'The boxes are wrong: {UNDONE[best]}.', f'{shown}; {best} {score:.2f}'
    else:
        what = 'The boxes do not lie on objects: they fit their images no better than others’ boxes'
        what += ', as if they were shifted, scaled or shuffled between images.'
    return [
        Finding(
            'error',
            what,
            shown,
            'well above boxes of other images',
            'python main.py inspect .. shows the boxes; mend the annotations',
            INPUT + 4,
        )
    ]


UNDONE = {
    'x and y swapped': 'x and y are swapped',
    'mirrored': 'they are those of the mirror image',
    'upside down': 'they are counted from the bottom',
    'resized once more': 'they were not resized with their images',
    'not resized': 'they were resized twice',
    'as (x, y, width, height)': 'they are (x, y, width, height), read as corners',
}


def _probe(config, source, options, tensors, seconds):
    """Trains shortly on one batch of small canvases, whose anchors shrink with them."""
    factor, small = _small(options)
    anchors = config.anchors.to_dict()
    anchors['sizes'] = _scaled(anchors['sizes'], factor)
    model = rpn.build(config.model, anchors)
    batch_of = data.train_batch(source, small, seed=config.seed)
    batch = max(
        (batch_of(step) for step in range(4)),
        key=lambda batch: int(np.sum(batch['kind'] == Kind.OBJECT)),
    )
    pixels = pixel_family(config.data.pixels, config.data.mean, config.data.std)
    return probing.run(
        model,
        config.optim,
        tensors,
        batch,
        seed=config.seed,
        budget=seconds,
        targets=config.targets,
        loss=config.loss,
        pixels=pixels,
    )


def _small(options):
    """Returns the factor of the short trainings' canvases, and their data.Options."""
    factor = min(1.0, SIDE / options.image_size)
    most = int(2 * SIDE**2 / (factor * options.image_size) ** 2)  # images
    sides = {k: max(64, round(factor * getattr(options, k))) for k in ('image_size', 'max_size')}
    return factor, options._replace(**sides, batch_size=max(1, min(options.batch_size, most)))


def _scaled(sizes, factor):
    return tuple(
        tuple(s * factor for s in each) if isinstance(each, tuple | list) else each * factor
        for each in sizes
    )


def probe_findings(probe, config):
    """Returns the Findings on a Probe: first losses, learning rates, and one batch learnt."""
    found, first = [], probe.overfit
    has_head = bool(config.model.pretrained) and first.objectness[0] < 0.6
    if not np.isfinite(first.loss[0]):
        what = 'The loss of the untrained network is not finite.'
        return [Finding('error', what, 'step 0', 'a number', 'check the weights', PROBE + 6)]
    if not has_head and not 0.55 < first.objectness[0] < 0.9:
        found.append(
            Finding(
                'error' if first.objectness[0] > 2 else 'warning',
                'The untrained network is already sure of itself.',
                f'objectness loss {first.objectness[0]:.3g} before the first step',
                'ln 2 = 0.693',
                'config.model.norm, pretrained and data.pixels: activations have another scale',
                PROBE + 3,
            )
        )
    ends, base = probing.ends(probe), first.loss[0]
    own = len(ends) // 2
    best = int(np.argmin(ends))
    gains = base - ends
    shown = (
        f'after {len(probe.rates[0].loss) - 1} steps on one batch the loss {base:.3g} is '
        f'{_loss(ends[own])} at {probe.rates[own].rate:.2g}, and {_loss(ends[best])} at '
        f'{probe.rates[best].rate:.2g}'
    )
    remedy = f'config.optim.learning_rate = {probe.rates[best].rate / 3:.2g}'
    usual = 'a fall not far from that of the best rate'
    if not np.isfinite(ends[own]) or ends[own] > 1.2 * base:
        what = 'The learning rate is too high: the loss grows.'
        found.append(Finding('error', what, shown, usual, remedy, RATE - 1))
    elif gains[best] > 0.1 * base and gains[own] < 0.03 * gains[best]:
        what = f'The learning rate is too {"low" if best > own else "high"}.'
        found.append(Finding('error', what, shown, usual, remedy, RATE - 1))
    end = np.min(first.loss[-5:]) if np.all(np.isfinite(first.loss)) else np.inf
    if end > 0.6 * base:
        found.append(
            Finding(
                'error' if end > 0.85 * base else 'warning',
                'The network cannot learn even one batch.',
                f'{len(first.loss) - 1} steps at its best rate {first.rate:.2g}: the loss goes '
                f'from {base:.3g} to {_loss(end)}',
                'less than half',
                'mend what is found above first; then config.model.frozen_stages, loss weights',
                PROBE + 5,
            )
        )
    still = [name for name, ratio in probe.ratios.items() if 0 < ratio < 1e-7]
    if still and len(still) == sum(ratio > 0 for ratio in probe.ratios.values()):
        shown = ', '.join(f'{name} {ratio:.1e}' for name, ratio in probe.ratios.items() if ratio)
        what = 'A step hardly moves any weight.'
        usual = 'an update of 1e-5 to 1e-2 of the weights'
        remedy = f'config.optim.learning_rate = {probe.rates[best].rate / 3:.2g}'
        found.append(Finding('warning', what, shown, usual, remedy, RATE - 2))
    return found


def _loss(value):
    return f'{value:.3g}' if np.isfinite(value) else 'not finite'


def _time(study, options):
    """Returns a Finding where a step waits for its input."""
    factor, small = _small(options)
    step = study['probe'].seconds / factor**2 * options.batch_size / small.batch_size
    wait = study['seconds']['input']
    study['seconds']['step'] = step
    if wait < 0.5 * step:
        return []
    return [
        Finding(
            'error' if wait > 3 * step and wait > 1 else 'warning',
            'Training waits for its images.',
            f'a batch takes {wait:.2g} s to read and resize, a step some {step:.2g} s',
            'less than the step',
            'config.features.keep = "disk" with a frozen backbone, smaller files, or a faster disk',
            TIME + 4,
        )
    ]


def lines(findings, count=8):
    """Returns the lines that are printed: at most `count` findings."""
    if not findings:
        return ['nothing found: the data, the config and the first steps look as they should']
    shown = []
    for number, each in enumerate(findings[:count], start=1):
        shown += [
            f'{number}. {each.level}: {each.finding}',
            f'   {"found":<9} {each.evidence}',
            f'   {"usual":<9} {each.expected}',
            f'   {"remedy":<9} {each.remedy}',
        ]
    more = len(findings) - count
    return shown + ([f'and {more} more on the page'] if more > 0 else [])
