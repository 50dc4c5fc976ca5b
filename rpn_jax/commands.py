"""The modes of the command line, a function for each: MODE_mode(config, folder, ..).

A config comes checked, as config.check leaves it; a mode resolves it. folder is the workdir.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from pathlib import Path

import jax
import safetensors.numpy

from rpn_jax import agreed, data, files, weights
from rpn_jax.config import check, resolve, with_keys
from rpn_jax.console import progress, show
from rpn_jax.data.sources import coco
from rpn_jax.diagnosis import (
    anchor_fit,
    anchor_grid,
    checks,
    config_checks,
    doctor,
    inspect,
    lr_range,
    schedule,
    second_reading,
    split_checks,
    statistics,
)
from rpn_jax.errors import InputError, disk_line
from rpn_jax.evaluation import baselines, compare, exported, protocols, results
from rpn_jax.evaluation.evaluate import make_evaluate
from rpn_jax.evaluation.summary import table
from rpn_jax.inference import Detector
from rpn_jax.models import rpn
from rpn_jax.report import (
    anchor_page,
    compare_page,
    doctor_page,
    drawings,
    inputs_page,
    predictions,
    rate_plots,
    report,
    run_files,
    statistics_plot,
)
from rpn_jax.training import (
    checkpoint,
    data_identity,
    hosts,
    loop,
    nonfinite,
    pretrained,
    workdir,
)
from rpn_jax.training.parallel import check_divides, everywhere

logger = logging.getLogger(__name__)
INSPECTED = 4  # batches drawn by --mode=inspect
EXAMINED = 5000  # images whose boxes are checked before a training


def train_mode(config, folder, *, strict=False):
    """Trains, or resumes where the workdir's newest checkpoint left off; evaluates and reports.

    With `strict` other data than the workdir's are an error, not a warning. Several processes all
    call it; process 0 alone uses the workdir.
    """
    with workdir.locked(folder) if hosts.is_first() else contextlib.nullcontext():
        config = agreed.resolved(config, folder)
        if hosts.several() and (note := workdir.not_seen(folder)):
            logger.info(f'note: {note}, and process 0 alone uses it')
        try:
            make, found = _with_findings(config, folder)
            _, evaluation = loop.train(config, folder, make, strict=strict)
            hosts.from_first(lambda: _publish(config, folder, evaluation, found))
        except OSError as error:
            if error.filename is None:  # of the terminal
                raise
            raise InputError(f'{disk_line(error)}; {checkpoint.newest(folder)}') from error


def _with_findings(config, folder):
    """Returns evaluator(config, folder), and a list of the Findings that need no image.

    Warnings and errors among them are logged: those on the config at once, those on the training
    data when it is called.
    """
    found = []

    def tell(findings):
        for finding in findings:
            found.append(finding)
            if finding.level != 'info':
                logger.warning(finding.line())

    def make(model, source, devices):
        sizes = data.canvases_of(source, data.options(**config.data)).sizes
        tell(split_checks.amount(source, config))
        tell(doctor.ground_truth(config, model, source, sizes, most=EXAMINED))
        return evaluator(config, folder)(model, source, devices)

    tell(config_checks.findings(config))
    return make, found


def evaluate_mode(config, folder, *, step=None, output='', strict=False):
    """Evaluates a checkpoint, by default the newest; writes evaluation.json and report.html anew.

    An output gets the proposals as COCO's results, and beside it FILE.instances.json the objects.
    With `strict` other data than the workdir's are an error, not a warning. Several processes all
    call it, and share the images; process 0 alone uses the workdir.
    """
    if output and Path(output).suffix != '.json':
        raise InputError(f'--output={output}: not the name of a .json file')
    config, variables, step = agreed.trained(config, folder, step=step, strict=strict)
    model = rpn.build(config.model, config.anchors)
    devices = everywhere(jax.local_devices())
    evaluate = evaluator(config, folder)(model, None, devices)
    sources = {'eval': evaluate.source}
    hosts.agree(data_identity.summary(sources))
    if hosts.is_first():
        data_identity.check(folder, sources, strict)
    evaluation = evaluate(variables, step)

    def publish():
        if changes := agreed.other_keys(config, folder):
            evaluation.summary['other_keys'] = changes
        _publish(config, folder, evaluation)
        show('as other evaluators count, with 95 % intervals over images:')
        show(*protocols.lines(evaluation.results))
        if output:
            _write_coco(Path(output), evaluation.results, evaluate.source)

    hosts.from_first(publish)


def verify_mode(config, folder):
    """Prints a line for each checkpoint of a workdir; raises InputError if any is damaged."""
    if not checkpoint.steps(folder):
        raise InputError(f'{checkpoint.folder(folder)}: no checkpoint to verify')
    damaged = []
    for step, message in checkpoint.verify(folder):
        show(f'step {step}: {message or "good"}')
        damaged += [str(step)] if message else []
    if damaged:
        raise InputError(
            f'{checkpoint.folder(folder)}: damaged checkpoints, of step {", ".join(damaged)}; '
            'training and evaluation take the newest good one'
        )


def evaluator(config, folder):
    """Returns make(model, source, devices) -> evaluate, as loop.train calls it.

    source is the split that is trained on. The Gaussian of its objects is written to the workdir's
    gaussian.json; where source is None it is read from there, or fitted where there is none, or
    where the config has other data than the workdir.
    """
    path = folder / 'gaussian.json'

    def make(model, source, devices):
        options = data.options(**config.data)
        known = source is None and (folder / 'config.json').exists()
        before = workdir.read_config(folder).get('data', {}) if known else config.data
        keys = 'source', 'name', 'train_split', 'categories'  # no paths: data may have been moved
        own = all(before.get(k, ()) == config.data[k] for k in keys)
        if known and own and path.exists():
            try:
                gaussian = baselines.gaussian_from_json(files.read_json(path))
            except (OSError, ValueError) as error:
                raise InputError(f'{path}: cannot be read ({error}); delete it') from error
        else:
            train = source or data.open_split(options, options.train_split, seed=config.seed)
            gaussian = baselines.fit_gaussian(train.records)
        evaluate = make_evaluate(
            model,
            data.open_split(options, options.eval_split, seed=config.seed, training=False),
            options=options,
            proposals=config.proposals,
            gaussian=gaussian,
            targets=config.targets,
            loss=config.loss,
            pixels=options.family,
            seed=config.seed,
            images=config.evaluation.images,
            devices=devices,
        )
        if own and hosts.is_first():
            files.make_folder(folder)
            files.write_json(path, baselines.gaussian_to_json(gaussian))
        return evaluate

    return make


def compare_mode(runs, output=''):
    """Prints workdirs side by side and writes a page that shows them.

    The page is written beside the first workdir, or to the output, where that is an .html file; an
    output of .json gets the figures and their differences. Raises InputError where it is neither.
    """
    kind = Path(output).suffix
    if output and kind not in ('.html', '.json'):
        raise InputError(f'--output={output}: not the name of an .html or a .json file')
    proposals = compare.load(runs)
    tallies = compare.tally(proposals)
    figures = compare.compare(tallies)
    show(*compare.lines(figures))
    known = {run: run_files.read(run, each) for run, each in proposals.items()}
    for run in (run for run in proposals if known[run].stale):
        show(f'note: {run_files.note(run, known[run], proposals[run])}')
    if kind == '.json':
        with _written():
            files.write_json(output, figures, indent=2, allow_nan=False)
        show(f'{output} has the numbers')
    page = Path(output) if kind == '.html' else Path(runs[0]).parent / 'compare.html'
    with _written():
        sentences = compare_page.write_page(page, proposals, known, tallies, figures)
    show(*sentences, f'{page} shows them side by side')


def inspect_mode(config, folder, *, batch=''):
    """Checks and draws the first training batches as the network gets them, with their anchors.

    Where `batch` is a file that training kept of a step that was not finite, it is that step's.
    """
    kept = nonfinite.read(batch) if batch else None
    steps = range(kept.step - 1, kept.step) if kept else range(INSPECTED)
    config = resolve(config, folder)
    options = data.options(**config.data)
    source = data.open_split(options, options.train_split, seed=config.seed)
    if kept:
        today = data.train_batch(source, options, seed=config.seed)(kept.step - 1)
        ids = [source.records[i].image_id for i in today['index']]
        show(*nonfinite.compare_lines(batch, kept, ids, today))
    model = rpn.build(config.model, config.anchors)
    pretrained.check_files(model, config.model)
    pictures, evidence, shown = folder / 'inspect', [], []
    examples = inspect.examples(
        model,
        source,
        options,
        targets=config.targets,
        seed=config.seed,
        steps=steps,
        pixels=options.family,
    )
    for each in examples:
        files.make_folder(pictures)
        path = pictures / f'step_{each[0].step + 1:04}.png'
        picture, lines = inputs_page.sheet(each)
        files.write_atomically(path, drawings.encode_png(picture))
        show(f'{path}', *(f'  {line}' for line in lines))
        evidence += [example.evidence for example in each]
        shown += inputs_page.chosen(each, inputs_page.SHOWN // len(steps))
    verdicts = checks.verdicts(evidence, second_reading.differences(source))
    page = pictures / 'index.html'
    inputs_page.write_page(
        page,
        title=folder.name,
        dataset=source.name,
        pixels=options.family,
        checked=len(evidence),
        verdicts=verdicts,
        shown=shown,
    )
    show(*(f'{check.word:<12} {check.name:<17} {check.text}' for check in verdicts))
    show(*(f'note: {note}' for note in source.notes))
    show(f'{page} shows {len(shown)} images beside their originals')
    if failed := [check.name for check in verdicts if check.passed is False]:
        raise InputError(f'the training input is wrong ({", ".join(failed)}); see {page}')


def doctor_mode(config, folder, *, strict=False):
    """Examines a config and its data, in minutes; writes doctor.json and doctor.html.

    With `strict` a finding of level error is one at the end.
    """
    files.make_folder(folder)
    try:
        check(config)
        config = resolve(config, folder)
        study = doctor.diagnose(config)
    except InputError as error:
        study = doctor.unbuildable(with_keys(str(error)))
    entries = [finding.entry() for finding in study.findings]
    files.write_json(folder / 'doctor.json', entries, indent=2)
    page = folder / 'doctor.html'
    doctor_page.write_page(page, title=folder.name, study=study)
    show(*doctor.lines(study.findings))
    show(f'{page} shows the pictures behind them, doctor.json has them as a list')
    errors = sum(finding.level == 'error' for finding in study.findings)
    if strict and errors:
        raise InputError(f'{errors} findings of level error; see {page}')


def lr_range_mode(config, folder):
    """Trains while the learning rate grows, to see at which it learns; writes json and a picture.

    The workdir's checkpoints play no part: it begins as a run does.
    """
    files.make_folder(folder)
    config = resolve(config, folder)
    options, devices = data.options(**config.data), jax.local_devices()
    check_divides(options.batch_size, len(devices))
    source = data.open_split(options, options.train_split, seed=config.seed)
    model = rpn.build(config.model, config.anchors)
    rpn.check_canvases(model, data.canvases_of(source, options).shapes)
    tensors = pretrained.load_for(model, config.model)
    measured = lr_range.measure(
        model,
        config.optim,
        tensors,
        data.train_batches(source, options, seed=config.seed, steps=range(lr_range.STEPS)),
        seed=config.seed,
        devices=devices,
        targets=config.targets,
        loss=config.loss,
        pixels=options.family,
    )
    summary = lr_range.summary(measured)
    _write_figures(folder, 'lr_range', summary, rate_plots.range_test(measured, summary))
    show(*lr_range.lines(summary, config.optim.learning_rate))
    show(f'{folder / "lr_range.svg"} shows the losses, lr_range.json has the numbers')


def schedule_mode(config, folder):
    """Shows the learning rate over the run, as the config has it; writes json and a picture."""
    steps, rates = schedule.rates(config.optim, config.steps)
    picture = rate_plots.over_steps(steps, rates)
    _write_figures(folder, 'schedule', schedule.summary(steps, rates), picture)
    findings = [*config_checks.rate(config), *config_checks.schedule(config)]
    show(*schedule.lines(steps, rates), *(doctor.lines(findings) if findings else ()))
    show(f'{folder / "schedule.svg"} shows it, schedule.json has the numbers')


def _write_figures(folder, stem, content, picture):
    """Writes STEM.json and STEM.svg."""
    files.make_folder(folder)
    files.write_json(folder / f'{stem}.json', content, allow_nan=False)
    files.write_atomically(folder / f'{stem}.svg', picture)


def statistics_mode(config, folder):
    """Counts the pixels and the boxes of data.train_split; writes json and a picture."""
    options = data.options(**config.data)
    source = data.open_split(options, options.train_split, seed=config.seed, boxes=False)
    counted = statistics.statistics(source)
    written = folder / 'statistics'
    stem = re.sub(r'\W+', '_', source.name)[-50:]  # of 200 bytes at most
    _write_figures(written, stem, counted, statistics_plot.picture(counted, source.records))
    show(*statistics.lines(counted), *(f'note: {note}' for note in source.notes))
    show(f'{written / stem}.json has the numbers, {stem}.svg shows them')


def anchors_mode(config, folder):
    """Measures how well the anchors fit the training objects; writes better ones, json and a page.

    Of the data only the annotations are read.
    """
    model = rpn.build(config.model, config.anchors)
    options = data.options(**config.data)
    source = data.open_split(options, options.train_split, seed=config.seed, files=False)
    objects = anchor_grid.objects_of(source, options)
    present = anchor_fit.measure(objects, anchor_grid.Layout.of(model), **config.targets)
    suggested = anchor_fit.suggest(objects, present, **config.targets)
    content = anchor_fit.summary(source, objects, present, suggested, **config.targets)
    files.make_folder(folder)
    files.write_json(folder / 'anchors.json', content, indent=2, allow_nan=False)
    page = folder / 'anchors.html'
    anchor_page.write_page(page, folder.name, content, objects, present, suggested)
    show(*(f'note: {note}' for note in source.notes), *anchor_fit.lines(content))
    show(f'{page} shows them, anchors.json has the numbers')


def predict_mode(config, folder, *, paths, step=None, output=''):
    """Writes the proposals of images as json, and the ten best as pictures, one after the other.

    What cannot be read is reported and skipped; raises InputError at the end if there was any.
    Several processes all call it, and share the images.
    """
    if not paths:
        raise InputError('the mode predict needs images, or folders of them: predict .. PATH ..')
    written = Path(output or folder / 'predictions')
    images = predictions.find(paths, written)
    names = hashlib.sha256(json.dumps([*images.values()]).encode()).hexdigest()[:8]
    hosts.agree({'images': f'{len(images)}, hash of names {names}'})
    config, variables, step = agreed.trained(config, folder, step=step)
    trained = Detector(config, step, variables)
    files.make_folder(written, '--output')
    hosts.exchange('')  # all have their folder
    if hosts.several() and (note := workdir.not_seen(written)):
        logger.info(f'note: {note}; each writes the files of its own images there')
    own = [*enumerate(images.items())][jax.process_index() :: jax.process_count()]
    shown = progress(own, len(own), f'{hosts.prefix()}predicted') if hosts.is_first() else own
    with _written():
        skipped = [
            (number, os.fspath(path))
            for number, (path, name) in shown
            if not predictions.write(trained, path, written / name)
        ]
    counts, firsts = zip(*hosts.exchange([len(skipped), skipped[:1]]), strict=True)
    done = len(images) - sum(counts)
    if hosts.is_first():
        with _written():
            page = predictions.write_page(written, images.values(), step)
        show(f'{page} shows the proposals of {done} images; a json file of each is beside it')
    if first := sum(firsts, []):
        raise InputError(f'{min(first)[1]}: skipped, as {sum(counts)} of {len(images)} images')


def export_mode(config, folder, *, step=None, output=''):
    """Writes a checkpoint's weights, or the function from an image to proposals, as a file."""
    kind = Path(output).suffix
    if kind not in ('.safetensors', '.stablehlo'):
        given = f', not {output}' if output else ''
        raise InputError(f'the mode export needs --output=FILE.safetensors or .stablehlo{given}')
    config, variables, step = agreed.trained(config, folder, step=step)
    content, what, about = (_weights if kind == '.safetensors' else _function)(
        config, variables, step
    )
    with _written():
        files.make_folder(Path(output).parent, '--output')
        if about:
            files.write_json(f'{output}.json', about, indent=2)
        files.write_atomically(output, content)
    show(f'{output}: step {step}, {what}, {len(content) / 2**20:.1f} MiB')


def _weights(config, variables, step):
    """Returns the bytes of a .safetensors file, a text on it, and None: it describes itself."""
    tensors = weights.from_variables(variables)
    made_with = {
        'step': step,
        'model': {k: v for k, v in config.model.items() if k != 'pretrained'},
        'anchors': config.anchors.to_dict(),
        'data': config.data.to_dict() | dict.fromkeys(agreed.PATHS, ''),
        'proposals': config.proposals.to_dict(),
    }
    content = safetensors.numpy.save(tensors, {'format': 'pt', 'rpn_jax': json.dumps(made_with)})
    return content, f'{len(tensors)} tensors', None


def _function(config, variables, step):
    """Returns the bytes of a .stablehlo file, a text on it, and its description for a JSON file."""
    model, proposals = rpn.build(config.model, config.anchors), config.proposals
    options = data.options(**config.data)
    most = options.image_size if options.resize == 'square' else options.max_size
    (canvas,) = data.plan([(most, most)], options._replace(image_size=most)).shapes
    kinds = dict(proposals=proposals, pixels=options.family)
    content = exported.serialised(model, variables, canvas, **kinds)
    about = {'step': step} | exported.description(canvas, proposals=proposals, data=config.data)
    what = f'images of {canvas[0]} x {canvas[1]} pixels to proposals'
    return content, what, about


@contextlib.contextmanager
def _written():
    """Turns an error of the disk into one line that names the file and the option."""
    try:
        yield
    except OSError as error:
        raise InputError(f'{disk_line(error)}; or name another --output') from error


def _write_coco(output, proposals, source):
    """Writes COCO's two files; what came from a json file of COCO keeps its own entries and ids."""
    own = proposals.coco_ids and coco.entries(source)
    instances, detections = results.to_coco(proposals, own)
    other = output.with_suffix('.instances.json')
    with _written():
        files.make_folder(output.parent, '--output')
        for path, content in ((other, instances), (output, detections)):
            files.write_json(path, content)
    show(f"{output} has the proposals as COCO's results, {other} the images and objects")


def _publish(config, folder, evaluation, found=None):
    files.write_json(folder / 'evaluation.json', evaluation.summary, indent=2, allow_nan=False)
    results.save(folder / 'proposals.npz', evaluation.results)
    sentences = report.write_page(
        folder / 'report.html',
        title=folder.name,
        config=config.to_dict(),
        history=workdir.read_history(folder),
        evaluation=evaluation.summary,
        curves=evaluation.curves,
        sizes=evaluation.sizes,
        gallery=evaluation.gallery,
        misses=evaluation.misses,
        doctor=config_checks.findings(config) if found is None else found,
    )
    show(*table(evaluation.summary), sentences[0])
    show(f'{folder / "report.html"} shows the curves and the best and worst images')
