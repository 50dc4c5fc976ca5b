"""The report carries everything inside itself, says what the numbers say, and never lies by NaN."""

import base64
import html.parser
import json
import os
import re

import cv2
import numpy as np
import pytest

from rpn_jax.report import findings, report

COUNTS = (1, 10, 100, 1000)
IOUS = tuple(np.arange(0.5, 1, 0.05).round(2).tolist())
NOTHING = {'remover': None, 'removed_by': None}
VOID = {'meta', 'img', 'input', 'link', 'br', 'hr', 'wbr'}


def _metrics(value):
    names = [f'AR@{n}' for n in (10, 100, 300, 1000)]
    names += [f'AR@100/{size}' for size in ('small', 'medium', 'large')]
    names += [f'{kind}/{n}' for kind in ('recall@0.5', 'recall@0.7') for n in (10, 100, 300, 1000)]
    names += [f'ABO@{n}' for n in (10, 100, 300, 1000)] + ['top10_max_iou']
    return dict.fromkeys(names, value)


def _curve(value):
    keys = {'iou': IOUS, 'count': COUNTS}
    keys |= {key: [value] * len(IOUS) for key in ('recall@100/iou', 'recall@1000/iou')}
    keys |= {
        key: [value] * len(COUNTS) for key in ('recall@0.5/count', 'recall@0.7/count', 'AR/count')
    }
    return keys


def _picture(image_id, group):
    box = [[10.0, 20, 60, 70]]
    return {
        'image': np.full((90, 120, 3), 200, np.uint8),
        'image_id': image_id,
        'group': group,
        'boxes': np.array(box + [[5, 5, 15, 15], [0, 0, 0, 0]]),
        'kind': np.array([1, 2, 0]),
        'proposals': np.array(box * 10) + np.arange(10)[:, None],
        'scores': np.linspace(0.975, 0.5, 10),
        'top_iou': 0.75,
        'recalled': 1,
        'objects': 1,
    }


def _arguments():
    rng = np.random.default_rng(0)
    steps = range(10, 510, 10)
    return {
        'title': 'A <small> run & more',
        'config': {'seed': 7, 'model': {'depth': 26, 'dilations': (1, 1, 2)}, 'data': {'path': ''}},
        'history': [
            {'step': s, 'loss': 1 / s, 'loss_objectness': 0.7 / s, 'loss_box': 0.3 / s}
            | {'learning_rate': 0.01, 'images_per_second': 12.5, 'positives': 17}
            for s in steps
        ],
        'evaluation': {
            'step': 500,
            'dataset': 'drawn shapes',
            'images': 1234,
            'objects': 5678,
            'proposals': _metrics(0.4321),
            'baselines': {
                'random_boxes': _metrics(0.1234),
                'gaussian_boxes': _metrics(0.2),
                'anchors': _metrics(0.81),
                'oracle': _metrics(0.987),
            },
        },
        'curves': {'proposals': _curve(0.4), 'random_boxes': _curve(0.1), 'quadrants': None},
        'sizes': {
            'objects': np.exp(rng.normal(4, 0.6, (300, 2))),
            'proposals': np.exp(rng.normal(4, 0.6, (900, 2))),
        },
        'gallery': [
            *(_picture(f'best-{i}', 'best') for i in range(6)),
            *(_picture(f'worst-{i}', 'worst') for i in range(6)),
        ],
    }


class _Page(html.parser.HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.inside = [], [], '', {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.open[-1] if self.open else ''
        self.inside[where] = self.inside.get(where, '') + data
        if where not in ('style', 'script'):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def _write(tmp_path, **changes):
    path = tmp_path / 'report.html'
    report.write_report(path, **_arguments() | changes)
    assert os.listdir(tmp_path) == ['report.html']
    page = _Page(path.read_text('utf-8'))
    page.text = ' '.join(page.text.split())
    return page


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    return _write(tmp_path_factory.mktemp('report'))


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
    arguments = _arguments()
    arguments['evaluation']['dataset'] = evil
    arguments['evaluation']['baselines'][evil] = _metrics(0.01)
    arguments['config'] = {evil: evil, 'deep': {evil: {'x': evil}}}
    arguments['curves'][evil] = _curve(0.02)
    arguments['gallery'] = [_picture(evil, 'best')]
    page = _write(tmp_path, **arguments | {'title': evil})
    assert len(page.all('script')) == 1
    assert all(image['src'].startswith('data:') for image in page.all('img'))
    assert page.text.count('<script>alert(1)</script>') >= 7
    assert evil in json.loads(page.inside['script'])['curves']


def test_an_empty_run_still_makes_a_page(tmp_path):
    evaluation = {'step': 0, 'dataset': 'none', 'images': 0, 'objects': 0}
    page = _write(
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
    arguments = _arguments()
    arguments['evaluation']['proposals'] |= {'AR@10': None, 'top10_max_iou': None}
    del arguments['evaluation']['baselines']['random_boxes']['ABO@100']
    arguments['history'] = [{'step': 1}, {'step': 2, 'loss': float('nan')}, {'loss': 3.0}, {}]
    arguments['curves']['proposals'] |= {
        'recall@1000/iou': None,
        'AR/count': [None, 0.1, 0.2, None],
    }
    arguments['gallery'][0] |= {'top_iou': None, 'proposals': np.zeros((0, 4)), 'scores': []}
    page = _write(tmp_path, **arguments)
    assert 'Too little training was recorded' in page.text
    assert 'NaN' not in page.inside['script']
    assert '–' in page.text


def test_few_proposals_move_the_headline_to_fewer(tmp_path):
    arguments = _arguments()
    for metrics in (
        arguments['evaluation']['proposals'],
        *arguments['evaluation']['baselines'].values(),
    ):
        for key in list(metrics):
            if '100' in key or '300' in key:
                del metrics[key]
    page = _write(tmp_path, **arguments)
    assert findings.headline_count(arguments['evaluation']) == 10
    assert 'The first 10 proposals of an image reach an average recall of 0.432' in page.text


def test_rows_are_grouped_ordered_and_marked():
    evaluation = _arguments()['evaluation']
    evaluation['baselines']['random_boxes']['ABO@100'] = 0.5
    rows = report.metric_rows(evaluation)
    names = 'proposals gaussian_boxes random_boxes oracle anchors'
    assert [row['name'] for row in rows] == names.split()
    column = report.columns(evaluation).index('ABO@100')
    assert [row['cells'][column]['best'] for row in rows] == [False, False, True, False, False]
    assert [row['cells'][0]['best'] for row in rows] == [False, True, False, False, False]
    assert rows[0]['cells'][column]['below'] and not rows[0]['cells'][0]['below']


def test_a_large_photo_is_made_small(tmp_path):
    picture = _picture('large', 'best') | {'image': np.zeros((3000, 2000, 3), np.uint8)}
    page = _write(tmp_path, gallery=[picture])
    data = base64.b64decode(page.all('img')[-1]['src'].split(',')[1])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (640, 427, 3)


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    (tmp_path / 'report.html').write_text('old')

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        _write(tmp_path)
    assert os.listdir(tmp_path) == ['report.html']
    assert (tmp_path / 'report.html').read_text() == 'old'


def test_the_same_run_gives_the_same_page(tmp_path):
    pages = []
    for name in ('a', 'b'):
        report.write_report(tmp_path / name, **_arguments())
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def _missed():
    found = []
    for reason, size in (('suppressed', (20, 20)), ('beyond_limit', (40, 200))):
        for i in range(6):
            removed = reason == 'suppressed'
            picture = {
                'image': np.full((90, 120, 3), 200, np.uint8),
                'image_id': f'{reason}-{i}',
                'group': reason,
                'boxes': np.array([[10.0, 20, 60, 70], [5, 5, 15, 15]])[: 1 + removed],
                'lost': np.array([12.0, 20, 62, 70]),
                'remover': np.array([30.0, 20, 90, 70]) if removed else None,
            }
            miss = {'reason': reason, 'size': np.array(size), 'overlap': 0.75, 'rank': 240 + i}
            by = {'remover': 2, 'removed_by': 'another_object'} if removed else NOTHING
            found.append(miss | by | {'picture': picture})
    return found


def test_missed_objects_have_a_table_and_pictures(tmp_path):
    page = _write(tmp_path, misses=_missed())
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
    assert 'Why objects were missed' not in _write(tmp_path).text


def test_parts_are_rows_and_a_plot_of_their_own(tmp_path):
    arguments = _arguments()
    arguments['evaluation']['parts'] = {'oracle_scores': _metrics(0.6)}
    arguments['curves']['oracle_scores'] = _curve(0.6)
    rows = report.metric_rows(arguments['evaluation'])
    assert [row['group'] for row in rows][:3] == ['proposals', 'part', 'blind']
    page = _write(tmp_path, **arguments)
    assert 'What each part contributes' in page.text and 'Parts of the network' in page.text
    assert 'What each part contributes' not in _write(tmp_path).text
