"""Every page we write stands alone, is well formed, and is shown by a browser without complaint."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import cv2
import jinja2
import numpy as np
import pytest
from report_data import Page, training_input, whole_comparison, whole_report, write_inputs

from rpn_jax.data.normalization import pixel_family
from rpn_jax.diagnosis import checks
from rpn_jax.report import pages

BROWSERS = ('chromium', 'google-chrome', 'chromium-browser')
FLAGS = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
    *('--disable-background-networking', '--disable-component-update', '--disable-sync'),
    *('--enable-logging=stderr', '--virtual-time-budget=2000', '--dump-dom'),
)
WIDTHS = (1280, 800)
STYLED, UNWRITTEN = r'url\(|@import|//', r'\b(?:NaN|nan|undefined|None(?! of ))\b'
WATCH = Path(__file__).with_name('watch.html').read_text()


def faults(text):
    """Returns what is wrong with a page; nothing is fetched or run."""
    page, wrong = Page(text), []  # Page fails where tags are not closed in order
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    links = [attributes['for'] for _, attributes in page.tags if 'for' in attributes]
    for tag, attributes in page.tags:
        wrong += [f'a {tag}'] * (tag in ('link', 'iframe', 'object', 'embed', 'base'))
        wrong += [f'{tag} has code' for name in attributes if name.startswith('on')]
        for name in ('src', 'href', 'xlink:href', 'srcset', 'poster', 'action', 'data'):
            value = attributes.get(name, 'data:')
            if value.startswith('#'):
                links.append(value[1:])
            elif not value.startswith('data:'):
                wrong.append(f'{tag} refers to {value[:60]}')
        if tag == 'img':
            wrong += [] if attributes.get('alt', '').strip() else ['a picture without words']
            wrong += [] if decodes(attributes['src']) else ['broken picture']
    wrong += [f'id {id} twice' for id in set(ids) if ids.count(id) > 1]
    wrong += [f'#{link} leads nowhere' for link in links if link not in ids]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch('h[1-6]', tag)]
    steps = zip([0, *levels], levels, strict=False)
    wrong += [f'h{b} after h{a}' for a, b in steps if b > a + 1]
    wrong += ['other than one h1'] * (levels.count(1) != 1)
    wrong += ['a style refers elsewhere'] * bool(re.search(STYLED, page.inside.get('style', '')))
    wrong += [f'says {word}' for word in re.findall(UNWRITTEN, page.text)]
    json.loads(page.inside.get('script', '0'), parse_constant=lambda name: wrong.append(name))
    return wrong


def decodes(source):
    """Returns whether a data: URI holds a whole picture, and an SVG nothing from elsewhere."""
    kind, _, content = source.partition(';base64,')
    data = base64.b64decode(content, validate=True)
    if kind == 'data:image/svg+xml':
        return data.startswith(b'<svg') and not re.search(rb'(href|src)="(?!#)', data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    return kind.startswith('data:image/') and image is not None


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Returns {name: the text of a page} of every kind that we write."""
    example = training_input(image_id='<b>one</b>', file=b'')
    shown = [example._replace(levels=3, level=np.arange(3))]
    title = 'a run of a name that is long enough to go over the edge of a small screen' * 2
    folder = tmp_path_factory.mktemp('pages')
    write_inputs(folder, shown, checks.verdicts([example.evidence]), title)
    made = whole_comparison(), folder / 'inspect.html', whole_report()
    return {path.stem: path.read_text('utf-8') for path in made}


def test_every_page_is_well_formed_and_stands_alone(written):
    assert list(written) == ['compare', 'inspect', 'report']
    assert {name: faults(text) for name, text in written.items()} == dict.fromkeys(written, [])
    for text in written.values():
        assert '<html lang="en">' in text and '<img' in text and '<h2' in text and '<title>' in text


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, values = tmp_path / 'x.html', dict.fromkeys(('verdicts', 'failed', 'unsure', 'shown'), ())
    values |= {'dataset': 'x', 'pixels': pixel_family('caffe'), 'checked': 0, 'anchors': {}}
    with pytest.raises(jinja2.UndefinedError, match='title'):
        pages.write(path, 'inspect.html.j2', **values)
    assert list(tmp_path.iterdir()) == []
    path.write_text('old')
    monkeypatch.setattr(os, 'replace', mock.Mock(side_effect=OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        pages.write(path, 'inspect.html.j2', **values, title='x')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_a_figure_has_all_numbers_of_its_lines():
    a = np.array([1.0, 10, 1_000_003]), np.array([0.5, np.nan, 0.25])
    b = np.array([10.0, 100]), np.array([0.25, 0.125])
    nothing = np.array([1.0]), np.array([np.nan])
    lines = {'a': a, 'b': b, 'nothing': nothing}
    (figure,) = pages.figure('Recall: a, b', ', '.join, 'count', lines)
    assert figure['svg'] == 'a, b' and pages.figure('x', ', '.join, 'x', {'a': nothing}) == []
    assert figure['header'] == ['count', 'a', 'b'] and figure['file'] == 'recall_a_b.json'
    rows = ['1', '0.5', ''], ['10', '', '0.25'], ['100', '', '0.125'], ['1000003', '0.25', '']
    assert figure['rows'] == list(rows)
    assert figure['alt'].startswith('Recall: a, b: a 0.5 at 1 to 0.25 at 1000003; b 0.25 at 10')
    numbers = {'count': [1, 10, 100, 1000003], 'a': [0.5, None, None, 0.25]}
    numbers['b'] = [None, 0.25, 0.125, None]
    assert json.loads(figure['json'])['columns'] == numbers
    (named,) = pages.figure('x', ', '.join, 'size', {'a': (np.arange(2.0), b[1])}, ('s', 'm'))
    assert named['rows'] == [['s', '0.25'], ['m', '0.125']]
    steps = 1_000_003.0 + np.arange(20_000)  # a long line is thinned
    (figure,) = pages.figure('x', ', '.join, 'step', {'loss': (steps, 1 / steps)})
    content = json.loads(figure['json'])['columns']
    assert (content['step'][0], content['step'][-1]) == (1_000_003, 1_020_002)
    assert len(content['loss']) == 2000 and figure['points'] == [2000, 20_000]
    assert len(figure['rows']) == pages.ROWS


def test_plain_data_is_json_without_nan_and_sizes_of_boxes_never_below_zero():
    data = {'a': [np.float32(0.1), np.nan, (np.arange(2), 'x')], 1: {'b': 1 / 3, 'c': None}}
    expected = {'a': [0.1, None, [[0, 1], 'x']], '1': {'b': 0.333333, 'c': None}}
    assert json.loads(json.dumps(pages.plain(data))) == expected
    assert pages.xywh([[1, 2, 4.06, 8], [5, 5, 4, 4]]) == [[1, 2, 3.1, 6], [5, 5, 0, 0]]
    assert pages.xywh(np.zeros((0, 4))) == []


def browse(folder, texts):
    """Shows pages in a headless browser, at each width: returns what is wrong with them."""
    program = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if not program:
        pytest.skip(f'none of {", ".join(BROWSERS)} is on the PATH')
    encoded = json.dumps(texts).replace('</', '<\\/').replace('<!--', '<\\!--')
    (folder / 'watch.html').write_text(WATCH % (json.dumps(WIDTHS), encoded), 'utf-8')
    words = [f'--user-data-dir={folder / "profile"}', (folder / 'watch.html').as_uri()]
    done = subprocess.run([program, *FLAGS, *words], capture_output=True, text=True, timeout=240)
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    return json.loads(html.unescape(found[1])) + console


def test_a_browser_shows_every_page_without_complaint_and_finds_what_is_broken(written, tmp_path):
    page = '<html lang="en"><head><title>x</title></head><body><h1>x</h1>{}</body></html>'
    broken = {
        'picture': page.format('<img alt="torn" src="data:image/png;base64,iVBORw0KGgo=">'),
        'code': page.format('<script>nothing.at.all()</script>'),
        'wide': page.format('<div style="width: 2000px">x</div>'),
    }
    found = browse(tmp_path, written | broken)
    for fault in ('picture: broken torn', 'wide: 2008 > 800', 'code: Uncaught ReferenceError'):
        assert fault in '\n'.join(found)
    console = 'CONSOLE', 'nothing is not defined'
    ours = [line for line in found if line.split(':')[0] not in broken]
    assert [line for line in ours if not all(word in line for word in console)] == []
