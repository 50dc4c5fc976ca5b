"""The training loop: from a config and a workdir to a trained network and its evaluation."""

import contextlib
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax import data
from rpn_jax.data.batches import prefetch
from rpn_jax.data.normalization import pixel_family
from rpn_jax.errors import InputError, Interrupted, disk_line
from rpn_jax.models import rpn
from rpn_jax.ops.losses import weights_and_keywords
from rpn_jax.training import (
    checkpoint,
    data_identity,
    feature_cache,
    hosts,
    nonfinite,
    pretrained,
    workdir,
)
from rpn_jax.training.optim import make_optimizer
from rpn_jax.training.parallel import check_divides, everywhere, replicate, shard_batch
from rpn_jax.training.progress import Progress, Signals, canvases_line, shared_images
from rpn_jax.training.step import init_state, make_update

logger = logging.getLogger(__name__)
COMPARED = 10**6  # steps whose learning rates are compared with those of the config before
DONE = 'no step is left to train; the evaluation follows'


def train(config, folder, make_evaluate=None, *, devices=None, strict=False):
    """Trains in the workdir `folder`, from its newest checkpoint on, and evaluates at the end.

    config is one that rpn_jax.config has resolved.
    make_evaluate(model, source, devices) returns evaluate as evaluation.evaluate.make_evaluate
    does; source is the split that is trained on. Returns the final state and the last Evaluation,
    None without make_evaluate. With `strict` a run does not go on with other data. Raises
    InputError for what a user can mend, and Interrupted after SIGINT or SIGTERM once a checkpoint
    is written.

    Several processes all call it, with the same config: each feeds its own devices its rows of
    every batch. Process 0 alone uses the workdir and gets the Evaluation.
    """
    if jax.process_count() > 1 and not hosts.several():
        raise InputError('JAX has several processes: they must be started by hosts.start')
    first = hosts.is_first()
    devices = everywhere(devices or jax.local_devices())
    options = data.options(**config.data)
    check_divides(options.batch_size, len(devices))
    feature_cache.check(config.features.keep, config.model, options.resize)
    tensors, before = None, {}
    if resuming := first and checkpoint.steps(folder):
        before = _check_resumed(config, folder, resuming[-1])
    source = data.open_split(options, options.train_split, seed=config.seed)
    model, optimizer, schedule = build(config)
    rpn.check_canvases(model, data.canvases_of(source, options).shapes)
    if first and not resuming:
        tensors = pretrained.load_for(model, config.model)
    evaluate = make_evaluate and make_evaluate(model, source, devices)
    sources = {'train': source} | ({'eval': evaluate.source} if evaluate else {})
    hosts.agree(data_identity.summary(sources))
    if resuming:
        data_identity.check(folder, sources, strict)
    state = replicate(init_state(model, optimizer, config.seed, tensors), devices)
    if first:
        workdir.begin(folder, config)
        data_identity.write(folder, sources)
    update = update_of(config, model, optimizer, devices)
    with Signals() as signals:
        with _checkpoints(folder, config) as checkpoints:
            state = replicate(hosts.broadcast(checkpoints.load(state)), devices)
            start = int(state.step)
            signals.check(start)
            _describe(config, model, state, source, evaluate and evaluate.source, options)
            _describe_rate(config, before, schedule, start)
            made = _batches(config, model, state, source, options, devices, signals)
            log = workdir.History(folder, start) if first else lambda *_: None
            with contextlib.closing(made) as batches:
                progress = Progress(
                    log,
                    source.records,
                    schedule,
                    steps=config.steps,
                    log_every=config.log_every,
                    weights=weights_and_keywords(config.loss)[0],
                    skip_nonfinite=config.optim.skip_nonfinite,
                    examine=_examine(config, folder, model, source, options, lambda: state),
                )
                progress.window += workdir.read_unlogged(folder, start) if first else []
                every = config.evaluation.every if evaluate else 0
                between = functools.partial(_evaluate_between, evaluate, signals, progress)
                if every and 0 < start < config.steps and start % every == 0:
                    if not hosts.from_first(lambda: workdir.is_evaluated(folder, start)):
                        log(start, between(state, start))
                if first:
                    checkpoints.figures = workdir.figures(folder, checkpoints.best)
                numbered = zip(range(start + 1, config.steps + 1), batches, strict=True)
                for step, (index, batch) in numbered:
                    hosts.begin_batch()
                    state, metrics = update(state, batch)
                    progress.read(step, metrics, index, checkpoints.latest)
                    with _as_warning():
                        checkpoints.check()
                    save = functools.partial(_save, folder, checkpoints, progress, log, step, state)
                    last, due, figures = step == config.steps, every and step % every == 0, {}
                    try:
                        signals.check(step, progress.signal)
                        if due and checkpoints.best:  # the figure is saved with the checkpoint
                            figures = between(state, step)
                        if last or step % checkpoints.every == 0 or checkpoints.is_best(figures):
                            save(figures, needed=last)
                        if due and not last:
                            log(step, figures if checkpoints.best else between(state, step))
                    except Interrupted:
                        save()
                        raise
        return state, evaluate and _evaluate(evaluate, signals, state, int(state.step))


def _check_resumed(config, folder, newest):
    """Returns the config of a workdir; raises InputError unless its run may go on with config."""
    workdir.check_file(folder)
    workdir.check(folder, config)
    if config.steps < newest:
        raise InputError(
            f'steps: {config.steps} is fewer than the {newest} of the newest checkpoint '
            f'in {folder}; train on with more, or evaluate it'
        )
    return workdir.read_config(folder)


def _checkpoints(folder, config):
    """Returns the Checkpoints of a workdir, in which process 0 alone writes."""
    if hosts.is_first():
        settings = {**config.checkpoint, 'config': workdir.identity(config)}
        return checkpoint.Checkpoints(folder, **settings)
    return checkpoint.NoCheckpoints(**config.checkpoint)


def build(config):
    """Returns the model, the optimizer and its schedule of a config."""
    model = rpn.build(config.model, config.anchors)
    frozen = functools.partial(rpn.frozen, model)
    return model, *make_optimizer(**config.optim, steps=config.steps, frozen=frozen)


def _examine(config, folder, model, source, options, newest):
    """Returns examine(step, image_loss, rows) of a step that is not finite.

    It keeps the step's batch, made again from the data, in the workdir, and returns what a message
    says of it. The largest activations are those of the state newest().
    """
    largest = nonfinite.make_largest(model, _pixels(config))

    def found_on_first(step, image_loss, rows):
        batch = data.train_batch(source, options, seed=config.seed)(step - 1)
        found = largest(newest().variables, batch)
        ids = [source.records[i].image_id for i in batch['index']]
        where = nonfinite.keep(folder, nonfinite.Kept(step, ids, image_loss, found, batch))
        return f'; largest activations: {nonfinite.line(found, rows)}; {where}'

    return lambda *of_step: hosts.from_first(lambda: found_on_first(*of_step))


def update_of(config, model, optimizer, devices):
    """Returns the pmapped update of a config."""
    return make_update(
        model,
        optimizer,
        targets=config.targets,
        loss=config.loss,
        pixels=_pixels(config),
        seed=config.seed,
        devices=devices,
    )


def lowered(config, devices, images, canvas):
    """Returns the update of a config, lowered, not compiled, for so many images on each device.

    canvas is (height, width) in pixels. Raises InputError where the model cannot be built.
    """
    model, optimizer, _ = build(config)
    state = jax.eval_shape(functools.partial(init_state, model, optimizer, 0))
    rows, boxes = (len(devices), images), config.data.max_boxes
    batch = {
        'image': jax.ShapeDtypeStruct((*rows, *canvas, 3), np.uint8),
        'boxes': jax.ShapeDtypeStruct((*rows, boxes, 4), np.float32),
        'kind': jax.ShapeDtypeStruct((*rows, boxes), np.int32),
        'size': jax.ShapeDtypeStruct((*rows, 2), np.float32),
        'index': jax.ShapeDtypeStruct(rows, np.int32),
    }
    return update_of(config, model, optimizer, devices).mapped.lower(state, batch)


def _pixels(config):
    family = 'torchvision' if config.data.pixels == 'auto' else config.data.pixels
    return pixel_family(family, config.data.mean, config.data.std)


def _save(folder, checkpoints, progress, log, step, state, figures=None, needed=True):
    """Begins to write a checkpoint; raises InputError or OSError where one that is needed fails."""
    progress.flush()
    if not hosts.is_first():
        return
    with _as_warning():
        checkpoints.finish()  # what is unlogged is kept for complete checkpoints
    with contextlib.nullcontext() if needed else _as_warning():
        log.flush()  # no checkpoint is ahead of metrics.jsonl
        workdir.write_unlogged(folder, step, progress.window)
        checkpoints.save(step, state, figures)


@contextlib.contextmanager
def _as_warning():
    """Logs as a warning that a checkpoint cannot be written, as the next one may be."""
    try:
        yield
    except (InputError, OSError) as error:
        line = error if isinstance(error, InputError) else disk_line(error)
        again = 'training goes on, and tries again with the next checkpoint'
        logger.warning(f'{hosts.prefix()}{line}; {again}')


def _evaluate(evaluate, signals, state, step, brief=False):
    """Returns the Evaluation of a state, which process 0 gets; None on others.

    Raises Interrupted after the batch of a signal.
    """
    between = functools.partial(signals.check, step)
    evaluation = evaluate(state.variables, step, brief=brief, between=between)
    between()
    return evaluation


def _evaluate_between(evaluate, signals, progress, state, step):
    """Returns the figures of a brief evaluation during training, and logs them; {} on others."""
    progress.flush()
    evaluation = _evaluate(evaluate, signals, state, step, brief=True)
    progress.restart()
    figures = evaluation.summary['proposals'] if evaluation else {}
    figures = {name: value for name, value in figures.items() if '/' not in name}
    known = (f'{name} {value:.3f}' for name, value in figures.items() if value is not None)
    logger.info('  '.join([f'step {step}:', *known]))
    return figures


def feature_cache_of(config, model, state, source, devices):
    """Returns the cache of the feature maps of the frozen backbone."""
    about = feature_cache.identity(source, config.model, config.data, config.seed)
    settings = {'pixels': _pixels(config), 'data': config.data, 'about': about, **config.features}
    return feature_cache.Features(model, state.variables, source, devices, **settings)


def _batches(config, model, state, source, options, devices, signals):
    """Yields index [N] and the batch, placed, of the steps that are left.

    A thread copies them to the devices; meanwhile another can dispatch their work. Of several
    processes each places its own rows, and tells the others of a signal; index is of all rows.
    """
    steps, maps = range(int(state.step), config.steps), None
    if config.features.keep and steps:
        maps = feature_cache_of(config, model, state, source, devices)
    known = maps and maps.known
    share = {'host': jax.process_index(), 'hosts': jax.process_count(), 'known': known}
    batches = data.train_batches(source, options, seed=config.seed, steps=steps, **share)
    batches = map(maps, batches) if maps else batches
    if not hosts.several():
        return prefetch(lambda batch: (batch['index'], shard_batch(batch, devices)), batches)
    plan = data.train_batch(source, options, seed=config.seed)

    def placed(numbered):
        step, batch = numbered
        signal = np.full(len(batch['index']), signals.received, np.int32)
        return np.array(plan.positions(step)[1]), shard_batch(batch | {'signal': signal}, devices)

    return prefetch(placed, zip(steps, batches, strict=True))


def _describe(config, model, state, source, other, options):
    """Logs the size of the network, which part learns, and the training and evaluation data."""

    def millions(tree):
        return f'{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.1f} M'

    fixed = rpn.frozen(model, state.params)
    learning = jax.tree.map(lambda p, frozen: None if frozen else p, state.params, fixed)
    stages = config.model.fpn_stages
    pyramid = f' to conv{stages[-1]}, {len(model.strides)} levels' if stages else ''
    logger.info(
        f'ResNet-{config.model.depth} conv{(stages or (config.model.last_stage,))[0]}{pyramid}: '
        f'{millions(state.params)} parameters, {millions(learning)} learn; '
        f'{source.name}: {len(source.records)} images; '
        + (f'steps {int(state.step)} to {config.steps}' if state.step < config.steps else DONE)
    )
    for note in filter(None, (*source.notes, other and shared_images(source, other))):
        logger.info(f'note: {note}')
    if state.step < config.steps:
        logger.info(canvases_line(data.canvases_of(source, options)))


def _describe_rate(config, before, schedule, step):
    """Logs where the learning rate first differs from that of the config before."""
    length = before.get('optim', {}).get('schedule_steps') or before.get('steps')
    if step == config.steps or not isinstance(length, int) or length < 1:
        return
    old = make_optimizer(**{**config.optim, 'schedule_steps': length})[1]
    steps = jnp.arange(step, min(config.steps, step + COMPARED))
    was, now = (
        np.asarray(jax.vmap(lambda step, rate=rate: jnp.float32(rate(step)))(steps))
        for rate in (old, schedule)
    )
    others = np.flatnonzero(~np.isclose(was, now, rtol=1e-5, atol=0))
    if len(others):
        step, was, now = (each[others[0]] for each in (steps, was, now))
        logger.info(
            f'note: the learning rate at step {step} {"rises" if now > was else "falls"} from '
            f'{was:.3g} to {now:.3g}: the schedule {config.optim.schedule!r} had a length of '
            f'{length} steps, and has one of {config.optim.schedule_steps or config.steps}; '
            f'optim.schedule_steps={length} keeps it'
        )
