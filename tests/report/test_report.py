"""The report carries everything inside itself, says what the numbers say, and never lies by NaN."""

import base64
import json
import os
import re

import cv2
import numpy as np
import pytest
from report_data import (
    all_curves,
    all_metrics,
    gallery_picture,
    missed_objects,
    report_arguments,
    write_page,
)

from rpn_jax.report import findings, report


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp('report'))


def test_everything_is_inside_the_page(page):
    for tag, attributes in page.tags:
        assert tag not in ('link', 'iframe', 'object', 'embed', 'base')
        assert attributes.get('type') == 'application/json' or tag != 'script'
        for name in ('src', 'href', 'xlink:href', 'srcset', 'poster', 'action'):
            value = attributes.get(name, '#')
            assert value.startswith(('data:', '#')), (tag, name, value[:80])
    style = page.inside['style']
    assert 'url(' not in style and '@import' not in style and 'http' not in style


def test_every_picture_decodes_and_has_words(page):
    pictures = page.all('img')
    assert len(pictures) == 9 + 12
    for picture in pictures:
        kind, data = picture['src'].split(';base64,')
        data = base64.b64decode(data, validate=True)
        assert picture['alt'].strip()
        if kind == 'data:image/jpeg':
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert image.shape == (90, 120, 3) and abs(int(image.mean()) - 200) < 3
        else:
            assert kind == 'data:image/svg+xml' and data.startswith(b'<svg')
            assert not re.search(rb'(href|src)="(?!#)', data)


def test_links_lead_to_sections(page):
    ids = {attributes.get('id') for _, attributes in page.tags}
    links = {link['href'].removeprefix('#') for link in page.all('a') if 'download' not in link}
    assert len(links) >= 7 and links <= ids


def test_numbers_and_facts_appear(page):
    for text in (
        'A <small> run & more',
        'drawn shapes',
        '1,234 images',
        '5,678 objects',
        'step 500',
    ):
        assert text in page.text
    for text in ('0.432', '0.123', '0.200', '0.810', '0.987', 'AR@1000', 'top10_max_iou'):
        assert text in page.text
    for text in ('best-0', 'worst-5', '1 of 1 recalled', 'top-10 IoU 0.75'):
        assert text in page.text
    assert 'model.dilations(1, 1, 2)' in page.text
    assert 'proposal 1, score 0.975' in page.text
    assert 'Warning' not in page.text


def test_boxes_lie_over_the_photo_in_its_own_pixels(page):
    boxes = [box for box in page.all('rect') if box['class'] == 'object object']
    assert len(boxes) == 12
    place = [float(boxes[0][key]) for key in ('x', 'y', 'width', 'height')]
    assert place == [10, 20, 50, 50]
    assert sum(box['class'] == 'object difficult' for box in page.all('rect')) == 12
    assert sum(box['class'] == 'proposal' for box in page.all('rect')) == 120
    assert {'0 0 120 90'} == {svg['viewbox'] for svg in page.all('svg')}


def test_data_of_the_plots_is_there(page):
    data = json.loads(page.inside['script'])
    assert data['evaluation']['proposals']['AR@100'] == 0.4321
    assert len(data['history']) == 50 and data['history'][-1]['step'] == 500
    assert data['curves']['proposals']['iou'][0] == 0.5 and data['curves']['quadrants'] is None
    assert sum(table.get('class') == 'numbers' for table in page.all('table')) == 9


def test_ids_from_outside_are_escaped(tmp_path):
    evil = '<script>alert(1)</script>"\'><img src=http://x>'
    arguments = report_arguments()
    arguments['evaluation']['dataset'] = evil
    arguments['evaluation']['baselines'][evil] = all_metrics(0.01)
    arguments['config'] = {evil: evil, 'deep': {evil: {'x': evil}}}
    arguments['curves'][evil] = all_curves(0.02)
    arguments['gallery'] = [gallery_picture(evil, 'best')]
    page = write_page(tmp_path, **arguments | {'title': evil})
    assert len(page.all('script')) == 1
    assert all(image['src'].startswith('data:') for image in page.all('img'))
    assert page.text.count('<script>alert(1)</script>') >= 7
    assert evil in json.loads(page.inside['script'])['curves']


def test_an_empty_run_still_makes_a_page(tmp_path):
    evaluation = {'step': 0, 'dataset': 'none', 'images': 0, 'objects': 0}
    page = write_page(
        tmp_path,
        config={},
        history=[],
        evaluation=evaluation | {'proposals': {'AR@10': None}, 'baselines': {'random_boxes': {}}},
        curves={'proposals': None},
        sizes={},
        gallery=[],
    )
    assert page.all('img') == []
    assert 'nan' not in page.text.lower().split() and 'None' not in page.text
    for text in (
        'No training history',
        'No recall curves',
        'No pictures',
        'No objects were evaluated',
    ):
        assert text in page.text


def test_missing_keys_and_none_are_dashes_not_errors(tmp_path):
    arguments = report_arguments()
    arguments['evaluation']['proposals'] |= {'AR@10': None, 'top10_max_iou': None}
    del arguments['evaluation']['baselines']['random_boxes']['ABO@100']
    arguments['history'] = [{'step': 1}, {'step': 2, 'loss': float('nan')}, {'loss': 3.0}, {}]
    arguments['curves']['proposals'] |= {
        'recall@1000/iou': None,
        'AR/count': [None, 0.1, 0.2, None],
    }
    arguments['gallery'][0] |= {'top_iou': None, 'proposals': np.zeros((0, 4)), 'scores': []}
    page = write_page(tmp_path, **arguments)
    assert 'Too little training was recorded' in page.text
    assert 'NaN' not in page.inside['script']
    assert '–' in page.text


def test_few_proposals_move_the_headline_to_fewer(tmp_path):
    arguments = report_arguments()
    for metrics in (
        arguments['evaluation']['proposals'],
        *arguments['evaluation']['baselines'].values(),
    ):
        for key in list(metrics):
            if '100' in key or '300' in key:
                del metrics[key]
    page = write_page(tmp_path, **arguments)
    assert findings.headline_count(arguments['evaluation']) == 10
    assert 'The first 10 proposals of an image reach an average recall of 0.432' in page.text


def test_rows_are_grouped_ordered_and_marked():
    evaluation = report_arguments()['evaluation']
    evaluation['baselines']['random_boxes']['ABO@100'] = 0.5
    rows = report.metric_rows(evaluation)
    names = 'proposals gaussian_boxes random_boxes oracle anchors'
    assert [row['name'] for row in rows] == names.split()
    column = report.columns(evaluation).index('ABO@100')
    assert [row['cells'][column]['best'] for row in rows] == [False, False, True, False, False]
    assert [row['cells'][0]['best'] for row in rows] == [False, True, False, False, False]
    assert rows[0]['cells'][column]['below'] and not rows[0]['cells'][0]['below']


def test_a_large_photo_is_made_small(tmp_path):
    picture = gallery_picture('large', 'best') | {'image': np.zeros((3000, 2000, 3), np.uint8)}
    page = write_page(tmp_path, gallery=[picture])
    data = base64.b64decode(page.all('img')[-1]['src'].split(',')[1])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (640, 427, 3)


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    (tmp_path / 'report.html').write_text('old')

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_page(tmp_path)
    assert os.listdir(tmp_path) == ['report.html']
    assert (tmp_path / 'report.html').read_text() == 'old'


def test_the_same_run_gives_the_same_page(tmp_path):
    pages = []
    for name in ('a', 'b'):
        report.write_report(tmp_path / name, **report_arguments())
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_missed_objects_have_a_table_and_pictures(tmp_path):
    page = write_page(tmp_path, misses=missed_objects())
    assert 'Why objects were missed' in page.text and 'is removed by NMS' in page.text
    assert 'suppressed-3' in page.text and 'suppressed-4' not in page.text  # the first four
    assert 'Missed: beyond_limit' in page.text and 'no_anchor' not in page.text
    assert page.text.count('removed by proposal 3, which is on another object') == 4
    assert 'box 241 by score: IoU 0.75,' in page.text and 'proposal 241: IoU 0.75' in page.text
    assert 'Of the proposals that removed it: 6 on another object.' in page.text
    boxes = [b for b in page.all('rect') if b['class'] in ('lost', 'remover')]
    assert [b['class'] for b in boxes] == ['lost', 'remover'] * 4 + ['lost'] * 4
    assert boxes[0]['x'] == '12.0' and boxes[1]['x'] == '30.0'
    assert sum(box['class'] == 'object' for box in page.all('rect')) == 8
    assert sum(box['class'] == 'object other' for box in page.all('rect')) == 4
    assert 'Why objects were missed' not in write_page(tmp_path).text


def test_parts_are_rows_and_a_plot_of_their_own(tmp_path):
    arguments = report_arguments()
    arguments['evaluation']['parts'] = {'oracle_scores': all_metrics(0.6)}
    arguments['curves']['oracle_scores'] = all_curves(0.6)
    rows = report.metric_rows(arguments['evaluation'])
    assert [row['group'] for row in rows][:3] == ['proposals', 'part', 'blind']
    page = write_page(tmp_path, **arguments)
    assert 'What each part contributes' in page.text and 'Parts of the network' in page.text
    assert 'What each part contributes' not in write_page(tmp_path).text
