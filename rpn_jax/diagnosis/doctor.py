"""Diagnoses why a config and its data learn slowly or not at all, the worst cause first."""

import itertools
import logging
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from rpn_jax import data
from rpn_jax.data.normalization import normalise
from rpn_jax.data.records import Kind
from rpn_jax.diagnosis import (
    alignment,
    anchor_grid,
    checks,
    config_checks,
    cost_checks,
    input_checks,
    inspect,
    probe_checks,
    second_reading,
    split_checks,
    truth_checks,
)
from rpn_jax.diagnosis import probe as probing
from rpn_jax.diagnosis.finding import BUILD, INPUT, LABELS, PROBE, WEIGHTS, Finding, ranked
from rpn_jax.errors import InputError
from rpn_jax.models import rpn
from rpn_jax.training import loop, pretrained

logger = logging.getLogger(__name__)
IMAGES = 48  # whose pixels are examined
COMPARED = 12  # that are compared with their files, and their anchors
SIDE = 320  # pixels of the canvas of the short trainings, at most
SECONDS = 80  # of their steps, about
DRAWN = 8  # batches of them


class Study(NamedTuple):
    """The findings of a diagnosis and what they rest on; None where something was not examined."""

    findings: list
    batches: list  # (image uint8 [H, W, 3], boxes [n, 4] of its objects), as the network gets them
    alignment: dict | None  # what alignment.compare returned
    probe: Any  # probe.Probe
    seconds: dict  # of a step at the config's size, of the input of a batch, ..
    memory: dict  # bytes forecast at the config's size, by what they are for, and the device's
    advice: str  # what to change first for a faster run


def diagnose(config, *, seconds=SECONDS):
    """Returns the Study of a resolved config: its findings, worst first, and what shows them.

    What cannot be built or read is the first finding, and the rest is examined as far as it can be.
    seconds is about how long the steps of the short trainings take; 0 does without.
    """
    found = [*config_checks.findings(config)]
    study = {
        'batches': [],
        'alignment': None,
        'probe': None,
        'seconds': {},
        'memory': {},
        'advice': '',
    }
    model = source = tensors = None
    for part in ('network', 'weights', 'data'):
        try:
            if part == 'network':
                model = rpn.build(config.model, config.anchors)
            elif part == 'weights' and model is not None:
                tensors = _weights(config, model, found)
            elif part == 'data':
                options = data.options(**config.data)
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
        plan = data.canvases_of(source, options)
        found += ground_truth(config, model, source, plan.sizes)
        found += cost_checks.canvases(plan, options)
        evaluated, findings = _evaluated(config, source, options)
        found += [*split_checks.amount(source, config), *findings]
        try:
            logger.info('reading images')
            _examine(config, source, options, plan, model, found, study)
            if seconds and model is not None and any(len(b) for _, b in study['batches']):
                logger.info('training shortly at several learning rates; this takes minutes')
                study['probe'] = _probe(config, source, options, tensors, seconds)
                found += probe_checks.findings(study['probe'], config)
                logger.info("compiling the update for the config's own canvas")
                found += _cost(config, study, plan, options, evaluated)
        except InputError as error:
            what = 'An image cannot be read.'
            found.append(Finding('error', what, str(error), 'no error', 'see the evidence', BUILD))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            what, shown = 'The training cannot run here.', str(error).partition('\n')[0]
            remedy = 'config.data.batch_size, model.depth: smaller'
            found.append(Finding('error', what, shown[:300], 'no error', remedy, PROBE + 7))
    return Study(ranked(found), **study)


def ground_truth(config, model, source, sizes, most=None):
    """Returns the Findings on the boxes of a Source and, with a model, on its anchors against them.

    sizes [n, 2] are those of the images after the resize. No image is read; of more than `most`
    images some are left out.
    """
    every = max(1, -(-len(source.records) // most)) if most else 1
    source, sizes = source._replace(records=source.records[::every]), sizes[::every]
    options = data.options(**config.data)
    found = [*truth_checks.findings(source.records, sizes, config.proposals.min_size)]
    objects = anchor_grid.objects_of(source, options)
    if model is None or not len(objects.boxes):
        return found
    factors = [
        np.sqrt(np.prod(size) / np.prod(record.size))
        for record, size in zip(source.records, sizes, strict=True)
    ]
    found += truth_checks.resized(objects, min(model.strides), np.median(factors))
    return [*found, *truth_checks.anchors(objects, model, config.targets)]


def unbuildable(message):
    """Returns the Study of a config of which an error's message is all that is known."""
    what = 'The config cannot be used.'
    finding = Finding('error', what, message, 'no error', 'see what was found', BUILD)
    return Study([finding], [], None, None, {}, {}, '')


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
    return pretrained.load_for(model, config.model)


def _evaluated(config, source, options):
    """Returns the number of images that are evaluated, none of which is read, and the Findings."""
    split, rules = options.eval_split, dict(seed=config.seed, training=False, files=False)
    try:
        other = data.open_split(options, split, **rules)
        return len(other.records), [*split_checks.evaluated(source, other)]
    except InputError as error:
        what, remedy = 'The data of the evaluation cannot be read.', 'config.data.eval_split'
        return 0, [Finding('warning', what, str(error), 'no error', remedy, BUILD)]


def _examine(config, source, options, plan, model, found, study):
    """Adds Findings on the training input: its pixels, boxes, anchors, and the time it takes."""
    steps = range(max(2, -(-IMAGES // options.batch_size)))
    originals, normalised, waits = [], [], []
    upright = options._replace(flip=False)  # so that what was done to boxes can be undone
    batches = data.train_batches(source, upright, seed=config.seed, steps=steps)
    began = time.monotonic()
    for batch in batches:
        waits.append(time.monotonic() - began)
        if len(normalised) < 4:
            inputs = np.asarray(normalise(batch['image'], batch['size'], options.family))
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
    started = 1 if len(waits) > 5 else 0  # the first wait is also that for the threads
    study['seconds']['input'] = float(np.mean(waits[started:]))
    found += input_checks.pixels(np.concatenate([x.reshape(-1, 3) for x in normalised]), config)
    images, boxes = ([each[i] for each in study['batches']] for i in (0, 1))
    means = np.array([image.mean(axis=(0, 1)) for image in images])
    found += input_checks.colours(means, config.model.pretrained)
    study['alignment'] = alignment.compare(images, boxes, originals)
    found += input_checks.boxes(study['alignment'])
    if model is None:
        return
    examples = inspect.examples(
        model,
        source,
        options,
        targets=config.targets,
        seed=config.seed,
        steps=range(min(len(steps), -(-COMPARED // options.batch_size))),
        pixels=options.family,
    )
    seen = list(itertools.chain.from_iterable(examples))
    evidence = [each.evidence for each in seen]
    sampled = [(len(each.positive), len(each.background)) for each in seen]
    found += truth_checks.sampled(np.array(sampled), config.targets)
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


def _probe(config, source, options, tensors, seconds):
    """Trains shortly on batches of small canvases, whose anchors shrink with them."""
    factor, small = _small(options)
    anchors = config.anchors.to_dict()
    anchors['sizes'] = _scaled(anchors['sizes'], factor)
    model = rpn.build(config.model, anchors)
    drawn = list(map(data.train_batch(source, small, seed=config.seed), range(DRAWN)))
    first = max(drawn, key=lambda batch: int(np.sum(batch['kind'] == Kind.OBJECT)))
    alike = [each for each in drawn if each['image'].shape == first['image'].shape]
    return probing.run(
        model,
        config.optim,
        tensors,
        [first, *(each for each in alike if each is not first)],
        seed=config.seed,
        budget=seconds,
        share=small.batch_size / options.batch_size,
        targets=config.targets,
        loss=config.loss,
        pixels=options.family,
    )


def _cost(config, study, plan, options, evaluated):
    """Returns the Findings on time and memory at the config's own size, which the Study gets."""
    factor, small = _small(options)
    seconds, probe = study['seconds'], study['probe']
    growth = options.batch_size / small.batch_size / factor**2
    seconds['step'] = probe.seconds * growth
    seconds['transfer'] = probe.transfer * growth
    seconds['image evaluated'] = probe.forward / small.batch_size / factor**2
    devices, canvas = jax.local_devices(), max(plan.shapes, key=np.prod)
    images = -(-options.batch_size // len(devices))
    began = time.monotonic()
    update = loop.lowered(config, devices[:1], images, canvas).compile()
    seconds['compile'] = time.monotonic() - began
    planned = update.memory_analysis()  # None where XLA does not say
    study['memory'] = cost_checks.forecast(
        probe.state_bytes,
        planned.temp_size_in_bytes if planned else 0,
        images * 3 * np.prod(canvas),
        config.features,
    )
    is_frozen = config.model.frozen_stages >= config.model.last_stage
    study['advice'] = cost_checks.advice(seconds, plan, options, is_frozen)
    return cost_checks.findings(config, seconds, study['memory'], plan, options, evaluated)


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


def lines(findings, count=8):
    """Returns the lines that are printed: at most `count` findings."""
    if not findings:
        return ['nothing found: the data, the config and the first steps look as they should']
    shown = []
    for number, each in enumerate(findings[:count], start=1):
        shown += [
            f'{number}. {LABELS[each.level]}: {each.finding}',
            f'   {"found":<9} {each.evidence}',
            f'   {"usual":<9} {each.expected}',
            f'   {"remedy":<9} {each.remedy}',
        ]
    more = len(findings) - count
    return shown + ([f'and {more} more on the page'] if more > 0 else [])
