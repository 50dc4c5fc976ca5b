"""What --mode names: functions of a config and a workdir."""

import json
import re
from pathlib import Path

import jax
import safetensors.numpy

from rpn_jax import data, files, limits, weights
from rpn_jax.data.batches import counted
from rpn_jax.data.normalization import pixel_family
from rpn_jax.diagnosis import checks, inspect, statistics
from rpn_jax.errors import InputError
from rpn_jax.evaluation import baselines, compare, protocols, results
from rpn_jax.evaluation.evaluate import make_evaluate
from rpn_jax.evaluation.summary import table
from rpn_jax.inference import Detector
from rpn_jax.models import rpn
from rpn_jax.report import (
    compare_page,
    drawings,
    inputs_page,
    predictions,
    report,
    run_files,
    statistics_plot,
)
from rpn_jax.training import checkpoint, loop, pretrained, workdir

INSPECTED = 4  # batches drawn by --mode=inspect


def compare_mode(names, output=''):
    """Prints runs side by side and writes a page that shows them.

    The page lies beside the first run's folder, or is the output, where that is an .html file; an
    output of .json gets the figures and their differences. Raises InputError where it is neither.
    """
    kind = Path(output).suffix
    if output and kind not in ('.html', '.json'):
        raise InputError(f'--output={output}: not the name of an .html or a .json file')
    runs = compare.load(names)
    tallies = compare.tally(runs)
    found = compare.compare(tallies)
    print(*compare.lines(found), sep='\n')
    known = {run: run_files.read(run, each) for run, each in runs.items()}
    for run in (run for run in runs if known[run].stale):
        print(f'note: {run_files.note(run, known[run], runs[run])}')
    page = Path(output) if kind == '.html' else Path(names[0]).parent / 'compare.html'
    target = output or page
    try:
        if kind == '.json':
            text = json.dumps(found, indent=2, allow_nan=False) + '\n'
            files.write_atomically(target, text)
            print(f'{output} has the numbers')
            target = page
        compare_page.write_page(page, runs, known, tallies, found)
    except OSError as error:
        raise InputError(
            f'{target}: cannot be written ({error}); name another --output=FILE.html'
        ) from error
    print(f'{page} shows them side by side')


def run(mode, config, folder, *, output='', paths=()):
    """Runs the mode of that name.

    output is the file that --mode=export or evaluate writes or the folder of --mode=predict, paths
    are the images and folders that predict looks at.
    """
    if output and mode not in ('evaluate', 'export', 'predict'):
        said = 'belongs to evaluate, export and predict'
        raise InputError(f'--output={output} {said}, not to --mode={mode}')
    if mode == 'export' and not output:
        raise InputError('--mode=export needs --output=FILE.safetensors')
    limits.check(config)
    if mode == 'export':
        export_mode(config, folder, Path(output))
    elif mode == 'evaluate':
        evaluate_mode(config, folder, output)
    elif mode == 'predict':
        predict_mode(config, folder, paths, Path(output or folder / 'predictions'))
    else:
        MODES[mode](config, folder)


def train_mode(config, folder):
    """Trains, or resumes where the workdir's newest checkpoint left off; evaluates and reports."""
    _, evaluation = loop.train(config, folder, evaluator(config, folder))
    _publish(config, folder, evaluation)


def evaluate_mode(config, folder, output=''):
    """Evaluates the newest checkpoint; writes evaluation.json and report.html anew.

    An output gets the proposals as COCO's results, and beside it FILE.instances.json the objects.
    """
    if output and Path(output).suffix != '.json':
        raise InputError(f'--output={output}: not the name of a .json file')
    variables, step = checkpoint.variables(folder)
    workdir.check(folder, config, workdir.NETWORK)
    model = rpn.build(config.model, config.anchors)
    evaluate = evaluator(config, folder)(model, None, jax.local_devices())
    evaluation = evaluate(variables, step)
    _publish(config, folder, evaluation)
    print('as other evaluators count, with 95 % intervals over images:')
    print(*protocols.lines(evaluation.results), sep='\n')
    if output:
        _write_coco(Path(output), evaluation.results)


def evaluator(config, folder):
    """Returns make(model, source, devices) -> evaluate, as loop.train calls it.

    source is the split that is trained on. The Gaussian of its objects is written to the workdir's
    gaussian.json; where source is None it is read from there, or fitted where there is none.
    """
    path = folder / 'gaussian.json'

    def make(model, source, devices):
        options = data.check(data.Options(**config.data))
        if source is None and path.exists():
            gaussian = _read_gaussian(path)
        else:
            train = source or data.open_split(options, options.train_split, seed=config.seed)
            gaussian = baselines.fit_gaussian(train.records)
        family = 'torchvision' if config.data.pixels == 'auto' else config.data.pixels
        evaluate = make_evaluate(
            model,
            data.open_split(options, options.eval_split, seed=config.seed, training=False),
            options=options,
            proposals=config.proposals,
            gaussian=gaussian,
            targets=config.targets,
            loss_beta=config.loss.beta,
            pixels=pixel_family(family, config.data.mean, config.data.std),
            seed=config.seed,
            images=config.evaluation.images,
            devices=devices,
        )
        files.make_folder(folder)
        files.write_atomically(path, json.dumps(baselines.gaussian_to_json(gaussian)) + '\n')
        return evaluate

    return make


def _read_gaussian(path):
    try:
        return baselines.gaussian_from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: cannot be read ({error}); delete it') from error


def inspect_mode(config, folder):
    """Checks and draws the first training batches as the network gets them, with their anchors."""
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, options.train_split, seed=config.seed)
    pretrained.check(config, pretrained.load(config))
    place, measured, shown = folder / 'inspect', [], []
    model = rpn.build(config.model, config.anchors)
    pixels = pixel_family(*(config.data[key] for key in ('pixels', 'mean', 'std')))
    examples = inspect.examples(
        model,
        source,
        options,
        targets=config.targets,
        seed=config.seed,
        steps=range(INSPECTED),
        pixels=pixels,
    )
    for batch in examples:
        files.make_folder(place)
        path = place / f'batch_{batch[0].step:04}.png'
        picture, lines = inputs_page.sheet(batch)
        files.write_atomically(path, drawings.encode_png(picture))
        print(f'{path}', *lines, sep='\n  ')
        measured += [example.evidence for example in batch]
        shown += inputs_page.chosen(batch, inputs_page.SHOWN // INSPECTED)
    found, page = checks.verdicts(measured), place / 'index.html'
    inputs_page.write_page(
        page,
        title=folder.name,
        dataset=source.name,
        pixels=pixels,
        checked=len(measured),
        verdicts=found,
        shown=shown,
    )
    print(*(f'{check.word:<12} {check.name:<17} {check.text}' for check in found), sep='\n')
    print(*(f'note: {note}' for note in source.notes), sep='\n', end='\n' if source.notes else '')
    print(f'{page} shows {len(shown)} images beside their originals')
    if failed := [check.name for check in found if check.passed is False]:
        raise InputError(f'the training input is wrong ({", ".join(failed)}); see {page}')


def statistics_mode(config, folder):
    """Counts the pixels and the boxes of data.train_split; writes json and a picture."""
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, options.train_split, seed=config.seed, boxes=False)
    found = statistics.statistics(source)
    place = folder / 'statistics'
    files.make_folder(place)
    stem = re.sub(r'\W+', '_', source.name)
    files.write_atomically(place / f'{stem}.json', json.dumps(found, allow_nan=False) + '\n')
    files.write_atomically(place / f'{stem}.svg', statistics_plot.picture(found, source.records))
    print(*statistics.lines(found), *(f'note: {note}' for note in source.notes), sep='\n')
    print(f'{place / stem}.json has the numbers, {stem}.svg shows them')


def predict_mode(config, folder, paths, place):
    """Writes the proposals of images as json, and the ten best as pictures, one after the other.

    What cannot be read is reported and skipped; raises InputError at the end if there was any.
    """
    if not paths:
        raise InputError('--mode=predict needs images, or folders of them: main.py .. PATH ..')
    found = predictions.find(paths, place)
    workdir.check(folder, config, workdir.NETWORK)
    trained = Detector(config, *checkpoint.variables(folder)[::-1])
    files.make_folder(place, '--output')
    images = counted(found.items(), len(found), 'predicted', print)
    skipped = [path for path, name in images if not predictions.write(trained, path, place / name)]
    print(f'{place}: proposals of {len(found) - len(skipped)} images, as json and pictures')
    if skipped:
        raise InputError(f'{skipped[0]}: skipped, as {len(skipped)} of {len(found)} images')


def export_mode(config, folder, output):
    """Writes the newest checkpoint's weights, by torchvision's names, as a .safetensors file."""
    if output.suffix != '.safetensors':
        raise InputError(f'--output={output}: not the name of a .safetensors file')
    variables, step = checkpoint.variables(folder)
    workdir.check(folder, config, workdir.NETWORK)
    tensors = weights.from_variables(variables)
    made_with = {
        'step': step,
        'model': {k: v for k, v in config.model.items() if k != 'pretrained'},
        'anchors': config.anchors.to_dict(),
        'data': config.data.to_dict() | dict.fromkeys(('path', 'images', 'annotations'), ''),
        'proposals': config.proposals.to_dict(),
    }
    content = safetensors.numpy.save(tensors, {'format': 'pt', 'rpn_jax': json.dumps(made_with)})
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(output, content)
    except (OSError, ValueError) as error:
        raise InputError(f'--output={output}: cannot be written ({error})') from error
    print(f'{output}: step {step}, {len(tensors)} tensors, {len(content) / 2**20:.1f} MiB')


def _write_coco(output, proposals):
    """Writes COCO's two files: the image ids of the results are those of the instances."""
    instances, found = results.to_coco(proposals)
    other = output.with_suffix('.instances.json')
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for path, content in ((other, instances), (output, found)):
            files.write_atomically(path, json.dumps(content) + '\n')
    except OSError as error:
        what = f'--output={output}: cannot be written ({error.strerror}); name another'
        raise InputError(what) from error
    print(f"{output} has the proposals as COCO's results, {other} the images and objects")


def _publish(config, folder, evaluation):
    text = json.dumps(evaluation.summary, indent=2, allow_nan=False)
    files.write_atomically(folder / 'evaluation.json', text + '\n')
    results.save(folder / 'proposals.npz', evaluation.results)
    report.write_page(
        folder / 'report.html',
        title=folder.name,
        config=config.to_dict(),
        history=workdir.read_history(folder),
        evaluation=evaluation.summary,
        curves=evaluation.curves,
        sizes=evaluation.sizes,
        gallery=evaluation.gallery,
        misses=evaluation.misses,
    )
    print('\n'.join(table(evaluation.summary)))
    print(f'{folder / "report.html"} shows the curves and the best and worst images')


MODES = {
    'train': train_mode,
    'evaluate': evaluate_mode,
    'inspect': inspect_mode,
    'statistics': statistics_mode,
    'export': export_mode,
    'predict': predict_mode,
}
