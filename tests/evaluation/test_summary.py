"""The summary of an evaluation: its intervals, and its table in text."""

import re

import pytest

from rpn_jax.evaluation import protocols
from rpn_jax.evaluation.ablations import ABLATIONS
from rpn_jax.evaluation.summary import GROUPS, table


def test_the_columns_of_the_table_stand_below_each_other(evaluation):
    summary = evaluation.summary
    head, names, *rows, missed, by_anchors = table(summary)
    bounds = summary['intervals']['proposals']['AR@10']
    assert rows.pop(1).split()[:2] == ['interval', f'±{(bounds[1] - bounds[0]) / 2:.3f}']
    assert re.fullmatch(r'found by anchors of 16 px: \d+%; 32 px: \d+%', by_anchors)
    total = sum(summary['missed'].values())
    assert missed.startswith(f'missed at IoU 0.5 and 100 proposals: {total} (') and total > 0
    assert head == f'shapes/val, step 3: 6 images, {summary["objects"]} objects'
    titles = [rows.pop(rows.index(title)) for title in GROUPS.values()]
    assert len(titles) == 3 and {len(line) for line in rows} == {len(names)}
    ends = [match.end() for match in re.finditer(r'\S+', names)]
    assert len(ends) == 8
    for row in rows:
        assert [match.end() for match in re.finditer(r'\S+', row)][1:] == ends
    assert [row.split()[0] for row in rows] == ['proposals', *ABLATIONS, *summary['baselines']]
    assert rows[0].split()[1] == f'{summary["proposals"]["AR@10"]:.3f}'


def test_anchors_of_several_levels_are_named_by_both(evaluation):
    anchors = evaluation.summary['anchors']
    types = [[int(size > 16), size, ratio] for _, size, ratio in anchors['types']]
    *_, line = table(evaluation.summary | {'anchors': anchors | {'types': types}})
    assert re.fullmatch(r'found by anchors of level 0, 16 px: \d+%; level 1, 32 px: \d+%', line)


def test_intervals_are_those_of_the_results(evaluation):
    """On the same resamples as those of every protocol, here where both have the same pixels."""
    intervals, summary = evaluation.summary['intervals'], evaluation.summary
    assert intervals.keys() == {'proposals', 'baselines', 'parts'}
    assert intervals['proposals'].keys() == summary['proposals'].keys()
    for group in ('baselines', 'parts'):
        assert intervals[group].keys() == summary[group].keys()
        assert all(intervals[group][n].keys() == summary[group][n].keys() for n in summary[group])
    expected = protocols.table(evaluation.results, ('rpn_jax',))['rpn_jax']
    for figure, bounds in intervals['proposals'].items():
        own = summary['proposals'][figure], *(bounds or (None, None))
        assert tuple(expected[figure]) == pytest.approx(own, abs=1e-6), figure
    low, high = intervals['baselines']['oracle']['AR@10']
    assert low <= summary['baselines']['oracle']['AR@10'] <= high and low < high
    assert intervals['baselines']['oracle']['top10_max_iou'] is None
    low, high = intervals['parts']['random_order']['ABO@100']
    assert low < summary['parts']['random_order']['ABO@100'] < high
