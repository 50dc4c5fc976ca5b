"""The sentences of a report say what the numbers say."""

import numpy as np
import pytest
from report_data import all_metrics, report_arguments, write_page

from rpn_jax.evaluation import misses
from rpn_jax.report import findings


def _sentences(**changes):
    arguments = report_arguments() | changes
    return findings.findings(arguments['history'], arguments['evaluation'], arguments['sizes'])


def test_findings_name_the_best_blind_baseline_and_the_ratio():
    (recall, good), (found, _), (loss, fell), (spread, wide) = _sentences()
    assert good and '2.2 times the 0.200 of gaussian_boxes' in recall
    assert '43.2% of the objects' in found and '98.7%' in found
    assert fell and 'fell from 0.046 to 0.002' in loss
    assert wide and 'not collapsed' in spread


def test_findings_warn_of_a_network_that_learned_nothing():
    arguments = report_arguments()
    arguments['evaluation']['proposals'] = all_metrics(0.19)
    flat = [{'step': i, 'loss': 0.8} for i in range(20)]
    sizes = arguments['sizes'] | {'proposals': np.full((50, 2), 128.0) + np.arange(50)[:, None] / 9}
    found = _sentences(evaluation=arguments['evaluation'], history=flat, sizes=sizes)
    assert [good for _, good in found] == [False] * 4
    text = ' '.join(sentence for sentence, _ in found)
    assert (
        'only 0.95 times' in text and 'did not fall' in text and 'collapsed to nearly one' in text
    )


@pytest.mark.parametrize(
    ('value', 'ratio', 'knows'),
    [(0.09, '0.45', 'less'), (0.2, '1.00', 'no more'), (0.21, '1.05', 'little more')],
)
def test_a_network_below_the_blind_knows_less_than_they(tmp_path, value, ratio, knows):
    """And the number above the sentence has the same digits."""
    arguments = report_arguments()
    arguments['evaluation']['proposals'] = all_metrics(value)
    (said, good), *_ = _sentences(evaluation=arguments['evaluation'])
    assert not good and f'only {ratio} times the 0.200 of gaussian_boxes, which' in said
    assert said.endswith(f': the network knows {knows} than where objects tend to be.')
    page = write_page(tmp_path, evaluation=arguments['evaluation'])
    assert f'Over blind guessing{ratio}×' in page.text


def test_bounds_are_no_blind_baselines():
    evaluation = report_arguments()['evaluation']
    assert findings.best_blind(evaluation, 'AR@100') == ('gaussian_boxes', 0.2)
    assert findings.best_blind(
        evaluation | {'baselines': {'oracle': all_metrics(1.0)}}, 'AR@100'
    ) == (
        None,
        None,
    )


def test_spread_ratio_compares_log_sizes():
    sides = np.exp(np.linspace(3, 5, 101))
    objects = np.stack([sides, sides], 1)
    narrow = np.exp(np.stack([np.linspace(3, 3.2, 101)] * 2, 1))
    assert findings.spread_ratio({'objects': objects, 'proposals': 9 * objects}) == pytest.approx(1)
    assert findings.spread_ratio({'objects': objects, 'proposals': narrow}) == pytest.approx(0.1)
    assert findings.spread_ratio({'objects': objects[:1], 'proposals': objects}) is None
    assert findings.spread_ratio({'objects': objects[[3] * 5], 'proposals': objects}) is None


def test_a_reason_of_misses_comes_with_what_to_try():
    assert findings.REMEDIES.keys() == misses.REASONS.keys()
    evaluation = report_arguments()['evaluation'] | {'missed': {'suppressed': 3, 'no_anchor': 1}}
    said, good = _sentences(evaluation=evaluation)[2]
    assert not good
    assert said == (
        '75% of the 4 objects missed at IoU 0.5: NMS removes what covers them: try a higher '
        'proposals.nms_iou.'
    )
    evaluation = evaluation | {'missed': dict.fromkeys(misses.REASONS, 0)}
    assert len(_sentences(evaluation=evaluation)) == 4
