"""Missed objects are counted by reason, size and shape, and shown."""

import numpy as np
import pytest

from rpn_jax.evaluation.misses import REASONS
from rpn_jax.report import missed

MISSES = [
    {'reason': reason, 'size': np.array(size), 'picture': picture}
    for reason, size, picture in [
        ('suppressed', (10, 10), {'n': 0}),
        ('no_anchor', (30, 60), {'n': 1}),
        ('suppressed', (60, 30), None),
        ('suppressed', (200, 200), {'n': 2}),
    ]
]


def test_rows_are_counts_in_the_order_of_the_reasons():
    first, second = missed.rows(MISSES)
    assert (first['reason'], first['count'], first['share']) == ('no_anchor', 1, 0.25)
    assert (second['reason'], second['count'], second['share']) == ('suppressed', 3, 0.75)
    assert second['groups'] == {
        'small': 1,
        'medium': 1,
        'large': 1,
        'wide': 1,
        'even': 2,
        'tall': 0,
    }
    assert first['groups']['tall'] == 1 and missed.rows([]) == []


def test_every_size_and_shape_falls_into_one_group():
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(0, 7, (500, 2)))
    (row,) = missed.rows([{'reason': 'clipped', 'size': size} for size in sizes])
    assert sum(row['groups'][name] for name in ('small', 'medium', 'large')) == 500
    assert sum(row['groups'][name] for name in missed.SHAPES) == 500


def test_examples_are_those_with_a_picture_a_few_of_each_reason():
    assert [miss['picture']['n'] for miss in missed.examples(MISSES)] == [1, 0, 2]
    many = [MISSES[0]] * 9
    assert len(missed.examples(many)) == missed.EXAMPLES


def lost(reason, rank=-1, **changes):
    """Returns a missed object of that reason, which NMS did not remove."""
    known = {'reason': reason, 'overlap': 0.614, 'rank': rank}
    return known | {'removed_by': None, 'remover': None} | changes


@pytest.mark.parametrize('reason', REASONS)
def test_captions_say_what_was_lost_and_where_it_ranks(reason):
    late = reason in ('below_pre_nms', 'suppressed', 'beyond_limit')
    said = missed.caption(lost(reason, rank=1233 if late else -1))
    assert said.endswith('IoU 0.61') and ('1,234' in said) == late and 'remove' not in said


@pytest.mark.parametrize(
    ('removed_by', 'place'),
    [
        ('same_object', 'the same object'),
        ('another_object', 'another object'),
        ('background', 'background'),
    ],
)
def test_a_removed_box_says_by_which_proposal_and_on_what(removed_by, place):
    miss = lost('suppressed', 40, removed_by=removed_by, remover=11)
    expected = f'box 41 by score: IoU 0.61, removed by proposal 12, which is on {place}'
    assert missed.caption(miss) == expected
    some = [miss, miss, lost('no_anchor'), lost('suppressed', removed_by='background')]
    if removed_by != 'background':
        assert missed.removers(some) == f'2 on {place}, 1 on background'
    assert missed.removers([lost('clipped')]) == ''
