"""Trains a forum's recipe that learnt slowly, then mends it one change at a time.

Each run has the changes of the run before it and one more, and sees as many images. The last has
them all and a tenth of the steps. What is left of the words goes to every run: the data, the
weights, the image size. A program that was interrupted goes on where it was.

    python -m experiments.forum_recipe --output=runs/forum --steps=420 \
        --config.data.source=voc --config.data.path=VOCdevkit/VOC2007 --config.model.depth=50
"""

import sys
from pathlib import Path
from typing import NamedTuple

from experiments.program import Parser, at_least, run
from rpn_jax import cli, files
from rpn_jax.training import workdir

SHOWN = 'AR@10', 'AR@100', 'AR@1000', 'top10_max_iou'


class Change(NamedTuple):
    """A change of the recipe, and what shows on the first day that it is needed."""

    keys: dict
    lesson: str


CHANGES = {
    'published': Change(
        {},
        'Both losses fall, and boxes that never see the image find more: look at those first.',
    ),
    'anchors': Change(
        {'anchors.sizes': (32, 64, 128, 256, 512)},
        'Of all objects, count those that an anchor overlaps by half: --mode=anchors.',
    ),
    'optimizer': Change(
        {
            'optim.optimizer': 'sgd',
            'optim.learning_rate': 0.005,
            'optim.weight_decay': 5e-4,
            'optim.warmup_steps': 10,
        },
        'Adam moves every weight by about the learning rate at each step: 0.01 is a rate for SGD.',
    ),
    'pixels': Change(
        {'data.mean': (), 'data.std': ()},
        'Pretrained weights expect the pixels that they were trained on: --mode=inspect.',
    ),
    'norm': Change(
        {'model.norm': 'frozen', 'model.frozen_stages': 3},
        'Two images are too few for the statistics of batch norm: keep the pretrained ones.',
    ),
    'background': Change(
        {'targets.negative_iou': 0.3},
        'What overlaps an object by 0.2 to 0.3 is the background that is hard to tell from it.',
    ),
    'schedule': Change(
        {'optim.schedule': 'cosine'},
        'A learning rate that falls to 0 settles what the steps before it have found.',
    ),
}


def main(argv):
    """Trains what is not trained yet, prints the figures, and writes the page of all runs."""
    parser = Parser('experiments.forum_recipe', __doc__)
    parser.add_argument('--output', type=Path, default='runs/forum', help='folder of the runs')
    parser.add_argument('--steps', type=at_least(10), default=420, help='of every run but the last')
    arguments, words = parser.parse_known_args(argv)
    runs = {}
    for name, steps, keys in recipes(arguments.steps):
        runs[name] = folder = arguments.output / name
        changed = [f'--config.{key}={value}' for key, value in keys.items()]
        given = ['--config=forum_recipe', f'--workdir={folder}', f'--config.steps={steps}']
        print(f'{name}: {" ".join(changed) or "the recipe"}', flush=True)
        if code := cli.main(['train', *given, *changed, *words]):
            return code
    print(*table(runs), sep='\n')
    print(*(f'{name}: {change.lesson}' for name, change in CHANGES.items()), sep='\n')
    page = arguments.output / 'compare.html'
    return cli.main(['compare', f'--runs={",".join(map(str, runs.values()))}', f'--output={page}'])


def recipes(steps):
    """Yields name, steps and the config's keys of each run."""
    keys = {}
    for i, (name, change) in enumerate(CHANGES.items()):
        keys = keys | change.keys
        yield f'{i}_{name}', steps, keys
    yield f'{len(CHANGES)}_tenth_of_the_steps', steps // 10, keys


def table(runs):
    """Yields a line for each of {name: workdir}, then those of boxes that never see the image."""
    width = max(map(len, runs))
    losses = 'loss_objectness', 'loss_box'
    yield '  '.join([f'{"":{width}}', *(f'{name:>16}' for name in losses + SHOWN)])
    for name, folder in runs.items():
        lines = [line for line in workdir.read_history(folder) if 'loss' in line]
        fall = [f'{lines[0][key]:.3f} -> {lines[-1][key]:.3f}' for key in losses]
        evaluation = files.read_json(folder / 'evaluation.json')
        yield _row(f'{name:{width}}', fall, evaluation['proposals'])
    for name in ('random_boxes', 'gaussian_boxes'):
        yield _row(f'{name:{width}}', ['', ''], evaluation['baselines'][name])


def _row(name, cells, figures):
    return '  '.join([name, *(f'{x:>16}' for x in [*cells, *(f'{figures[f]:.3f}' for f in SHOWN)])])


if __name__ == '__main__':
    sys.exit(run(main, None))
