"""The input page shows the batches that the network gets: its pixels, objects and anchors."""

import base64
import io
import re

import cv2
import jax
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
from rpn_jax.training.step import assign_images, step_key

pytestmark = pytest.mark.usefixtures('quick_compilation')
STEPS = range(3, 5)
SIDE, SAMPLES = 64, 8
MARGIN, CAPTION, COLUMNS = 10, 22, 4  # of a contact sheet; pixels around and below a picture


def draw(pixels):
    """Returns the config, the batches of the steps, and the contact sheets of them."""
    config = tiny_config(
        data__pixels=pixels, data__image_size=SIDE, data__batch_size=6, targets__samples=SAMPLES
    )
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, options.train_split, seed=config.seed)
    make = data.train_batch(source, options, seed=config.seed)
    found = list(inspect.examples(config, source, STEPS))
    drawn = [(batch[0].step, *inputs_page.sheet(batch)) for batch in found]
    return config, [make(step) for step in STEPS], drawn


@pytest.fixture(scope='module')
def page(quick_compilation):
    return draw('torchvision')


def cells(sheet, count):
    """Returns the pictures of a contact sheet."""
    corners = [divmod(i, COLUMNS) for i in range(count)]
    tops = [MARGIN + row * (SIDE + CAPTION + MARGIN) for row, _ in corners]
    lefts = [MARGIN + column * (SIDE + MARGIN) for _, column in corners]
    return [sheet[y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts, strict=True)]


def is_drawn(picture):
    """Returns a mask of the pixels in a colour that drawings use."""
    colours = [*drawings.COLOURS.values(), drawings._INK]
    return np.any([np.all(picture == np.uint8(colour), -1) for colour in colours], 0)


@pytest.mark.parametrize('pixels', ['torchvision', 'caffe'])
def test_away_from_drawings_the_pixels_are_those_of_the_batch(page, pixels):
    _, batches, drawn = page if pixels == 'torchvision' else draw(pixels)
    assert [step for step, *_ in drawn] == list(STEPS)
    for batch, (_, sheet, _) in zip(batches, drawn, strict=True):
        for image, cell in zip(batch['image'], cells(sheet, 6), strict=True):
            changed = np.any(image != cell, -1)
            assert not np.any(changed & ~is_drawn(cell))
            assert 0.01 < changed.mean() < 0.6


def test_objects_are_outlined_and_padding_is_not(page):
    _, batches, drawn = page
    outlines = [np.uint8(drawings.COLOURS[name]) for name in ('object', 'difficult', 'border')]
    objects = 0
    for batch, (_, sheet, _) in zip(batches, drawn, strict=True):
        for row, cell in enumerate(cells(sheet, 6)):
            for x0, y0, _, _ in batch['boxes'][row][batch['kind'][row] > 0].astype(int):
                assert any(np.array_equal(cell[y0, x0], colour) for colour in outlines)
                objects += 1
            if not batch['kind'][row].any():
                assert not np.any(np.all(cell == outlines[0], -1))
    assert objects > 10


def test_the_lines_count_what_the_step_samples(page):
    config, batches, drawn = page
    model = rpn.build(config.model, config.anchors)
    anchors = np.asarray(rpn.anchors_of(model, (SIDE, SIDE)))
    assign = jax.jit(lambda key, batch: assign_images(key, anchors, batch, config.targets))
    for batch, (step, sheet, lines) in zip(batches, drawn, strict=True):
        index, labels, _ = map(np.asarray, assign(step_key(config.seed, step), batch))
        pattern = re.compile(r'shapes/train/(\d+): (\d+) objects, (\d+) positive, (\d+) background')
        found = np.int64([pattern.fullmatch(line).groups() for line in lines])
        objects = (batch['kind'] > 0).sum(1)
        expected = [batch['index'], objects, (labels == 1).sum(1), (labels == 0).sum(1)]
        np.testing.assert_array_equal(found.T, expected)
        assert np.all(found[:, 2:].sum(1) <= SAMPLES) and found[:, 3].min() > 0
        for row, cell in enumerate(cells(sheet, 6)):
            background = anchors[index[row][labels[row] == 0]]
            x, y = ((background[:, :2] + background[:, 2:]) / 2).astype(int).T
            assert is_drawn(cell)[y, x].all()


# The page

EVIL = '<script>alert(1)</script>"\'><img src=http://x>'
STATES = dict.fromkeys(checks.CLAIMS, True) | {'flips': None, 'boxes': False}


def photographs(tmp_path, **changes):
    """Returns the config and the source of a VOC folder of four pictures."""
    folder = write_voc(tmp_path / 'VOC2007')
    config = tiny_config(
        data__source='voc', data__path=str(folder), data__pixels='caffe', **changes
    )
    options = data.check(data.Options(**config.data))
    return config, data.open_split(options, 'train', seed=config.seed)


def write(tmp_path, shown, verdicts, title='a run'):
    """Writes a page and returns it, parsed."""
    path = tmp_path / 'index.html'
    inputs_page.write_page(
        path,
        title=title,
        dataset='voc <VOC2007>',
        pixels=pixel_family('caffe'),
        looked=len(shown),
        verdicts=verdicts,
        shown=shown,
    )
    page = Page(path.read_text('utf-8'))
    page.text = ' '.join(page.text.split())
    return page


def stored(picture):
    """Returns the type and the bytes of an <img>."""
    kind, content = picture['src'].removeprefix('data:').split(';base64,')
    return kind, base64.b64decode(content, validate=True)


@pytest.fixture(scope='module')
def photos(quick_compilation, tmp_path_factory):
    """Returns the source and the examples of a batch, on canvases that images do not fill."""
    config, source = photographs(tmp_path_factory.mktemp('photos'), data__resize='short_side')
    (batch,) = inspect.examples(config, source, range(1))
    return source, batch


@pytest.fixture(scope='module')
def html(photos, tmp_path_factory):
    verdicts = checks.verdicts([example.evidence for example in photos[1]])
    return write(tmp_path_factory.mktemp('html'), photos[1], verdicts)


def test_the_page_carries_everything_inside_itself(html):
    for tag, attributes in html.tags:
        assert tag not in ('link', 'iframe', 'object', 'embed', 'base', 'script')
        for name in ('src', 'href', 'xlink:href', 'srcset', 'poster', 'action'):
            assert attributes.get(name, 'data:').startswith('data:'), (tag, name)
    style = html.inside['style']
    assert 'url(' not in style and '@import' not in style and 'http' not in style
    assert 'image-orientation: none' in style


def test_the_canvas_stands_beside_the_bytes_of_the_file(photos, html):
    source, batch = photos
    pictures = html.all('img')
    assert len(pictures) == 2 * len(batch) == 8
    for example, seen, file in zip(batch, pictures[::2], pictures[1::2], strict=True):
        kind, content = stored(seen)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(image[..., ::-1], example.seen)
        assert kind == 'image/png' and example.record.image_id in seen['alt']
        position = [r.image_id for r in source.records].index(example.record.image_id)
        assert stored(file) == ('image/jpeg', source.files.load(position))


def test_boxes_are_those_of_the_batch_and_of_the_annotation(photos, html):
    _, batch = photos
    views = [svg['viewbox'] for svg in html.all('svg')]
    boxes = [box for box in html.all('rect') if 'object' in box['class'].split()]
    borders = [box for box in html.all('rect') if box['class'] == 'border']
    expected = []
    for i, example in enumerate(batch):
        height, width = example.seen.shape[:2]
        assert views[2 * i] == f'0 0 {width} {height}'
        height, width = example.record.size
        assert views[2 * i + 1] == f'0 0 {width} {height}'
        assert (int(borders[i]['height']), int(borders[i]['width'])) == example.size
        expected += [*example.boxes, *example.record.boxes]
    found = np.float64([[box[k] for k in ('x', 'y', 'width', 'height')] for box in boxes])
    expected = np.float64(expected).reshape(-1, 4)
    expected[:, 2:] -= expected[:, :2]
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert sum(box['class'] == 'object difficult' for box in boxes) == 2
    positive = sum(len(example.positive) for example in batch)
    assert sum(box['class'] == 'positive' for box in html.all('rect')) == positive
    dots = sum(path['d'].count('M') for path in html.all('path'))
    assert dots == 2 * sum(len(example.background) for example in batch)


def test_the_page_says_in_words_what_was_checked(photos, html):
    for name, claim in checks.CLAIMS.items():
        assert name in html.text and claim in html.text
    assert '7 of 7 checks pass' in html.text and 'FAIL' not in html.text
    assert 'voc <VOC2007>' in html.text and 'BGR of 0 to 255, less (103.06, 115.9' in html.text
    for example in photos[1]:
        height, width = example.record.size
        assert f'{width} × {height} pixels' in html.text
        assert f'the file’s own {len(example.file):,} bytes' in html.text
    flips = sum(checks.flipped(example.evidence) for example in photos[1])
    assert len(re.findall(r'(?<!not )flipped ·', html.text)) == flips > 0


def test_what_fails_comes_first(photos, tmp_path):
    verdicts = [checks.Check(name, passed, f'of {name}') for name, passed in STATES.items()]
    page = write(tmp_path, photos[1][:1], verdicts)
    assert 'Do not train on this input: 1 of 7 checks fail (boxes).' in page.text
    places = [page.text.index(f'of {name}') for name in ('boxes', 'flips', 'padding')]
    assert places == sorted(places)


def test_an_image_bears_what_fails_at_it_and_comes_first(photos, tmp_path):
    worse = photos[1][2]
    colours = worse.evidence.colours | {'RGB': 40.0, 'BGR': 1.0}
    worse = worse._replace(evidence=worse.evidence._replace(colours=colours))
    batch = [*photos[1][:2], worse]
    shown = inputs_page.chosen(batch, 2)
    assert shown[0] is worse and shown[1] is batch[0]
    verdicts = checks.verdicts([example.evidence for example in shown])
    page = write(tmp_path, shown, verdicts)
    assert page.text.count('FAIL colour order differs from its original by 40.0 levels') == 1


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
    for content, words in ((file.getvalue(), 'drawn from a file of'), (b'', 'drawn, no file')):
        page = write(tmp_path, [example._replace(file=content)], [])
        kind, data = stored(page.all('img')[1])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(image, example.original)
        assert kind == 'image/png' and words in page.text


def test_a_large_file_is_shown_smaller(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect, 'LARGEST', 2000)
    monkeypatch.setattr(inspect, 'SIDE', 40)
    example = photos[1][0]
    assert len(example.file) > 2000
    page = write(tmp_path, [example], [])
    for picture in page.all('img'):
        kind, data = stored(picture)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert kind == 'image/jpeg' and max(image.shape) == 40
    assert 'drawn from a file of' in page.text
    height, width = example.record.size
    assert page.all('svg')[1]['viewbox'] == f'0 0 {width} {height}'


def test_a_canvas_of_each_shape_has_its_own_anchors(tmp_path):
    config, source = photographs(
        tmp_path, data__resize='short_side', data__batch_size=1, data__canvases=4
    )
    shapes = set()
    for (example,) in inspect.examples(config, source, range(4)):
        height, width = example.seen.shape[:2]
        shapes.add((height, width))
        centres = (example.background[:, :2] + example.background[:, 2:]) / 2
        assert np.all(centres >= 0) and np.all(centres < [width, height])
        assert len(example.background)
    assert len(shapes) > 1
