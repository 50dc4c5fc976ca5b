"""Runs side by side: their figures, by how much they differ, and whether that is beyond noise."""

import re
from pathlib import Path

import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.evaluation import protocols, results
from rpn_jax.evaluation.bootstrap import differences

FIGURES = (
    *('AR@10', 'AR@100', 'AR@300', 'AR@1000'),
    *('AR@100/small', 'AR@100/medium', 'AR@100/large'),
    *('recall@0.5/100', 'recall@0.7/100', 'ABO@100', 'top10_max_iou'),
)


def load(folders):
    """Loads the proposals.npz of workdirs: {run: Stored}.

    Raises InputError where there are not two runs, or where their images or objects differ.
    """
    if len(folders) < 2 or len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise InputError('--mode=compare needs --runs=A,B,..: two workdirs or more, each once')
    found = [results.load(_file(Path(folder))) for folder in folders]
    for folder, other in zip(folders[1:], found[1:], strict=True):
        _check_same(folders[0], found[0], folder, other)
    return dict(zip(map(str, folders), found, strict=True))


def tally(runs):
    """Tallies FIGURES of each run, {run: {figure: Tally}}; runs are {run: Stored}.

    A figure that a run cannot have, for want of so many proposals, is left out.
    """
    most = min(max(map(len, each.proposals), default=0) for each in runs.values())
    names = [name for name in FIGURES if _count(name) <= most]
    tallies = {run: protocols.rpn_jax(each) for run, each in runs.items()}
    return {run: {name: each[name] for name in names} for run, each in tallies.items()}


def compare(tallies, base=None):
    """Compares runs: {run: {figure: {value, difference, low, high}}}.

    Differences are against `base`, by default the first run, with their 95 % intervals over images;
    tallies are as `tally` returns them.
    """
    first = tallies[base or next(iter(tallies))]
    return {run: _row(own, first) for run, own in tallies.items()}


def is_beyond(figure):
    """Says whether the interval of a figure's difference leaves out 0."""
    return figure['low'] is not None and (figure['low'] > 0 or figure['high'] < 0)


def shown(compared):
    """Returns the figures that are defined for any run."""
    names = next(iter(compared.values()))
    return [f for f in names if any(row[f]['value'] is not None for row in compared.values())]


def signed(value):
    """Writes a difference with its sign, of which a rounded 0 has none of its own: +0.000."""
    return f'{round(value, 3) + 0.0:+.3f}'


def lines(compared):
    """Returns a table of text: a figure per line, a run per column, * beyond noise."""
    runs = list(compared)
    width = max(24, *(len(Path(run).name) + 2 for run in runs))
    said = [f'{"":16}' + ''.join(f'{Path(run).name:>{width}}' for run in runs)]
    for figure in shown(compared):
        cells = [_cell(compared[run][figure], run == runs[0]) for run in runs]
        said.append(f'{figure:16}' + ''.join(f'{cell:>{width}}' for cell in cells))
    first = Path(runs[0]).name
    return [*said, f'differences from {first}; * where the 95 % interval over images leaves out 0']


def _row(own, first):
    row = {}
    for name, change in differences(own, first).items() if own else ():
        row[name] = {
            'value': own[name].value,
            'difference': change.value,
            'low': change.low,
            'high': change.high,
        }
    return row


def _cell(figure, is_first):
    if figure['value'] is None:
        return '-'
    if is_first or figure['low'] is None:
        return f'{figure["value"]:.3f}'
    beyond = '*' if is_beyond(figure) else ' '
    half = (figure['high'] - figure['low']) / 2
    return f'{figure["value"]:.3f}  {signed(figure["difference"])} ±{half:.3f}{beyond}'


def _count(name):
    """Returns the number of proposals that a figure is taken at."""
    return max(map(int, re.findall(r'\d+', name)))


def _file(folder):
    path = folder / 'proposals.npz'
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder; --runs names workdirs, of finished runs')
    if not path.exists():
        raise InputError(f'{path}: no such file; write it by --mode=evaluate --workdir={folder}')
    return path


def _check_same(folder, first, other_folder, other):
    """Raises InputError unless two runs were evaluated on the same images and objects."""
    same = list(first.image_ids) == list(other.image_ids) and all(
        np.array_equal(a, b)
        for one, another in ((first.objects, other.objects), (first.kinds, other.kinds))
        for a, b in zip(one, another, strict=True)
    )
    if not same:
        raise InputError(
            f'{folder} and {other_folder}: evaluated on other images or objects '
            f'({first.dataset}, {other.dataset}); evaluate them on the same split'
        )
