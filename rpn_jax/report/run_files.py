"""Reads what a workdir holds beside its proposals; what is not as expected is left out."""

import json
from pathlib import Path
from typing import NamedTuple

from rpn_jax.training import workdir


class RunFiles(NamedTuple):
    """What is known of a run beside its proposals; empty or None where no file says it."""

    config: dict  # {'section.key': value}
    history: list  # lines of metrics.jsonl: {'step' or the name of a scalar: number}
    missed: dict | None  # {reason: count}
    stale: str  # why missed is not that of the proposals, '' where it is


def read(run, stored):
    """Reads the RunFiles of a workdir whose proposals are `stored`; never raises."""
    found = _json(run, 'evaluation.json')
    missed = found.get('missed')
    if not isinstance(missed, dict) or not all(map(_is_number, missed.values())):
        missed = None
    step, dataset, stale = found.get('step'), found.get('dataset'), ''
    if missed and (step, dataset) != (stored.step, stored.dataset):
        stale, missed = f'of step {step} on {dataset}', None
    return RunFiles(_flat(_json(run, 'config.json')), _history(run), missed or None, stale)


def note(run, files, stored):
    """Returns a line on an evaluation.json of other proposals than those that are compared."""
    return (
        f'{run}: its evaluation.json is {files.stale}, its proposals.npz of step {stored.step} on '
        f'{stored.dataset}; its misses are left out: evaluate it anew'
    )


def _is_number(value):
    """Says whether a value of a json file is a number that float64 holds; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _flat(config, prefix=''):
    """Returns {'section.key': value}."""
    found = {}
    for key, value in config.items():
        inner = _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {}
        found |= inner or {f'{prefix}{key}': value}
    return found


def _json(run, name):
    """Returns what a workdir's json file holds, {} where there is none that can be read."""
    try:
        found = json.loads((Path(run) / name).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _history(run):
    try:
        lines = workdir.read_history(run)
    except (OSError, ValueError, RecursionError):
        return []
    lines = [line for line in lines if isinstance(line, dict)]
    return [{key: value for key, value in line.items() if _is_number(value)} for line in lines]
