"""The numbers of a report: with their intervals, whole as files, of proposals that there can be."""

import numpy as np
import pytest
from report_data import IOUS, area_of, files_of, random_split, report_arguments, write_page

from rpn_jax.evaluation import metrics
from rpn_jax.report import report


def test_intervals_stand_beside_the_figures(tmp_path):
    evaluation = report_arguments()['evaluation']
    evaluation['intervals'] = {
        'proposals': dict.fromkeys(evaluation['proposals'], [0.411, 0.452]),
        'baselines': {'random_boxes': {'AR@10': [0.101, 0.14], 'AR@100': None}},
        'parts': {},
    }
    page = write_page(tmp_path, evaluation=evaluation)
    shown = len(report.columns(evaluation))
    assert page.text.count('0.411–0.452') == shown
    titles = [cell['title'] for cell in page.all('td') if 'title' in cell]
    assert titles == ['95 %: 0.411 to 0.452'] * shown + ['95 %: 0.101 to 0.140']
    assert '95 % intervals' in page.text and '95 % intervals' not in write_page(tmp_path).text


def test_each_plot_is_a_file_with_all_of_its_points(tmp_path):
    arguments = report_arguments()
    page = write_page(tmp_path)
    files = files_of(page)
    assert len(files) == sum(table.get('class') == 'numbers' for table in page.all('table')) == 9
    losses = files['loss_over_steps_as_logged_thin_and_smoothed.json']['columns']
    assert losses['step'] == [line['step'] for line in arguments['history']]
    assert losses['loss'][2] == float(f'{1 / 30:.6g}') and '50 points as JSON' in page.text
    sizes = files['sizes_of_all_objects_and_of_the_ten_best_proposals_of_each_image.json']
    widths = sizes['columns']['objects: width']
    assert len(widths) == 300 and len(sizes['columns']['proposals: height']) == 900
    np.testing.assert_allclose(widths, arguments['sizes']['objects'][:, 0], rtol=1e-5)
    over_iou = files['recall_over_iou_first_100_proposals.json']['columns']
    assert over_iou['IoU'] == list(IOUS) and over_iou['proposals'] == [0.4] * 10


def test_a_long_history_is_thinned(tmp_path):
    steps = range(20_000)
    history = [{'step': 1_000_003 + s, 'loss': 1 / (s + 1)} for s in steps]
    page = write_page(tmp_path, history=history)
    losses = files_of(page)['loss_over_steps_as_logged_thin_and_smoothed.json']['columns']
    assert (losses['step'][0], losses['step'][-1]) == (1_000_003, 1_020_002)
    assert len(losses['loss']) == 2000 and '2,000 of 20,000 points as JSON' in page.text
    assert (tmp_path / 'report.html').stat().st_size < 10**6


@pytest.mark.parametrize(('post_nms', 'numbers'), [(300, [100, 300]), (2000, [100, 1000])])
def test_no_more_proposals_are_shown_than_there_can_be(tmp_path, post_nms, numbers):
    boxes = np.array([[10.0, 10, 50, 50], [20, 20, 90, 90]])
    overlaps = metrics.measure(boxes, boxes, [1600, 4900])
    figures = metrics.summarise(overlaps, post_nms=post_nms)
    evaluation = report_arguments()['evaluation'] | {'proposals': figures, 'baselines': {}}
    curves = {'proposals': metrics.curves(overlaps, [1, 10], post_nms)}
    page = write_page(tmp_path, evaluation=evaluation, curves=curves)
    for n in (100, 300, 1000):
        assert (f'Recall over IoU, first {n} proposals' in page.text) == (n in numbers)
    names = ''.join(f'AR@{n}' for n in metrics.LIMITS if n <= post_nms)
    assert f'Boxes{names}recall@0.5/100' in page.text
    shown = report.columns(evaluation)
    assert {len(row['cells']) for row in report.metric_rows(evaluation)} == {len(shown)}


@pytest.mark.parametrize(
    ('post_nms', 'counts'),
    [(50, [50]), (300, [100, 300]), (1000, [100, 1000]), (9000, [100, 1000])],
)
def test_recall_over_iou_is_of_no_more_proposals_than_there_can_be(post_nms, counts):
    proposals, objects = random_split(1, most=150)
    overlaps = metrics.measure(proposals, objects, area_of(objects))
    drawn = metrics.curves(overlaps, [1], post_nms)
    assert [name for name in drawn if name.endswith('/iou')] == [f'recall@{n}/iou' for n in counts]
    for n in counts:
        assert drawn[f'recall@{n}/iou'][0] == metrics.recall(proposals, objects, 0.5, n)
