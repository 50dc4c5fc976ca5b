"""What --mode names: train, evaluate, inspect; each runs on a config and a workdir."""

import json

import jax

from rpn_jax import checkpoint, data, rpn, train, workdir
from rpn_jax.errors import InputError
from rpn_jax.evaluate import make_evaluate, table


def run(mode, config, folder):
    """Runs a mode of MODES by name."""
    MODES[mode](config, folder)


def train_mode(config, folder):
    """Trains or resumes, evaluates, and writes the report."""
    _, evaluation = train.train(config, folder)
    _publish(config, folder, evaluation)


def evaluate_mode(config, folder):
    """Evaluates the newest checkpoint and writes evaluation.json and the report anew."""
    stored = workdir.read_config(folder)
    if config.data.pixels == 'auto':
        config.data.pixels = stored.data.pixels
    state, step = checkpoint.restore(folder)
    model = rpn.build(config)
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, options.train_split, seed=config.seed)
    evaluate = make_evaluate(model, config, source.records, devices=jax.local_devices())
    variables = {k: state[k] for k in ('params', 'batch_stats') if state[k]}
    _publish(config, folder, evaluate(variables, step))


def _publish(config, folder, evaluation):
    text = json.dumps(evaluation.summary, indent=2, allow_nan=False)
    workdir.write_atomically(folder / 'evaluation.json', text + '\n')
    print('\n'.join(table(evaluation.summary)))


MODES = {'train': train_mode, 'evaluate': evaluate_mode}
