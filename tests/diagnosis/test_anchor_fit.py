"""The mode `anchors`: figures that are those of matching and evaluation, lines, what it writes."""

import json
import re
import time

import jax
import numpy as np
import pytest
from data_files import write_voc
from helpers import tiny_config, tiny_flags

import main
from rpn_jax import config as configs
from rpn_jax import data
from rpn_jax.data import images
from rpn_jax.data.batches import padded
from rpn_jax.data.records import Source, record_of
from rpn_jax.diagnosis import anchor_fit, anchor_grid
from rpn_jax.errors import InputError
from rpn_jax.evaluation import evaluate, metrics
from rpn_jax.models import rpn
from rpn_jax.ops import matching

match = jax.jit(matching.match)
TARGETS = dict(positive_iou=0.6, negative_iou=0.3, border=-1, samples=256)


def synthetic(count, most=12):
    """Returns a source of records of several sizes with random boxes, some of them difficult."""
    random, records = np.random.default_rng(0), []
    for i in range(count):
        height, width = size = ((480, 640), (500, 333), (64, 80))[i % 3]
        number = random.integers(1, most)
        sides = np.exp(random.uniform(-3.5, 0, (number, 2))) * [width, height]
        low = random.uniform(0, 1, (number, 2)) * ([width, height] - sides)
        kind = 1 + (random.random(number) < 0.1)
        records.append(record_of(f'{i}', size, np.concatenate([low, low + sides], 1), kind))
    return Source('synthetic', records, None)


def opened(**changes):
    """Returns the model and options of the tiny config with changes."""
    config = tiny_config(**changes)
    model = rpn.build(config.model, config.anchors)
    return model, data.options(**config.data)


PYRAMID = dict(model__last_stage=4, model__fpn_stages=(3, 4), anchors__sizes=((16,), (32,), (64,)))


@pytest.mark.parametrize('changes', [{}, PYRAMID | {'data__resize': 'short_side'}])
def test_figures_are_those_of_matching_and_evaluation(changes):
    source, (model, options) = synthetic(9), opened(**changes)
    objects = anchor_grid.objects_of(source, options)
    fit = anchor_fit.measure(objects, anchor_grid.Layout.of(model), **TARGETS)
    found = anchor_fit.figures(fit, objects, **TARGETS)
    split = evaluate.open_split(model, source, options)
    counts, best, unmatched = np.zeros(len(split.anchors[0].types), int), [], 0
    rules = {key: TARGETS[key] for key in ('positive_iou', 'negative_iou', 'border')}
    for anchors, record, size in zip(split.anchors, source.records, split.sizes, strict=True):
        boxes, kind = padded(record, size, 12)
        labels, matched = jax.device_get(match(anchors.boxes, boxes, kind, size=size, **rules))
        counts += np.bincount(anchors.type[labels == 1], minlength=len(counts))
        unmatched += np.sum(kind == 1) - len(np.unique(matched[labels == 1]))
        best += metrics.iou(boxes[kind == 1], anchors.boxes).max(axis=1).tolist()
    best = np.array(best)
    assert [row['positives'] for row in found['types']] == counts.tolist()
    assert found['types_never_positive'] == np.sum(counts == 0)
    assert found['objects_without_anchor'] == unmatched
    assert found['positives_per_image'] == counts.sum() / 9
    np.testing.assert_allclose(found['mean_best_iou'], best.mean())
    for key, expected in {
        'covered': best >= 0.6,
        'low_quality': (best < 0.6) & (best > 0),
        'below_negative_iou': best < 0.3,
    }.items():
        np.testing.assert_allclose(found[key], expected.mean())
    assert found['objects_at_iou_0'] == np.sum(best == 0)
    bounds = evaluate._bounds(split, TARGETS)
    for name, bound in found['bounds'].items():
        expected = metrics.summarise(bounds[name], limits=(100,))
        assert bound == {key: pytest.approx(expected[key], abs=1e-4) for key in expected}
    for rows in found['groups'].values():
        assert sum(row['objects'] for row in rows) == len(best)
        means = [(row['objects'], row['mean_best_iou']) for row in rows if row['objects']]
        np.testing.assert_allclose(sum(n * mean for n, mean in means) / len(best), best.mean())
    assert sum(found['histogram']['objects']) == len(best)


def test_objects_are_grouped_on_the_canvas():
    record = record_of('a', (100, 200), [[0, 10, 40, 20], [150, 20, 180, 80]], [1, 1])
    options = opened(data__image_size=200)[1]
    objects = anchor_grid.objects_of(Source('x', [record], None), options)  # on 200 x 200
    found = anchor_fit.grouped_by(objects)
    np.testing.assert_allclose(found['size'], [800**0.5, 3600**0.5])
    np.testing.assert_allclose(found['ratio'], [0.5, 4])
    np.testing.assert_allclose(found['border'], [0, 20])


@pytest.mark.parametrize('flat', [True, False])
def test_flags_are_read_as_the_suggested_anchors(flat):
    sizes = ((12, 40),) if flat else ((12,), (40,))
    layout = anchor_grid.Layout((8, 16)[: len(sizes)], sizes, (0.5, 1.25))
    words = [
        word.strip("'").removeprefix('--config.').split('=') for word in anchor_fit.flags(layout)
    ]
    config = configs.override(configs.default(), dict(words))
    assert config.anchors.sizes == (sizes[0] if flat else sizes)
    assert config.anchors.aspect_ratios == (0.5, 1.25)


WORSE = 'objects of 32 to 64 pixels fit worse'


@pytest.mark.parametrize(('lost', 'line'), [(0.02, WORSE), (0, '')])
def test_sizes_that_fit_worse_are_named(lost, line):
    def fit(mean, *groups):
        names = 'below 16', '32 to 64', '64 to 128'
        rows = [
            {'name': name, 'objects': int(best is not None), 'mean_best_iou': best}
            for name, best in zip(names, groups, strict=True)
        ]
        return {'mean_best_iou': mean, 'covered': mean, 'groups': {'size': rows}}

    now, then = fit(0.5, None, 0.6, 0.4), fit(0.6, None, 0.6 - lost, 0.7)
    first, *middle, last = anchor_fit.advice({'present': now, 'suggested': then, 'flags': ['--x']})
    assert [each.startswith(line) for each in middle] == [True] * bool(line)
    assert '60%' in first and last.endswith('--x')


def test_without_objects_one_line_says_so():
    records = [record_of('a', (50, 50), [[0, 0, 9, 9]], [2])]
    model, options = opened()
    objects = anchor_grid.objects_of(Source('x', records, None), options)
    with pytest.raises(InputError, match='train_split: no image of it has an object'):
        anchor_fit.measure(objects, anchor_grid.Layout.of(model))


@pytest.mark.parametrize('border', [-1, 0])
@pytest.mark.parametrize(
    ('boxes', 'covered'),
    [([[0, 0, 64, 64]], 0), ([[20, 20, 21, 21]], 0), ([[8, 8, 40, 40]] * 3, 1)],
)
def test_odd_objects_have_right_figures(boxes, covered, border):
    """One that fills the image, one of a pixel, and one three times, which only one can own."""
    model, options = opened(data__image_size=64, anchors__sizes=(32,), anchors__aspect_ratios=(1,))
    source = Source('x', [record_of('a', (64, 64), boxes, [1] * len(boxes))], None)
    objects, targets = anchor_grid.objects_of(source, options), TARGETS | {'border': border}
    present = anchor_fit.measure(objects, anchor_grid.Layout.of(model), **targets)
    suggested = anchor_fit.suggest(objects, present, **targets)
    content = anchor_fit.summary(source, objects, present, suggested, **targets)
    json.dumps(content, allow_nan=False)
    assert content['present']['covered'] == covered
    assert content['present']['objects_without_anchor'] == len(boxes) - 1
    assert anchor_fit.lines(content)
    if suggested:
        assert suggested.best.mean() > present.best.mean()


def test_anchors_that_the_border_leaves_out_reach_nothing():
    model, options = opened(data__image_size=64, anchors__sizes=(200,), anchors__aspect_ratios=(1,))
    source = Source('x', [record_of('a', (64, 64), [[8, 8, 40, 40]], [1])], None)
    objects = anchor_grid.objects_of(source, options)
    fit = anchor_fit.measure(objects, anchor_grid.Layout.of(model), border=0)
    found = anchor_fit.figures(fit, objects)
    assert (found['objects_at_iou_0'], found['low_quality']) == (1, 0)
    assert found['types_never_positive'] == 1 and found['bounds']['oracle']['AR@100'] == 0


def test_many_images_take_little_time():
    source, (model, options) = synthetic(500), opened(**PYRAMID, data__image_size=600)
    began = time.process_time()
    objects = anchor_grid.objects_of(source, options)
    present = anchor_fit.measure(objects, anchor_grid.Layout.of(model), **TARGETS)
    assert anchor_fit.suggest(objects, present, **TARGETS).best.mean() > present.best.mean()
    assert time.process_time() - began < 30  # 60 s are for ten times as many


def test_the_mode_writes_a_page_and_ends_with_what_to_do(tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError('an image file was opened')

    monkeypatch.setattr(images, 'load', never)
    folder = write_voc(tmp_path / 'VOC')
    flags = tiny_flags(tmp_path / 'run', data__source='voc', data__path=folder)
    flags += ['--config.data.train_split=', '--config.anchors.sizes=(200,)']
    assert main.main(['anchors', *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) < 140 and len(printed) < 45
    content = json.loads((tmp_path / 'run' / 'anchors.json').read_text())
    page = (tmp_path / 'run' / 'anchors.html').read_text()
    assert printed[-1].startswith(f'{tmp_path}/run/anchors.html shows them')
    assert content['flags'] and all(flag in printed[-2] for flag in content['flags'])
    assert 'sizes=' in page and page.count('<img') == 3
    taken = [flag.strip("'") for flag in content['flags']]
    assert main.main(['anchors', *flags, *taken]) == 0
    again = json.loads((tmp_path / 'run' / 'anchors.json').read_text())
    assert again['present']['mean_best_iou'] == content['suggested']['mean_best_iou']
    assert re.search('keep these: ', capsys.readouterr().out) or again['suggested']


def test_empty_annotations_are_one_line(tmp_path, refuse):
    folder = write_voc(tmp_path / 'VOC')
    for path in (folder / 'Annotations').iterdir():
        path.write_text(re.sub('<object>.*</object>', '', path.read_text(), flags=re.DOTALL))
    flags = tiny_flags(tmp_path / 'run', data__source='voc', data__path=folder)
    line = refuse(['anchors', *flags, '--config.data.train_split='])
    assert line.startswith('train_split: no image of it has an object')
    assert 'config key data.train_split' in line
