"""Reads the files of a workdir beside its proposals; one that cannot be read counts as absent."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from flax.traverse_util import flatten_dict

from rpn_jax import files
from rpn_jax.training import workdir

_UNREADABLE = OSError, ValueError


class RunFiles(NamedTuple):
    """What is known of a run beside its proposals; empty or None where no file has it."""

    config: dict  # {'section.key': value}, of its evaluation where that had others
    history: list  # lines of metrics.jsonl: {'step' or the name of a scalar: number}
    missed: dict | None  # {reason: count}
    baselines: dict  # {baseline: {figure: number}}, of the same evaluation
    stale: str  # '', or of which other proposals the misses are: missed is then None


def read(run, results):
    """Returns the RunFiles of a workdir whose proposals are `results`; never raises."""
    config = {}
    with contextlib.suppress(RecursionError):
        config = flatten_dict(_json(run, 'config.json'), sep='.')
    evaluation = _json(run, 'evaluation.json')
    missed = evaluation.get('missed')
    if not isinstance(missed, dict) or not all(map(_is_number, missed.values())):
        missed = None
    step, dataset, stale = evaluation.get('step'), evaluation.get('dataset'), ''
    baselines = _baselines(evaluation.get('baselines'))
    if (missed or baselines) and (step, dataset) != (results.step, results.dataset):
        stale, missed, baselines, evaluation = f'of step {step} on {dataset}', None, {}, {}
    with contextlib.suppress(AttributeError, TypeError, ValueError):  # it is not what was written
        config |= {key: here for key, (_, here) in evaluation.get('other_keys', {}).items()}
    return RunFiles(config, _history(run), missed or None, baselines, stale)


def _baselines(content):
    """Returns {baseline: {figure: number}} of what is so in a json file."""
    sets = content.items() if isinstance(content, dict) else ()
    return {
        name: {figure: value for figure, value in own.items() if _is_number(value)}
        for name, own in sets
        if isinstance(own, dict)
    }


def note(run, files, results):
    """Returns a line on an evaluation.json that is of other proposals than those compared."""
    return (
        f'{run}: its evaluation.json is {files.stale}, its proposals.npz of step {results.step} on '
        f'{results.dataset}; its figures are left out; run --mode=evaluate again'
    )


def _is_number(value):
    """Returns whether a value of a json file is a number that float64 holds; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _json(run, name):
    """Returns the content of a workdir's json file, {} where there is none that can be read."""
    content = {}
    with contextlib.suppress(*_UNREADABLE):
        content = files.read_json(Path(run) / name)
    return content if isinstance(content, dict) else {}


def _history(run):
    lines = []
    with contextlib.suppress(*_UNREADABLE):
        lines = workdir.read_history(run)
    return [{key: value for key, value in line.items() if _is_number(value)} for line in lines]
