"""Runs that one process and several must end alike, and the program that a process of several is.

`python tests/host_cases.py HOST:PORT PROCESSES PROCESS FOLDER CASE ..` trains cases, one by one.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np

from rpn_jax.training import hosts

if __name__ == '__main__':  # before helpers.py, which computes something
    jax.config.update('jax_disable_most_optimizations', True)
    hosts.start(sys.argv[1], *map(int, sys.argv[2:4]))

from data_files import VOC_SIZES, write_voc  # noqa: E402
from helpers import lines_of, tiny_config  # noqa: E402

from rpn_jax.commands import evaluator  # noqa: E402
from rpn_jax.training import loop  # noqa: E402

PICTURES = 18
PLAIN = {'model__width': 4, 'evaluation__every': 0, 'steps': 20, 'checkpoint__every': 10}
CASES = {
    'frozen': {'model__norm': 'frozen', 'model__frozen_stages': 2},
    'group': {'model__norm': 'group'},
    'batch': {'evaluation__every': 10, 'log_every': 3, 'checkpoint__best': 'AR@10'},
    'canvases': {
        **{'data__source': 'voc', 'data__train_split': '', 'data__resize': 'short_side'},
        **{'data__image_size': 48, 'data__max_size': 96, 'data__canvases': 3},
    },
    'resumed by one': {'steps': 10, 'optim__schedule_steps': 20},
    'resumed by two': {'optim__schedule_steps': 20},
    'resumed by four': {'optim__schedule_steps': 20},
}


def config_of(name, folder, **changes):
    """Returns the config of a case; pictures are in the folder."""
    return tiny_config(**PLAIN | CASES[name] | {'data__path': str(folder / 'VOC')} | changes)


def write_pictures(folder):
    """Writes pictures upright and lying, more than a batch of either."""
    voc = write_voc(folder / 'VOC')
    for number in range(len(VOC_SIZES), PICTURES):
        for name in ('Annotations/{:06}.xml', 'JPEGImages/{:06}.jpg'):
            shutil.copy(voc / name.format(number % len(VOC_SIZES)), voc / name.format(number))


def train(name, folder, run, devices=None, **changes):
    """Trains a case in the workdir folder / run; returns the state and the Evaluation, if any."""
    config = config_of(name, folder, **changes)
    make = evaluator(config, folder / run) if config.evaluation.every else None
    return loop.train(config, folder / run, make, devices=devices)


def losses(run):
    """Returns the losses of a workdir's lines."""
    return np.array([line['loss'] for line in lines_of(run)])


def main(folder, names):
    """Trains cases as one process of several; process 0 writes what its Evaluation is."""
    for name in names:
        evaluation = train(name, folder, name)[1]
        if evaluation:
            (folder / name / 'evaluation.json').write_text(json.dumps(evaluation.summary))
    hosts.exchange('done')
    hosts.leave(0)


if __name__ == '__main__':
    main(Path(sys.argv[4]), sys.argv[5:])
