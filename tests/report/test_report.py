"""The report holds everything inside itself, and its tables, plots and texts have the figures."""

import json

import numpy as np
import pytest
from report_data import (
    EVIL,
    all_metrics,
    anchor_section,
    files_of,
    gallery_picture,
    missed_objects,
    parsed,
    report_arguments,
    whole_report,
    write_page,
)

from rpn_jax.diagnosis.finding import Finding
from rpn_jax.evaluation import metrics
from rpn_jax.report import report


@pytest.fixture(scope='module')
def page():
    return parsed(whole_report())


def test_numbers_facts_and_anchors_appear(page):
    for text in (
        *('A <small> run & more', 'drawn shapes', '1,234 images', '5,678 objects', 'step 500'),
        *('0.432', '0.123', '0.200', '0.810', '0.987', 'AR@1000', 'top10_max_iou'),
        *('best-0', 'worst-1', '1 of 1 recalled', 'covered at IoU 0.75', 'proposal 1, score 0.975'),
        *('model.dilations(1, 1, 2)', 'Over blind baselines2.2×', '95 % intervals'),
        *('16 px, 0.5 22 × 12', '47.6%', 'oracle_scores'),
    ):
        assert text in page.text
    photos = [image for image in page.all('img') if 'jpeg' in image['src'][:20]]
    assert len(photos) == 4 + 4 and len(page.all('img')) == 8 + 12


def test_the_best_blind_baseline_of_a_column_is_marked(page):
    shown = metrics.columns(all_metrics(0), sizes=False)
    cells = [cell.get('class') for cell in page.all('td') if cell.get('class') is not None]
    rows = [cells[i : i + len(shown)] for i in range(0, 6 * len(shown), len(shown))]
    marks = dict(zip(shown, zip(*rows, strict=True), strict=True))
    assert marks['ABO@100'] == ('below', '', '', 'best', '', '')
    assert {marks[name] for name in shown if name != 'ABO@100'} == {('', '', 'best', '', '', '')}
    assert page.text.count('0.411–0.452') == len(shown)
    titles = [cell['title'] for cell in page.all('td') if 'title' in cell]
    assert titles == ['95 %: 0.411 to 0.452'] * len(shown) + ['95 %: 0.101 to 0.140']


def test_rows_are_grouped_and_ranked():
    intervals = {'proposals': {'AR@10': [0.1, 0.2]}, 'parts': {}, 'baselines': {'oracle': {}}}
    parts = {'scores_alone': all_metrics(0.3), 'oracle_scores': all_metrics(0.6)}
    evaluation = report_arguments()['evaluation'] | {'parts': parts, 'intervals': intervals}
    rows = report.rows(evaluation)
    names = {'proposals': ['proposals'], 'ablation': ['oracle_scores', 'scores_alone']}
    names |= {'blind': ['gaussian_boxes', 'random_boxes'], 'bound': ['oracle', 'anchors']}
    expected = [(group, name) for group in names for name in names[group]]
    assert [(row['group'], row['name']) for row in rows] == expected
    assert rows[0]['intervals'] == {'AR@10': [0.1, 0.2]} and rows[3]['intervals'] == {}
    assert rows[1]['figures'] is parts['oracle_scores']


def test_boxes_lie_over_the_photo_and_missed_objects_have_captions(page):
    kinds = [box['class'] for box in page.all('rect')]
    counts = {'object object': 4, 'object difficult': 4, 'proposal': 40}
    counts |= {'object': 4, 'object other': 2}  # of the missed
    assert {kind: kinds.count(kind) for kind in counts} == counts
    first = next(box for box in page.all('rect') if box['class'] == 'object object')
    assert [float(first[key]) for key in ('x', 'y', 'width', 'height')] == [10, 20, 50, 50]
    assert {'0 0 120 90'} == {svg['viewbox'] for svg in page.all('svg')}
    assert page.text.count('suppressed by proposal 3, which covers another object') == 2
    for box in ('box 241 by score', 'proposal 241'):
        assert f'{box} (anchor: 64 px): IoU 0.75' in page.text
    assert 'Missed: beyond_limit' in page.text and 'no_anchor' not in page.text
    boxes = [b for b in page.all('rect') if b['class'] in ('lost', 'remover')]
    assert [b['class'] for b in boxes] == ['lost', 'remover'] * 2 + ['lost'] * 2
    assert boxes[0]['x'] == '12.0' and boxes[1]['x'] == '30.0'


def test_each_plot_is_a_file_with_all_of_its_points(page):
    values, files = report_arguments(), files_of(page)
    assert len(files) == sum(table.get('class') == 'numbers' for table in page.all('table')) == 12
    columns = {name: file['columns'] for name, file in files.items()}
    losses = columns['loss_over_steps_as_logged_thin_and_smoothed.json']
    assert losses['step'] == [line['step'] for line in values['history']]
    assert losses['loss'][2] == float(f'{1 / 30:.6g}') and '50 points as JSON' in page.text
    sizes = columns['sizes_of_all_objects_and_of_the_ten_best_proposals_of_each_image.json']
    sides = [sizes['objects: width'], sizes['objects: height']]
    np.testing.assert_allclose(np.transpose(sides), values['sizes']['objects'], rtol=1e-5)
    assert len(sizes['proposals: height']) == 900
    over_iou = columns['recall_over_iou_first_100_proposals.json']
    assert over_iou['IoU'] == metrics.THRESHOLDS.tolist() and over_iou['proposals'] == [0.4] * 10
    assert 'oracle_scores' not in over_iou
    recall = columns['recall_at_iou_0_5_over_number_of_proposals.json']
    assert recall['oracle'] == [None, 0.987, 0.987, 0.987, 0.987]  # at 10, 100, 300 and 1000
    learnt = columns['what_anchors_of_each_size_learn_over_steps.json']
    assert learnt['step'] == [10] and learnt['iou_after: 64 px'] == [0.5]
    data = json.loads(page.inside['script'])
    assert data['evaluation']['proposals']['AR@100'] == 0.4321
    assert data['history'][-1]['step'] == 500
    assert len(data['history']) == 50 and not any('anchors' in line for line in data['history'])


def test_names_from_outside_are_escaped(tmp_path):
    values = report_arguments() | {'title': EVIL, 'history': [], 'sizes': {}}
    values['evaluation']['dataset'] = EVIL
    values['evaluation']['baselines'][EVIL] = all_metrics(0.01)
    values['config'] = {EVIL: EVIL, 'deep': {EVIL: {'x': EVIL}}}
    values['curves'] = {EVIL: {'count': [1, 10], 'AR/count': [0.1, 0.2]}}
    values['gallery'] = [gallery_picture(EVIL, 'best')]
    misses = missed_objects()[:1]
    misses[0]['picture']['image_id'] = EVIL
    page = write_page(tmp_path, **values, misses=misses)
    assert len(page.all('script')) == 1
    assert all(image['src'].startswith('data:') for image in page.all('img'))
    assert page.text.count('<script>alert(1)</script>') >= 8
    assert EVIL in json.loads(page.inside['script'])['curves']


def test_an_empty_run_still_makes_a_page(tmp_path):
    evaluation = {'step': 0, 'dataset': 'none', 'images': 0, 'objects': 0}
    evaluation |= {'proposals': {'AR@10': None}, 'baselines': {'random_boxes': {}}}
    nothing = {'config': {}, 'history': [], 'sizes': {'objects': [[0, 4]]}, 'gallery': []}
    page = write_page(tmp_path, **nothing, evaluation=evaluation, curves={'proposals': None})
    assert page.all('img') == []
    assert not {'missed', 'ablations', 'anchors'} & {each.get('id') for _, each in page.tags}
    assert 'nan' not in page.text.lower().split() and 'None' not in page.text
    for text in ('No training history', 'No recall curves', 'No pictures', 'not defined'):
        assert text in page.text


def test_a_line_parts_levels_whose_anchors_are_of_the_same_size(tmp_path):
    values, types = report_arguments(), [[k // 3, 64, (0.5, 1, 2)[k % 3]] for k in range(6)]
    values['evaluation']['anchors'] = anchor_section(types=types)
    rows = write_page(tmp_path, **values).all('tr')
    assert sum(row.get('class') == 'next' for row in rows) == 1


def test_missing_keys_are_dashes_and_figures_are_of_the_proposals_there_can_be(tmp_path):
    values, boxes = report_arguments(), np.array([[10.0, 10, 50, 50], [20, 20, 90, 90]])
    overlaps = metrics.measure(boxes, boxes, [1600, 4900])
    own = metrics.summarise(overlaps, post_nms=50) | {'top10_max_iou': None}
    values['evaluation'] |= {'proposals': own, 'baselines': {'random_boxes': {'AR@10': None}}}
    values['history'] = [{'step': 1}, {'step': 2, 'loss': float('nan')}, {'loss': 3.0}, {}]
    curves = metrics.curves(overlaps, [1, 10], 50)
    values['curves'] = {'proposals': curves | {'recall@0.5/count': [None, 0.1]}}
    values['sizes'] = {'objects': [[0, 4], [3, 5]], 'proposals': [[2, 2], [np.nan, 2]]}
    values['gallery'][0] |= {'covered': 0.0, 'proposals': np.zeros((0, 4)), 'scores': []}
    page = write_page(tmp_path, **values)
    assert 'NaN' not in page.inside['script'] and '–' in page.text
    assert 'BoxesAR@10top10_max_iou' in page.text and 'first 50 proposals' in page.text
    assert 'The first 10 proposals of an image reach an average recall of 1.000' in page.text
    columns = {name: file['columns'] for name, file in files_of(page).items()}
    assert columns['recall_at_iou_0_5_over_number_of_proposals.json']['proposals'] == [0.1]
    sizes = columns['sizes_of_all_objects_and_of_the_ten_best_proposals_of_each_image.json']
    assert (sizes['objects: width'], sizes['proposals: width']) == ([3], [2])


def test_findings_are_the_verdict_then_what_is_grave_then_the_rest():
    found = [('verdict', True), ('small', False), ('fine', True)]
    doctor = [Finding(level, level, '', '', '') for level in ('info', 'warning', 'error')]
    ordered = report._ordered(found, doctor, ['other keys'])
    assert [(text.split(' Found')[0], label) for text, label in ordered] == [
        ('verdict', ''),
        ('error', 'error'),
        ('warning', 'warning'),
        ('small', 'warning'),
        ('fine', ''),
        ('other keys', 'note'),
        ('info', 'note'),
    ]
