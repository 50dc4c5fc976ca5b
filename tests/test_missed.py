"""Missed objects are counted by reason, size and shape, and shown."""

import numpy as np

from rpn_jax.analysis import missed

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
