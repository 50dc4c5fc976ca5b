"""Compare runs: their figures, their differences, and whether these are beyond noise."""

import os
import re
from pathlib import Path

import numpy as np

from rpn_jax.errors import InputError
from rpn_jax.evaluation import metrics, protocols, results
from rpn_jax.evaluation.bootstrap import differences

FIGURES = metrics.COLUMNS


def load(folders):
    """Returns the Results of workdirs, from their proposals.npz: {run: Results}.

    Raises InputError where there are not two runs, or where their images or objects differ.
    """
    if len(folders) < 2 or len({*map(os.path.realpath, folders)}) < len(folders):
        raise InputError('--mode=compare needs --runs=A,B,..: two workdirs or more, each once')
    loaded = [results.load(_file(Path(folder))) for folder in folders]
    for folder, other in zip(folders[1:], loaded[1:], strict=True):
        _check_same(folders[0], loaded[0], folder, other)
    return dict(zip(map(str, folders), loaded, strict=True))


def tally(runs):
    """Returns the Tallies of FIGURES of each run, {run: {figure: Tally}}; runs are {run: Results}.

    Figures of more proposals than an image of any run has are left out.
    """
    most = min(max(map(len, each.proposals), default=0) for each in runs.values())
    names = [name for name in FIGURES if _count(name) <= most]
    tallies = {run: protocols.rpn_jax(each) for run, each in runs.items()}
    return {run: {name: each[name] for name in names} for run, each in tallies.items()}


def compare(tallies, base=None):
    """Returns the figures of runs and their differences from the run `base`, by default the first.

    {run: {figure: {value, difference, low, high}}}: low and high bound the 95 % interval of the
    difference over images. tallies are as `tally` returns them.
    """
    first = tallies[base or next(iter(tallies))]
    return {
        run: {
            name: dict(value=own[name].value, difference=d.value, low=d.low, high=d.high)
            for name, d in differences(own, first).items()
        }
        for run, own in tallies.items()
    }


def is_beyond(figure):
    """Returns whether the interval of a figure's difference excludes 0."""
    return figure['low'] is not None and (figure['low'] > 0 or figure['high'] < 0)


def shown(compared):
    """Returns the figures that are defined for any run."""
    names = next(iter(compared.values()))
    return [f for f in names if any(row[f]['value'] is not None for row in compared.values())]


def signed(value):
    """Returns a difference as text with its sign; what rounds to 0 is +0.000."""
    return f'{round(value, 3) + 0.0:+.3f}'


def lines(compared):
    """Returns a table of text: a figure per line, a run per column, * beyond noise."""
    runs = list(compared)
    width = max(24, *(len(name_of(run)) + 2 for run in runs))
    table = [f'{"":16}' + ''.join(f'{name_of(run):>{width}}' for run in runs)]
    for figure in shown(compared):
        cells = [_cell(compared[run][figure], run == runs[0]) for run in runs]
        table.append(f'{figure:16}' + ''.join(f'{cell:>{width}}' for cell in cells))
    first = name_of(runs[0])
    return [*table, f'differences from {first}; * where the 95 % interval over images excludes 0']


def name_of(run):
    """Returns how a run is called: by the name of its folder, where that has one."""
    return Path(run).name or str(run)


def _cell(figure, is_first):
    if figure['value'] is None:
        return '-'
    if is_first or figure['low'] is None:
        return f'{figure["value"]:.3f}'
    beyond = '*' if is_beyond(figure) else ' '
    half = (figure['high'] - figure['low']) / 2
    return f'{figure["value"]:.3f}  {signed(figure["difference"])} ±{half:.3f}{beyond}'


def _count(name):
    """Returns the number of proposals of a figure: 100 of AR@100/small."""
    return max(map(int, re.findall(r'\d+', name)))


def _file(folder):
    path = folder / 'proposals.npz'
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder; --runs names workdirs, of finished runs')
    if not path.exists():
        raise InputError(f'{path}: no such file; write it by --mode=evaluate --workdir={folder}')
    return path


def _check_same(folder, first, other_folder, other):
    """Raises InputError unless two runs have the same images and ground truth."""
    truths = [[*each.gt_boxes, *each.gt_kinds] for each in (first, other)]
    same = list(first.image_ids) == list(other.image_ids)
    if not same or not all(map(np.array_equal, *truths)):
        raise InputError(
            f'{folder} and {other_folder}: evaluated on other images or objects '
            f'({first.dataset}, {other.dataset}); evaluate them on the same split'
        )
