"""Missed objects are counted by reason, size and shape; captions name the box that was lost."""

import numpy as np
import pytest

from rpn_jax.evaluation.misses import REASONS
from rpn_jax.report import missed

MISSES = [
    {'reason': reason, 'size': np.array(size)}
    for reason, size in [
        ('suppressed', (10, 10)),
        ('no_anchor', (30, 60)),
        ('suppressed', (60, 30)),
        ('suppressed', (200, 200)),
    ]
]


def test_rows_are_counts_in_the_order_of_the_reasons():
    first, second = missed.rows(MISSES)
    assert (first['reason'], first['count'], first['share']) == ('no_anchor', 1, 0.25)
    assert (second['reason'], second['count'], second['share']) == ('suppressed', 3, 0.75)
    groups = {'small': 1, 'medium': 1, 'large': 1, 'wide': 1, 'square': 2, 'tall': 0}
    assert second['groups'] == groups
    assert first['groups']['tall'] == 1 and missed.rows([]) == []


def test_every_size_and_shape_falls_into_one_group():
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(0, 7, (500, 2)))
    (row,) = missed.rows([{'reason': 'clipped', 'size': size} for size in sizes])
    assert sum(row['groups'][name] for name in ('small', 'medium', 'large')) == 500
    assert sum(row['groups'][name] for name in missed.SHAPES) == 500


def lost(reason, rank=-1, **changes):
    """Returns a missed object of that reason, which NMS did not suppress."""
    known = {'reason': reason, 'overlap': 0.614, 'rank': rank}
    return known | {'removed_by': None, 'remover': None} | changes


@pytest.mark.parametrize('reason', REASONS)
def test_captions_name_the_box_that_was_lost_and_its_rank(reason):
    late = reason in ('below_pre_nms', 'suppressed', 'beyond_limit')
    text = missed.caption(lost(reason, rank=1233 if late else -1))
    assert text.endswith('IoU 0.61') and ('1,234' in text) == late and 'suppress' not in text


def test_a_suppressed_box_names_the_proposal_and_what_it_covers():
    miss = lost('suppressed', 40, removed_by='same_object', remover=11)
    expected = 'box 41 by score: IoU 0.61, suppressed by proposal 12, which covers the same object'
    assert missed.caption(miss) == expected
    some = [miss, miss, lost('no_anchor'), lost('suppressed', removed_by='background')]
    assert missed.removers(some) == '2 cover the same object, 1 cover background'
    assert missed.removers([lost('clipped')]) == ''
