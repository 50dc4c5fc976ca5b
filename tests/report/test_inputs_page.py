"""The page of inputs shows the network's canvas beside the file, its boxes, anchors and checks."""

import base64
import io
import re

import cv2
import numpy as np
import pytest
from data_files import write_voc
from helpers import tiny_config
from PIL import Image
from report_data import Page

from rpn_jax import data
from rpn_jax.data.normalization import pixel_family
from rpn_jax.diagnosis import checks, inspect
from rpn_jax.models import rpn
from rpn_jax.report import drawings, inputs_page

EVIL = '<script>alert(1)</script>"\'><img src=http://x>'
STATES = dict.fromkeys(checks.CLAIMS, True) | {'flips': None, 'boxes': False}


@pytest.fixture(scope='module')
def photos(quick_compilation, tmp_path_factory):
    """Returns the source and the examples of a batch, on canvases that images do not fill."""
    folder = write_voc(tmp_path_factory.mktemp('photos') / 'VOC2007')
    config = tiny_config(data__source='voc', data__path=str(folder), data__resize='short_side')
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, 'train', seed=config.seed)
    keywords = {'targets': config.targets, 'seed': 0, 'steps': range(1)}
    model = rpn.build(config.model, config.anchors)
    (batch,) = inspect.examples(model, source, options, pixels=pixel_family('caffe'), **keywords)
    return source, batch


def write(folder, shown, verdicts, title='a run'):
    """Writes a page and returns it, parsed."""
    path = folder / 'index.html'
    inputs_page.write_page(
        path,
        title=title,
        dataset='voc <VOC2007>',
        pixels=pixel_family('caffe'),
        checked=len(shown),
        verdicts=verdicts,
        shown=shown,
    )
    page = Page(path.read_text('utf-8'))
    page.text = ' '.join(page.text.split())
    return page


@pytest.fixture(scope='module')
def page(photos, tmp_path_factory):
    verdicts = checks.verdicts([example.evidence for example in photos[1]])
    return write(tmp_path_factory.mktemp('html'), photos[1], verdicts)


def content_of(picture):
    """Returns the type, the bytes and the RGB pixels of an <img>."""
    kind, content = picture['src'].removeprefix('data:').split(';base64,')
    content = base64.b64decode(content, validate=True)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return kind, content, image[..., ::-1]


def test_the_canvas_stands_beside_the_bytes_of_the_file(photos, page):
    source, batch = photos
    pictures = page.all('img')
    assert len(pictures) == 2 * len(batch) == 8
    for example, seen, file in zip(batch, pictures[::2], pictures[1::2], strict=True):
        kind, _, image = content_of(seen)
        np.testing.assert_array_equal(image, example.seen)
        assert kind == 'image/png' and example.record.image_id in seen['alt']
        position = [r.image_id for r in source.records].index(example.record.image_id)
        assert content_of(file)[:2] == ('image/jpeg', source.files.load(position))
    assert 'image-orientation: none' in page.inside['style']


def test_boxes_are_those_of_the_batch_and_of_the_annotation(photos, page):
    _, batch = photos
    views = [svg['viewbox'] for svg in page.all('svg')]
    boxes = [box for box in page.all('rect') if 'object' in box['class'].split()]
    borders = [box for box in page.all('rect') if box['class'] == 'border']
    expected = []
    for i, example in enumerate(batch):
        for view, (height, width) in zip(
            views[2 * i : 2 * i + 2], (example.seen.shape[:2], example.record.size), strict=True
        ):
            assert view == f'0 0 {width} {height}'
        assert (int(borders[i]['height']), int(borders[i]['width'])) == example.size
        expected += [*example.boxes, *example.record.boxes]
    found = np.float64([[box[k] for k in ('x', 'y', 'width', 'height')] for box in boxes])
    expected = np.float64(expected).reshape(-1, 4)
    expected[:, 2:] -= expected[:, :2]
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert sum(box['class'] == 'object difficult' for box in boxes) == 2
    positive = sum(len(example.positive) for example in batch)
    assert sum(box['class'] == 'positive level-0' for box in page.all('rect')) == positive
    dots = sum(path['d'].count('M') for path in page.all('path'))
    assert dots == 2 * sum(len(example.background) for example in batch)


def test_the_page_has_the_checks_in_words(photos, page):
    for text in (
        *checks.CLAIMS,
        *checks.CLAIMS.values(),
        *('7 of 7 checks pass', 'voc <VOC2007>', 'BGR from 0 to 255, minus (103.06, 115.9'),
        *(f'{e.record.size[1]} × {e.record.size[0]} pixels' for e in photos[1]),
        *(f'the file’s own {len(e.file):,} bytes' for e in photos[1]),
    ):
        assert text in page.text
    assert 'FAIL' not in page.text and 'positive, level' not in page.text
    flips = sum(checks.flipped(example.evidence) for example in photos[1])
    assert len(re.findall(r'(?<!not )flipped ·', page.text)) == flips > 0


def test_what_fails_comes_first(photos, tmp_path):
    worse = photos[1][2]
    colours = worse.evidence.colours | {'RGB': 40.0, 'BGR': 1.0}
    worse = worse._replace(evidence=worse.evidence._replace(colours=colours))
    shown = inputs_page.chosen([*photos[1][:2], worse], 2)
    assert shown[0] is worse and shown[1] is photos[1][0]
    verdicts = [checks.Check(name, passed, f'of {name}') for name, passed in STATES.items()]
    page = write(tmp_path, shown, verdicts)
    assert 'Do not train on this input: 1 of 7 checks fail (boxes).' in page.text
    order = [page.text.index(f'of {name}') for name in ('boxes', 'flips', 'padding')]
    assert order == sorted(order)
    assert page.text.count('FAIL colour order differs from its original by 40.0 levels') == 1


def test_several_levels_have_colours_and_a_legend(photos, tmp_path):
    level = np.arange(len(photos[1][0].positive)) % 3
    example = photos[1][0]._replace(level=level, levels=3)
    page = write(tmp_path, [example], [])
    for i in range(3):
        assert f'positive, level {i}' in page.text
        rects = [box for box in page.all('rect') if box['class'] == f'positive level-{i}']
        assert len(rects) == sum(level == i)
        assert f'.level-{i} {{ --tone: rgb{drawings.LEVELS[i]}; }}' in page.inside['style']
    sheet, _ = inputs_page.sheet([example])
    assert np.any(np.all(sheet == np.uint8(drawings.LEVELS[1]), -1))


def test_names_from_outside_are_escaped(photos, tmp_path):
    example = photos[1][0]
    record = example.record._replace(image_id=EVIL)
    broken = example.evidence._replace(image_id=EVIL, round_trip=9.0)
    example = example._replace(record=record, evidence=broken)
    page = write(tmp_path, [example], checks.verdicts([broken]), title=EVIL)
    assert page.all('script') == [] and len(page.all('img')) == 2
    assert all(image['src'].startswith('data:') for image in page.all('img'))
    assert page.text.count('<script>alert(1)</script>') >= 3


def test_what_no_browser_shows_becomes_png(photos, tmp_path):
    example, file = photos[1][0], io.BytesIO()
    Image.fromarray(example.original).save(file, 'TIFF')
    for content, words in ((file.getvalue(), 'converted from a file of'), (b'', 'drawn, no file')):
        page = write(tmp_path, [example._replace(file=content)], [])
        kind, _, image = content_of(page.all('img')[1])
        np.testing.assert_array_equal(image, example.original)
        assert kind == 'image/png' and words in page.text


def test_a_large_file_is_shown_smaller(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_page, 'LARGEST', 2000)
    monkeypatch.setattr(inputs_page, 'SIDE', 40)
    example = photos[1][0]
    assert len(example.file) > 2000
    page = write(tmp_path, [example], [])
    for picture in page.all('img'):
        kind, _, image = content_of(picture)
        assert kind == 'image/jpeg' and max(image.shape) == 40
    height, width = example.record.size
    assert page.all('svg')[1]['viewbox'] == f'0 0 {width} {height}'
