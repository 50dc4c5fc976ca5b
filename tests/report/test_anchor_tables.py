"""The table, the sentences and the plots of anchor types have the numbers of the evaluation."""

import json

import numpy as np
import pytest
from report_data import anchor_section, texts_of

from rpn_jax.evaluation.anchor_coverage import BINS
from rpn_jax.report import anchor_tables

TYPES = [(level, size, ratio) for level, size in ((0, 16), (1, 64)) for ratio in (0.5, 1, 2)]
IOUS = [None, 0.5, 0.75, None, 0.25, None]
LOGGED = {'positives': [0, 1, 3, 0, 1, 0], 'iou_after': IOUS}
LOGGED |= {'loss_objectness': [0.1, 0.2, 0.1, 0.2, 0.1, 0.3]}
HISTORY = [{'step': 10, 'anchors': LOGGED}, {'step': 15}, {'step': 20, 'anchors': LOGGED}]


def columns(figure):
    """Returns the numbers of a plot of a page, and checks that the plot is an SVG."""
    assert texts_of(figure['svg'])
    return json.loads(figure['json'])['columns']


def test_rows_are_the_types_from_small_to_large():
    rows = anchor_tables.rows(anchor_section())
    names = [(f'{size} px', ratio) for size in (16, 64) for ratio in (0.5, 1, 2)]
    assert [(row['name'], row['ratio']) for row in rows] == names
    assert [row['positives'] for row in rows] == [10, 20, 4, 40, 50, 5]
    assert (rows[0]['width'], rows[0]['height'], rows[0]['bar']) == (22, 12, 0.2)
    assert {row['bar'] for row in anchor_tables.rows(anchor_section(positives=[0] * 6))} == {0}


def test_several_levels_are_named_and_kept_apart():
    anchors = anchor_section(types=TYPES, positives=[0, 0, 0, 300, 1, 1])
    rows = anchor_tables.rows(anchors)
    assert [row['name'] for row in rows] == ['level 0, 16 px'] * 3 + ['level 1, 64 px'] * 3
    assert [row['positives'] for row in rows] == [0, 0, 0, 300, 1, 1]
    assert 'of level 1, 64 px inside' in anchor_tables.sentence(anchors)
    assert 'level 0, 16 px at 0.5' in anchor_tables.finding(anchors)
    stretch, training = map(columns, anchor_tables.figures(HISTORY, anchors))
    assert 'level 1, 64 px anchors: IoU after' in stretch
    assert training['positives: level 0, 16 px'] == [4, 4]
    assert training['positives: level 1, 64 px'] == [1, 1]
    same = anchor_section(types=[(k // 3, 64, ratio) for k, (_, _, ratio) in enumerate(TYPES)])
    assert {row['name'] for row in anchor_tables.rows(same)} == {'level 0, 64 px', 'level 1, 64 px'}


def test_the_sentence_is_of_the_smallest_anchors_in_the_largest_objects():
    text = anchor_tables.sentence(anchor_section())
    assert '16 px inside objects 8 to 16 times' in text and 'these 400 anchors 0 were' in text
    assert 'IoU 0.020 before regression, 0.030 after' in text
    # Anchors that learnt nothing are not counted; the larger ones lie in no larger object.
    assert anchor_tables.sentence(anchor_section(positives=[40, 0, 50, 0, 5, 0])) is None


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({}, '1 of the 6 anchor types (16 px at 0.5) recall none of the 63'),
        ({'recalled': [30, 1, 20, 10, 1, 2]}, None),
        ({'recalled': [3, 0, 2, 1, 1, 2]}, None),  # too few to judge
        ({'positives': [400, 0, 50, 0, 5, 0]}, '3 of the 6 anchor types (16 px at 0.5, 16 px at'),
    ],
)
def test_types_that_match_or_recall_nothing_are_a_finding(changes, words):
    text = anchor_tables.finding(anchor_section(**changes))
    assert text is None if words is None else text.startswith(words)


def test_plots_weigh_sizes_by_their_anchors_and_show_training_by_size():
    figure, training = anchor_tables.figures(HISTORY, anchor_section())
    numbers = columns(figure)
    row = numbers['object / anchor'].index('1 to 1.41')
    assert '1/32' in texts_of(figure['svg']) and numbers['all anchors: positive'][row] == 0.2
    assert numbers['16 px anchors: IoU after'][row] is None
    assert [x for x in numbers['16 px anchors: IoU after'] if x] == [0.02, 0.06]
    numbers = columns(training)
    assert numbers['step'] == [10, 20]
    assert numbers['positives: 64 px'] == [4, 4] and numbers['iou_after: 64 px'] == [0.625, 0.625]
    np.testing.assert_allclose(numbers['loss_objectness: 16 px'], 0.7)
    nothing = dict.fromkeys(('iou_before', 'iou_after'), [[None] * BINS] * 2)
    nothing |= dict.fromkeys(('anchors', 'positives'), [[0] * BINS] * 2)
    empty = anchor_section(stretch=anchor_section()['stretch'] | nothing)
    assert anchor_tables.figures([{'step': 1}], empty) == []
    assert anchor_tables.sentence(empty) is None
