"""Missed objects are counted by reason, size and shape; captions name the box that was lost."""

import numpy as np

from rpn_jax.evaluation.misses import REASONS
from rpn_jax.report import missed


def test_rows_are_counts_in_the_order_of_the_reasons_and_of_every_size_and_shape():
    sizes = (10, 10), (60, 30), (200, 200)
    misses = [{'reason': 'suppressed', 'size': np.array(size)} for size in sizes]
    misses.insert(1, {'reason': 'no_anchor', 'size': np.array((30, 60))})
    first, second = missed.rows(misses)
    assert (first['reason'], first['count'], first['share']) == ('no_anchor', 1, 0.25)
    assert (second['reason'], second['count'], second['share']) == ('suppressed', 3, 0.75)
    groups = {'small': 1, 'medium': 1, 'large': 1, 'wide': 1, 'square': 2, 'tall': 0}
    assert second['groups'] == groups
    assert first['groups']['tall'] == 1 and missed.rows([]) == []
    sizes = np.exp(np.random.default_rng(0).uniform(0, 7, (500, 2)))
    (row,) = missed.rows([{'reason': 'clipped', 'size': size} for size in sizes])
    for names in (('small', 'medium', 'large'), missed.SHAPES):
        assert sum(row['groups'][name] for name in names) == 500


def lost(reason, rank=-1, **changes):
    """Returns a missed object of that reason, which NMS did not suppress."""
    known = {'reason': reason, 'overlap': 0.614, 'rank': rank, 'anchor': 'level 2, 64 px'}
    return known | {'removed_by': None, 'remover': None} | changes


def test_captions_name_the_box_that_was_lost_its_rank_and_what_suppressed_it():
    for reason in REASONS:
        late = reason in ('below_pre_nms', 'suppressed', 'beyond_limit')
        text = missed.caption(lost(reason, rank=1233 if late else -1))
        assert text.endswith('IoU 0.61') and ('1,234' in text) == late and 'suppress' not in text
    miss = lost('suppressed', 40, removed_by='same_object', remover=11)
    expected = 'box 41 by score (anchor: level 2, 64 px): IoU 0.61, suppressed by proposal 12, '
    assert missed.caption(miss) == expected + 'which covers the same object'
    some = [miss, miss, lost('no_anchor'), lost('suppressed', removed_by='background')]
    assert missed.removers(some) == '2 cover the same object, 1 cover background'
    assert missed.removers([lost('clipped')]) == ''
