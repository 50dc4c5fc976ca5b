"""Evaluation: every image once, figures as one would make them by hand, baselines as many."""

import json
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import (
    BLIND,
    OBJECT,
    FakePredict,
    compilations,
    evaluator,
    finished_run,
    large_images,
    run_evaluation,
    tiny_config,
)

from rpn_jax import data
from rpn_jax.data.canvases import square
from rpn_jax.data.records import Record, Source
from rpn_jax.errors import Interrupted
from rpn_jax.evaluation import evaluate, metrics
from rpn_jax.evaluation.ablations import ABLATIONS
from rpn_jax.evaluation.misses import REASONS
from rpn_jax.evaluation.predict import make_predict
from rpn_jax.evaluation.summary import table
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint


def sets_of(summary):
    """Returns the figures of all sets of boxes."""
    return [summary['proposals'], *summary['parts'].values(), *summary['baselines'].values()]


@pytest.mark.parametrize(('batch_size', 'devices'), [(4, 4), (4, 1), (5, 4), (9, 2), (1, 4)])
def test_every_image_is_seen_exactly_once(batch_size, devices):
    fake = FakePredict()
    evaluation = run_evaluation(fake, None, True, devices, data__batch_size=batch_size)
    assert sorted(i for i in fake.seen if i >= 0) == list(range(6))
    assert evaluation.summary['images'] == 6
    assert len(set(fake.calls)) == 1  # one shape compiles once


def test_only_the_first_images_are_seen_on_demand():
    fake = FakePredict()
    evaluation = run_evaluation(fake, brief=True, evaluation__images=5)
    assert [i for i in fake.seen if i >= 0] == list(range(5))
    records = evaluator(tiny_config()).source.records[:5]
    assert evaluation.summary['objects'] == sum((r.kind == 1).sum() for r in records)


def test_the_summary_has_the_keys_of_the_contract(evaluation):
    summary, counts = evaluation.summary, (10, 100, 300, 1000)
    expected = ['step', 'dataset', 'images', 'objects', 'proposals', 'baselines']
    expected += ['parts', 'intervals', 'missed', 'removed_by', 'anchors']
    assert list(summary) == expected
    assert summary['parts'].keys() == set(ABLATIONS) and summary['missed'].keys() == set(REASONS)
    assert (summary['step'], summary['dataset']) == (3, 'shapes/val')
    names = {f'{name}@{n}' for name in ('AR', 'ABO') for n in counts}
    names |= {f'recall@{t}/{n}' for t in (0.5, 0.7) for n in counts}
    names |= {f'AR@100/{size}' for size in ('small', 'medium', 'large')} | {'top10_max_iou'}
    for figures in sets_of(summary):
        assert figures.keys() == names
        assert all(v is None or 0 <= v <= 1 for v in figures.values())
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    baselines = summary['baselines']
    assert baselines.keys() == BLIND | {'anchors', 'oracle'}
    assert baselines['oracle']['AR@10'] > baselines['anchors']['AR@10'] > 0
    assert baselines['oracle']['AR@10'] == baselines['oracle']['AR@1000']
    assert baselines['oracle']['top10_max_iou'] is None


def test_figures_are_those_of_the_predicted_boxes():
    folder, config = finished_run().folder, tiny_config(data__pixels='torchvision')
    variables, _ = checkpoint.variables(folder)
    model = rpn.build(config.model, config.anchors)
    predict = make_predict(model, proposals=config.proposals, devices=jax.devices())
    source, boxes, objects = evaluator(config).source, [], []
    canvases = square(64, len(source.records))
    for positions, new in (((0, 1, 2, 3), range(4)), ((2, 3, 4, 5), (2, 3))):
        batch = data.batches.collate(source, canvases, positions, max_boxes=16)
        proposals = predict(variables, batch)
        for row in new:
            boxes.append(proposals.boxes[row][proposals.valid[row]])
            objects.append(batch['boxes'][row][batch['kind'][row] == 1])
    by_hand = {
        'AR@10': metrics.average_recall(boxes, objects, 10),
        'recall@0.5/10': metrics.recall(boxes, objects, 0.5, 10),
        'recall@0.7/10': metrics.recall(boxes, objects, 0.7, 10),
        'ABO@10': metrics.average_best_overlap(boxes, objects, 10),
        'top10_max_iou': metrics.top_iou(boxes, objects, 10),
    }
    summary = json.loads((folder / 'evaluation.json').read_text())
    assert summary['proposals'] == pytest.approx(by_hand, abs=1e-6)
    assert summary['objects'] == sum(map(len, objects))
    # Numbers above post_nms, which is 50, are left out of all sets of boxes.
    assert all(figures.keys() == by_hand.keys() for figures in sets_of(summary))
    assert summary['step'] == 8 and summary['images'] == 6


def test_large_and_small_are_of_pixels_of_the_original_image():
    boxes = np.float32([[100, 100, 140, 140]])  # 1600 square pixels, 25 on the canvas
    record = Record('big', (512, 512), boxes, np.int32([1]))
    source = Source('one', [record], lambda position: np.zeros((512, 512, 3), np.uint8))
    summary = run_evaluation(source=source).summary
    figures = summary['baselines']['oracle']
    assert figures['AR@100/medium'] is not None and figures['AR@100/small'] is None


def test_what_no_image_defines_is_null():
    nothing = Record('empty', (64, 64), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    difficult = Record('hard', (64, 64), OBJECT, np.int32([2]))
    source = Source('none', [nothing, difficult], lambda i: np.zeros((64, 64, 3), np.uint8))
    evaluation = run_evaluation(source=source)
    summary = evaluation.summary
    assert summary['objects'] == 0 and evaluation.gallery == []
    assert all(set(figures.values()) == {None} for figures in sets_of(summary))
    json.dumps(summary, allow_nan=False)
    assert '-' in table(summary)[2]


def test_a_baseline_draws_as_many_boxes_as_the_network_kept(monkeypatch):
    drawn, original = [], evaluate.baselines.draw

    def draw(name, seed, image_index, *rest):
        boxes = original(name, seed, image_index, *rest)
        drawn.append((name, seed, image_index, len(boxes)))
        return boxes

    monkeypatch.setattr(evaluate.baselines, 'draw', draw)
    run_evaluation(FakePredict(lambda position: 7 * position), brief=True)
    assert sorted(drawn) == sorted((name, 0, i, 7 * i) for name in BLIND for i in range(6))


def test_a_second_evaluation_compiles_nothing_and_agrees():
    variables, step = checkpoint.variables(finished_run().folder)
    with compilations() as names:
        function = evaluator(tiny_config(data__pixels='torchvision'))
        first = function(variables, step)
    assert names
    with compilations() as names:
        second = function(variables, step)
    assert names == [] and second.summary == first.summary


def test_the_report_gets_curves_sizes_and_as_many_best_as_worst_images(evaluation):
    assert evaluation.curves.keys() == BLIND | {'proposals', *ABLATIONS}
    assert evaluation.curves['proposals']['count'] == [n for n in metrics.COUNTS if n <= 1000]
    assert evaluation.sizes['objects'].shape == (evaluation.summary['objects'], 2)
    assert evaluation.sizes['proposals'].shape == (6 * 10, 2)
    assert [row['group'] for row in evaluation.gallery] == ['best'] * 3 + ['worst'] * 3
    for row in evaluation.gallery:
        assert row['image'].dtype == np.uint8 and len(row['proposals']) == len(row['scores']) == 10


def test_objects_are_either_missed_or_recalled_by_an_anchor_type(evaluation):
    summary, anchors = evaluation.summary, evaluation.summary['anchors']
    recalled = round(summary['proposals']['recall@0.5/100'] * summary['objects'])
    assert sum(summary['missed'].values()) == summary['objects'] - recalled
    assert sum(anchors['recalled']) == recalled > 0
    assert sum(anchors['recall_share']) == pytest.approx(1)
    assert (anchors['sizes'], anchors['aspect_ratios']) == ([16, 32], [0.5, 1, 2])
    assert anchors['types'] == [[0, size, ratio] for ratio in (0.5, 1, 2) for size in (16, 32)]
    assert anchors['iou_before'] == anchors['iou_after']  # the deltas of a FakePredict are zero
    assert len(evaluation.misses) == summary['objects'] - recalled
    for miss in evaluation.misses:
        assert miss['reason'] in REASONS and np.all(miss['size'] > 0)
    pictures = [m['picture'] for m in evaluation.misses if m['picture'] is not None]
    assert pictures and all(len(p['boxes']) in (1, 2) for p in pictures)
    assert sum(summary['removed_by'].values()) == summary['missed']['suppressed']


def test_a_brief_evaluation_leaves_out_what_takes_long(evaluation):
    short = run_evaluation(brief=True)
    assert evaluation.summary.items() >= short.summary.items()
    assert not {'missed', 'parts', 'anchors'} & short.summary.keys() and short.misses == []
    assert short.curves.keys() == BLIND | {'proposals'}


def test_an_evaluation_ends_between_two_batches():
    fake = FakePredict()
    with pytest.raises(Interrupted):
        run_evaluation(fake, between=mock.Mock(side_effect=Interrupted(3, 15)))
    assert len(fake.calls) == 1


def test_the_random_order_is_another_one_in_each_image(monkeypatch):
    """The maps of a FakePredict are zero, so that its boxes are the same anchors in every image."""
    monkeypatch.setattr(evaluate, '_evaluation', lambda split, images, *rest: images)
    images = run_evaluation(source=large_images())
    drawn = [each.ablations['random_order'] for each in images]
    assert len({boxes.tobytes() for boxes in drawn}) == len({b[0].tobytes() for b in drawn}) == 4
