"""The table, the sentences and the plots of anchor types say what the numbers say."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
from report_data import files_of, report_arguments, write_page

from rpn_jax.evaluation.anchor_coverage import BINS, EDGES
from rpn_jax.report import anchor_tables, findings


def _found(**changes):
    """Returns what evaluation.json says of two sizes, the larger one first, and three ratios."""
    anchors, positives = np.zeros((2, 2, BINS), int)
    anchors[1, 16], anchors[1, 17], anchors[0, 10] = 300, 100, 50
    positives[0, 10] = 10
    ious = np.full((2, 2, BINS), None)
    ious[:, 1, 16], ious[:, 1, 17], ious[:, 0, 10] = (0.01, 0.02), (0.05, 0.06), (0.5, 0.75)
    stretch = {'octaves': EDGES.tolist(), 'anchors': anchors.tolist()}
    stretch |= {'positives': positives.tolist()}
    stretch |= {'iou_before': ious[0].tolist(), 'iou_after': ious[1].tolist()}
    means = ('loss_objectness', 'loss_box', 'iou_before', 'iou_after', 'shift', 'scale')
    return {
        **{'sizes': [64, 16], 'aspect_ratios': [0.5, 1.0, 2.0], 'labelled': [900] * 6},
        **{'positives': [40, 10, 50, 20, 5, 4], 'recalled': [30, 0, 20, 10, 1, 2]},
        **{name: [0.5, None, 0.25, 0.125, 0.75, 0.625] for name in means},
        'recall_share': [30 / 63, 0, 20 / 63, 10 / 63, 1 / 63, 2 / 63],
        'stretch': stretch,
    } | changes


def _history():
    ious = [None, 0.5, 0.75, None, 0.25, None]
    types = {'positives': [0, 1, 3, 0, 1, 0], 'iou_before': ious, 'iou_after': ious}
    types |= {name: [0.1, 0.2, 0.1, 0.2, 0.1, 0.3] for name in ('loss_objectness', 'loss_box')}
    return [
        {'step': 10, 'anchors': types},
        {'step': 15, 'AR@10': 0.5},
        {'step': 20, 'anchors': types},
    ]


def test_rows_go_from_small_to_large_in_the_ratios_order():
    rows = anchor_tables.rows(_found())
    assert [(row['size'], row['ratio']) for row in rows] == [
        (size, ratio) for size in (16, 64) for ratio in (0.5, 1, 2)
    ]
    assert [row['positives'] for row in rows] == [10, 20, 4, 40, 50, 5]
    assert (rows[0]['width'], rows[0]['height'], rows[0]['bar']) == (22, 12, 0.2)
    nothing = anchor_tables.rows(_found(positives=[0] * 6))
    assert {row['bar'] for row in nothing} == {0}


def test_the_sentence_is_of_the_smallest_anchors_in_the_largest_objects():
    said = anchor_tables.sentence(_found())
    assert said == (
        'Anchors of 16 pixels inside objects 8 to 16 times as large: IoU 0.020 before regression, '
        '0.030 after; of these 400 anchors 0 were positive.'
    )
    # Anchors that learnt nothing are no witnesses; the larger ones lie in no larger object.
    assert anchor_tables.sentence(_found(positives=[40, 0, 50, 0, 5, 0])) is None


def test_types_that_find_nothing_are_a_finding():
    said = anchor_tables.finding(_found())
    assert said.startswith(
        '63 objects are recalled, but none by 1 of the 6 anchor types (16 px at 0.5): look at '
    )
    assert anchor_tables.finding(_found(recalled=[30, 1, 20, 10, 1, 2])) is None
    assert anchor_tables.finding(_found(recalled=[3, 0, 2, 1, 1, 2])) is None  # too few to tell
    unmatched = _found(positives=[400, 0, 50, 0, 5, 0])
    assert '455 anchors are positive, but none of 3 of the 6' in anchor_tables.finding(unmatched)
    arguments = report_arguments()
    evaluation = arguments['evaluation'] | {'anchors': _found()}
    assert (said, False) in findings.findings([], evaluation, arguments['sizes'])


def test_the_stretch_plot_weighs_sizes_by_their_anchors():
    title, svg, xlabel, series, names = anchor_tables.stretch_figure(_found())
    assert ElementTree.fromstring(svg).tag.endswith('svg') and len(names) == BINS
    assert '1/32' in svg.decode() and names[10] == '1 to 1.41'
    alone = series['16 px anchors: IoU after'][1]
    assert alone[16] == 0.02 and np.isnan(alone[10])
    assert series['all anchors: positive'][1][10] == 0.2
    nothing = {name: np.full((2, BINS), None).tolist() for name in ('iou_before', 'iou_after')}
    nothing |= {name: np.zeros((2, BINS)).tolist() for name in ('anchors', 'positives')}
    stretch = _found()['stretch'] | nothing
    assert anchor_tables.stretch_figure(_found(stretch=stretch)) is None
    assert anchor_tables.sentence(_found(stretch=stretch)) is None


def test_training_is_shown_by_size():
    _, svg, _, series = anchor_tables.training_figure(_history(), _found())
    assert ElementTree.fromstring(svg).tag.endswith('svg')
    assert series['positives: 64 px'][1].tolist() == [4, 4]
    assert series['iou_after: 64 px'][1].tolist() == [0.625, 0.625]
    np.testing.assert_allclose(series['loss_objectness: 16 px'][1], 0.7)
    assert anchor_tables.training_figure([{'step': 1}], _found()) is None


def test_the_report_has_a_section(tmp_path):
    arguments = report_arguments()
    evaluation = arguments['evaluation'] | {'anchors': _found()}
    page = write_page(tmp_path, evaluation=evaluation, history=_history())
    for text in ('Which anchors', '16 px, 0.5 22 × 12', '47.6%', 'inside objects 8 to 16 times'):
        assert text in page.text
    assert 'None' not in page.text and 'NaN' not in page.inside['script']
    lines = json.loads(page.inside['script'])['history']
    assert [set(line) for line in lines] == [{'step'}, {'step', 'AR@10'}, {'step'}]
    file = files_of(page)['what_anchors_of_each_size_learn_over_steps.json']
    assert file['columns']['step'] == [10, 20]
    assert file['columns']['iou_after: 64 px'] == [0.625, 0.625]
    assert 'Which anchors' not in write_page(tmp_path).text
