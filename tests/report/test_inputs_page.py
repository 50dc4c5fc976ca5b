"""The page of inputs shows the network's canvas beside the file, its boxes, anchors and checks."""

import base64
import re

import cv2
import numpy as np
import pytest
from report_data import EVIL, training_input, write_inputs

from rpn_jax.diagnosis import checks
from rpn_jax.report import drawings, inputs_page


def content_of(picture):
    """Returns the type, the bytes and the RGB pixels of an <img>."""
    kind, content = picture['src'].removeprefix('data:').split(';base64,')
    content = base64.b64decode(content, validate=True)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return kind, content, image[..., ::-1]


def test_each_canvas_with_its_boxes_stands_beside_its_file_with_the_annotation(tmp_path):
    batch = [training_input(i, flipped=i == 1) for i in range(3)]
    page = write_inputs(tmp_path, batch, checks.verdicts([example.evidence for example in batch]))
    pictures, views = page.all('img'), [svg['viewbox'] for svg in page.all('svg')]
    boxes = [box for box in page.all('rect') if 'object' in box['class'].split()]
    borders = [box for box in page.all('rect') if box['class'] == 'border']
    assert len(pictures) == len(views) == 2 * len(batch) == 6
    for i, example in enumerate(batch):
        kind, _, image = content_of(pictures[2 * i])
        np.testing.assert_array_equal(image, example.seen)
        assert kind == 'image/png' and example.record.image_id in pictures[2 * i]['alt']
        assert content_of(pictures[2 * i + 1])[:2] == ('image/jpeg', example.file)
        sides = example.seen.shape[:2], example.record.size
        assert views[2 * i : 2 * i + 2] == [f'0 0 {width} {height}' for height, width in sides]
        assert (int(borders[i]['height']), int(borders[i]['width'])) == example.size
        assert f'the file’s own {len(example.file):,} bytes' in page.text
    found = np.float64([[box[k] for k in ('x', 'y', 'width', 'height')] for box in boxes])
    expected = np.concatenate([[*e.boxes, *e.record.boxes] for e in batch])
    expected[:, 2:] -= expected[:, :2]
    np.testing.assert_allclose(found, expected, atol=0.06)
    assert sum(box['class'] == 'object difficult' for box in boxes) == 6
    assert sum(box['class'] == 'positive level-0' for box in page.all('rect')) == 9
    assert sum(path['d'].count('M') for path in page.all('path')) == 2 * 3  # background anchors
    colours = 'BGR from 0 to 255, minus (103.06, 115.9'
    claims = {k: v for k, v in checks.CLAIMS.items() if k != 'annotations'}  # there are no files
    for text in (*claims, *claims.values(), '7 of 7 checks pass', 'voc <VO', colours):
        assert text in page.text
    assert 'FAIL' not in page.text and len(re.findall('(?<!not )flipped ·', page.text)) == 1


def test_a_browser_turns_a_file_as_its_exif_orientation_says_where_that_is_applied(tmp_path):
    batch = [training_input(0), training_input(1)._replace(turned=True)]
    batch.append(training_input(2, file=b'no image')._replace(turned=True))  # shown as it is read
    page = write_inputs(tmp_path, batch, checks.verdicts([batch[0].evidence]))
    classes = [div['class'] for div in page.all('div') if 'photo' in div.get('class', '')]
    assert classes == ['photo', 'photo', 'photo', 'photo turned', 'photo', 'photo']


def test_what_fails_comes_first_and_names_from_outside_are_escaped(tmp_path):
    worse = training_input(2, image_id=EVIL)
    colours = worse.evidence.colours | {'RGB': 40.0, 'BGR': 1.0}
    worse = worse._replace(evidence=worse.evidence._replace(colours=colours))
    batch = [training_input(0), training_input(1), worse]
    shown = inputs_page.chosen(batch, 2)
    assert shown[0] is worse and shown[1] is batch[0]
    states = dict.fromkeys(checks.CLAIMS, True) | {'flips': None, 'boxes': False}
    verdicts = [checks.Check(name, passed, f'of {name}, {EVIL}') for name, passed in states.items()]
    page = write_inputs(tmp_path, shown, verdicts, title=EVIL)
    assert 'Do not train on this input: 1 of 8 checks fail (boxes).' in page.text
    order = [page.text.index(f'of {name}') for name in ('boxes', 'flips', 'padding')]
    assert order == sorted(order)
    assert page.text.count('FAIL colour order differs from its original by 40.0 levels') == 1
    assert page.all('script') == [] and len(page.all('img')) == 4
    assert page.text.count('<script>alert(1)</script>') >= 9


def test_several_levels_have_colours_and_a_legend(tmp_path):
    example = training_input()._replace(level=np.arange(3), levels=3)
    page = write_inputs(tmp_path, [example], [])
    for i in range(3):
        assert f'positive, level {i}' in page.text
        assert sum(box['class'] == f'positive level-{i}' for box in page.all('rect')) == 1
        assert f'.level-{i} {{ --tone: rgb{drawings.LEVELS[i]}; }}' in page.inside['style']
    sheet, _ = inputs_page.sheet([example])
    legend = sheet[-30:]  # below the pictures
    assert np.any(np.all(legend == np.uint8(drawings.LEVELS[1]), -1))


@pytest.mark.parametrize(
    ('file', 'words'), [(b'RIFF....WAVE', 'converted from a file of 12'), (b'', 'drawn, no file')]
)
def test_what_no_browser_shows_becomes_png(tmp_path, file, words):
    example = training_input(file=file)
    page = write_inputs(tmp_path, [example], [])
    shown, _, image = content_of(page.all('img')[1])
    np.testing.assert_array_equal(image, example.original)
    assert shown == 'image/png' and words in page.text


def test_a_large_file_becomes_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs_page, 'LARGEST', 2000)
    monkeypatch.setattr(inputs_page, 'SIDE', 40)
    page = write_inputs(tmp_path, [training_input()], [])
    for picture in page.all('img'):
        shown, _, image = content_of(picture)
        assert shown == 'image/jpeg' and max(image.shape) == 40
    assert page.all('svg')[1]['viewbox'] == '0 0 60 40'
