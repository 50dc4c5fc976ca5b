"""The sentences of a report agree with its figures."""

import numpy as np
import pytest
from report_data import all_metrics, anchor_section, report_arguments

from rpn_jax.evaluation import misses
from rpn_jax.report import findings

ARGUMENTS = report_arguments()
EVALUATION, SIZES = ARGUMENTS['evaluation'], ARGUMENTS['sizes']


def sentences(history=ARGUMENTS['history'], sizes=SIZES, **evaluation):
    return findings.findings(history, EVALUATION | evaluation, sizes)


def test_findings_name_the_best_blind_baseline_and_the_ratio():
    (recall, good), (found, _), (loss, fell), (spread, wide) = sentences()
    assert good and '2.2 times the 0.200 of gaussian_boxes' in recall
    assert '43.2% of the objects' in found and '98.7%' in found
    assert fell and 'fell from 0.046 to 0.002' in loss
    assert wide and 'not collapsed' in spread


def test_findings_warn_of_a_network_that_learned_nothing():
    flat = [{'step': i, 'loss': 0.8} for i in range(20)]
    one_size = {'proposals': np.full((50, 2), 128.0) + np.arange(50)[:, None] / 9}
    found = sentences(flat, SIZES | one_size, proposals=all_metrics(0.19))
    assert [good for _, good in found] == [False] * 4
    for (text, _), words in zip(
        found, ('only 0.95', '', 'did not fall', 'to nearly one'), strict=True
    ):
        assert words in text


@pytest.mark.parametrize(
    ('value', 'ratio', 'knows'),
    [(0.09, '0.45', 'less'), (0.2, '1.00', 'no more'), (0.21, '1.05', 'little more')],
)
def test_a_network_below_the_blind_knows_less_than_they(value, ratio, knows):
    flat = [{'step': i, 'loss': 0.8} for i in range(20)]
    (text, good), (_, recalls), *_ = sentences(flat, proposals=all_metrics(value))
    assert not good and f'only {ratio} times the 0.200 of gaussian_boxes, which' in text
    assert f'the network knows {knows} than' in text and recalls == (value > 0.2)


@pytest.mark.parametrize('value', [0.15, 0.2, 0.21])
def test_a_loss_that_fell_below_the_blind_is_the_first_thing_that_is_said(value):
    found = sentences(proposals=all_metrics(value))
    is_first = found[0][0].startswith('The training loss fell from 0.046 to 0.002, yet')
    assert is_first == (value <= 0.2) and found[0][1] is False
    assert sum('training loss' in text for text, _ in found) == 1


@pytest.mark.parametrize(('counts', 'expected'), [((1,), '1 step was'), ((2, 3), '5 steps were')])
def test_steps_that_were_skipped_are_counted(counts, expected):
    history = [*ARGUMENTS['history'], *({'step': 1, 'skipped': count} for count in counts)]
    (found,) = (each for each in sentences(history) if 'skipped' in each[0])
    assert found[0].startswith(f'{expected} skipped, as') and found[1] is False


def test_what_is_not_known_is_left_out_or_named():
    nothing = {'objects': [], 'proposals': []}
    (text, good), (loss, fell) = sentences([{'loss': 1}], nothing, proposals={'AR@10': None})
    assert 'is not defined' in text and 'Too little training' in loss and not good and not fell
    (text, good), (recall, _), *_ = sentences(baselines={})
    assert good and 'no blind baseline' in text and 'these anchors' not in recall


def test_the_headline_is_of_the_most_proposals_and_the_best_baseline_that_is_no_bound():
    assert findings.best_blind(EVALUATION, 'AR@100') == ('gaussian_boxes', 0.2)
    bound = EVALUATION | {'baselines': {'oracle': all_metrics(1.0)}}
    assert findings.best_blind(bound, 'AR@100') == (None, None)
    assert findings.headline_count(EVALUATION) == 100
    assert findings.headline_count({'proposals': {'AR@10': 0.5}}) == 10
    assert findings.headline_count({'proposals': {}}) == 100


def test_spread_ratio_compares_log_sizes():
    sides = np.exp(np.linspace(3, 5, 101))
    objects = np.stack([sides, sides], 1)
    narrow = np.exp(np.stack([np.linspace(3, 3.2, 101)] * 2, 1))
    assert findings.spread_ratio({'objects': objects, 'proposals': 9 * objects}) == pytest.approx(1)
    assert findings.spread_ratio({'objects': objects, 'proposals': narrow}) == pytest.approx(0.1)
    for few in (objects[:1], objects[[3] * 5]):
        assert findings.spread_ratio({'objects': few, 'proposals': objects}) is None


def test_misses_and_idle_anchors_are_findings_with_what_to_try():
    assert findings.REMEDIES.keys() == misses.REASONS.keys()
    text, good = sentences(missed={'suppressed': 3, 'no_anchor': 1})[2]
    assert not good and text.startswith('75% of the 4 objects')
    assert findings.REMEDIES['suppressed'] in text
    assert len(sentences(missed=dict.fromkeys(misses.REASONS, 0))) == 4
    (text, good) = sentences(anchors=anchor_section())[3]
    assert not good and '16 px at 0.5' in text


@pytest.mark.parametrize(('after', 'good'), [(0.8, True), (0.64, False), (0.5, False)])
def test_what_regression_gains_is_a_finding(after, good):
    own = {'positives': [1, 0, 3, 0, 0, 0], 'iou_before': [0.3, None, 0.7, None, None, None]}
    anchors = anchor_section(**own, iou_after=[after, None, after, None, None, None])
    (found,) = [each for each in sentences(anchors=anchors) if 'Regression' in each[0]]
    assert f'from 0.60 to {after:.2f}' in found[0] and found[1] == good
