"""The page of anchors shows the objects, the present and the suggested anchors, and the flags."""

import base64

import numpy as np
import pytest
from helpers import data_options
from report_data import EVIL, parsed, texts_of

from rpn_jax.data.records import Source, record_of
from rpn_jax.diagnosis import anchor_fit, anchor_grid
from rpn_jax.report import anchor_page

LAYOUT = anchor_grid.Layout((8, 16), ((16,), (300,)), (0.5, 1.0))


def write(path, sides, layout=LAYOUT):
    """Writes the page of one object of each (width, height), each in its image; returns both."""
    records = [
        record_of(f'{EVIL}{i}', (200, 200), [[9, 9, 9 + w, 9 + h]], [1])
        for i, (w, h) in enumerate(sides)
    ]
    source = Source(EVIL, records, None)
    objects = anchor_grid.objects_of(source, data_options(image_size=200))
    present = anchor_fit.measure(objects, layout)
    suggested = anchor_fit.suggest(objects, present)
    content = anchor_fit.summary(source, objects, present, suggested)
    anchor_page.write_page(path, EVIL, content, objects, present, suggested)
    return parsed(path), content


def pictures_of(page):
    return [base64.b64decode(each['src'].partition('base64,')[2]) for each in page.all('img')]


def test_the_page_shows_both_anchors_and_what_to_paste(tmp_path):
    random = np.random.default_rng(0)
    page, content = write(tmp_path / 'a.html', np.exp(random.normal(4, 0.3, (40, 2))))
    assert content['suggested'] and not page.all('script') and EVIL in page.text
    for flag in content['flags']:
        assert flag in page.text
    for what, now, then in anchor_fit.comparison(content):
        assert f'{what} {now} {then}' in page.text or f'{what}{now}{then}' in page.text
    sides, best, groups = map(texts_of, pictures_of(page))
    assert {'present anchors', 'suggested anchors', 'width', 'height'} <= {*sides}
    assert {'negative_iou', 'positive_iou', 'present', 'suggested'} <= {*best}
    assert {*anchor_fit.TITLES.values(), '32 to 64', 'at it'} - {*groups} == {'at it'}
    idle = sum(
        not each['positives'] for fit in ('present', 'suggested') for each in content[fit]['types']
    )
    assert idle and sum(cell.get('class') == 'never' for cell in page.all('td')) == idle


@pytest.mark.parametrize('count', [1, 30])
def test_without_a_suggestion_the_page_shows_the_present_anchors(tmp_path, count):
    layout = anchor_grid.Layout((1,), ((50,),), (1,))
    page, content = write(tmp_path / 'a.html', [(50, 50)] * count, layout)
    assert content['suggested'] is None and content['flags'] == []
    assert 'would hardly gain anything' in page.text and 'suggested' not in page.inside['th']
    assert 'suggested anchors' not in texts_of(pictures_of(page)[0])
    assert not page.all('li')[0].get('class')


def test_findings_name_what_is_wrong(tmp_path):
    _, content = write(tmp_path / 'a.html', [(20, 100)] * 5 + [(4, 4)])
    found = dict(anchor_page.findings(content))
    assert not next(iter(found.values()))
    for start, good in {
        '100% of the objects have positive anchors only because': False,
        '3 of the 4 types of anchors are never positive': False,
    }.items():
        assert [found[text] for text in found if text.startswith(start)] == [good], found
