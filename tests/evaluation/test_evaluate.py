"""Evaluation: every image once, figures as one would make them by hand, baselines as many."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import (
    BLIND,
    OBJECT,
    TRAINED_ON,
    FakePredict,
    compilations,
    finished_run,
    run_evaluation,
    tiny_config,
)

from rpn_jax import data
from rpn_jax.data.canvases import square
from rpn_jax.data.records import Record, Source
from rpn_jax.evaluation import baselines, evaluate, metrics, protocols
from rpn_jax.evaluation.ablations import ABLATIONS
from rpn_jax.evaluation.misses import REASONS
from rpn_jax.training import checkpoint, loop

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def fake(monkeypatch):
    """Returns a function that puts a Fake in the network's place."""

    def install(*arguments):
        stand_in = FakePredict(*arguments)
        monkeypatch.setattr(evaluate, 'make_predict', stand_in.make)
        return stand_in

    return install


def split(config):
    """Returns the tiny evaluation split."""
    options = data.Options(**config.data)
    return data.open_split(options, options.eval_split, seed=config.seed, training=False)


@pytest.mark.parametrize(('batch_size', 'devices'), [(4, 4), (4, 1), (5, 4), (9, 2), (1, 4)])
def test_every_image_is_seen_exactly_once(fake, batch_size, devices):
    stand_in = fake(50)
    evaluation = run_evaluation(tiny_config(data__batch_size=batch_size), devices)
    assert sorted(i for i in stand_in.seen if i >= 0) == list(range(6))
    assert evaluation.summary['images'] == 6
    assert len(set(stand_in.calls)) == 1  # one shape compiles once


def test_only_the_first_images_are_seen_on_demand(fake):
    stand_in = fake(50)
    evaluation = run_evaluation(tiny_config(evaluation__images=5))
    assert [i for i in stand_in.seen if i >= 0] == list(range(5))
    records = split(tiny_config()).records[:5]
    assert evaluation.summary['objects'] == sum((r.kind == 1).sum() for r in records)


def test_the_summary_has_the_keys_of_the_contract(fake):
    fake(1000)
    summary = run_evaluation(tiny_config(proposals__post_nms=1000, proposals__pre_nms=1000)).summary
    expected = ['step', 'dataset', 'images', 'objects', 'proposals', 'baselines']
    expected += ['parts', 'intervals', 'missed', 'removed_by', 'anchors']
    assert list(summary) == expected
    assert summary['parts'].keys() == set(ABLATIONS) and summary['missed'].keys() == set(REASONS)
    assert (summary['step'], summary['dataset']) == (3, 'shapes/val')
    assert summary['baselines'].keys() == BLIND | {'anchors', 'oracle'}
    counts = 10, 100, 300, 1000
    names = {f'{name}@{n}' for name in ('AR', 'ABO') for n in counts}
    names |= {f'recall@{t}/{n}' for t in (0.5, 0.7) for n in counts}
    names |= {f'AR@100/{size}' for size in ('small', 'medium', 'large')} | {'top10_max_iou'}
    for figures in [
        summary['proposals'],
        *summary['parts'].values(),
        *summary['baselines'].values(),
    ]:
        assert figures.keys() == names
        assert all(v is None or 0 <= v <= 1 for v in figures.values())
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_numbers_above_post_nms_are_left_out():
    summary = json.loads((finished_run().folder / 'evaluation.json').read_text())
    expected = {'AR@10', 'ABO@10', 'recall@0.5/10', 'recall@0.7/10', 'top10_max_iou'}
    for figures in [
        summary['proposals'],
        *summary['parts'].values(),
        *summary['baselines'].values(),
    ]:
        assert figures.keys() == expected
    assert summary['step'] == 8 and summary['images'] == 6
    assert None not in summary['proposals'].values()


def test_figures_are_those_of_the_predicted_boxes():
    folder, config = finished_run().folder, tiny_config(data__pixels='torchvision')
    state, _ = checkpoint.restore(folder)
    variables = {name: state[name] for name in ('params', 'batch_stats')}
    predict = evaluate.make_predict(loop.build(config)[0], config, jax.devices())
    source, boxes, objects = split(config), [], []
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


def test_large_and_small_are_told_apart_by_pixels_of_the_original_image(fake, monkeypatch):
    fake(100)
    boxes = np.float32([[100, 100, 140, 140]])  # 1600 square pixels, 25 on the canvas
    record = Record('big', (512, 512), boxes, np.int32([1]))
    source = Source('one', [record], lambda position: np.zeros((512, 512, 3), np.uint8))
    monkeypatch.setattr(evaluate.data, 'open_split', lambda *_, **__: source)
    figures = run_evaluation(tiny_config(proposals__post_nms=100)).summary['baselines']['oracle']
    assert figures['AR@100/medium'] is not None and figures['AR@100/small'] is None


def test_what_no_image_defines_is_null(fake, monkeypatch):
    fake(100)
    nothing = Record('empty', (64, 64), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    difficult = Record('hard', (64, 64), OBJECT, np.int32([2]))
    source = Source('none', [nothing, difficult], lambda i: np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(evaluate.data, 'open_split', lambda *_, **__: source)
    evaluation = run_evaluation(tiny_config(proposals__post_nms=100))
    summary = evaluation.summary
    assert summary['objects'] == 0 and evaluation.gallery == []
    for figures in [
        summary['proposals'],
        *summary['parts'].values(),
        *summary['baselines'].values(),
    ]:
        assert set(figures.values()) == {None}
    json.dumps(summary, allow_nan=False)
    assert '-' in evaluate.table(summary)[2]


def test_a_baseline_draws_as_many_boxes_as_the_network_kept(fake, monkeypatch):
    fake(50, lambda position: 7 * position)
    drawn, original = [], baselines.draw

    def draw(name, seed, image_index, *rest):
        boxes = original(name, seed, image_index, *rest)
        drawn.append((name, seed, image_index, len(boxes)))
        return boxes

    monkeypatch.setattr(evaluate.baselines, 'draw', draw)
    run_evaluation(tiny_config(seed=0))
    assert sorted(drawn) == sorted((name, 0, i, 7 * i) for name in BLIND for i in range(6))


def test_bounds_have_one_value_at_every_number_and_the_oracle_is_the_best(fake):
    fake(1000)
    summary = run_evaluation(tiny_config(proposals__post_nms=1000)).summary
    for name in ('anchors', 'oracle'):
        figures = summary['baselines'][name]
        assert len({figures[f'AR@{n}'] for n in (10, 100, 300, 1000)}) == 1
        assert figures['top10_max_iou'] is None
    assert summary['baselines']['oracle']['AR@10'] > summary['baselines']['anchors']['AR@10'] > 0


def test_a_second_evaluation_compiles_nothing_and_agrees(monkeypatch):
    config = tiny_config(data__pixels='torchvision')
    state, step = checkpoint.restore(finished_run().folder)
    variables = {name: state[name] for name in ('params', 'batch_stats')}
    function = evaluate.make_evaluate(
        loop.build(config)[0], config, TRAINED_ON, devices=jax.devices(), print=[].append
    )
    with compilations() as names:
        first = function(variables, step)
    assert names
    with compilations() as names:
        second = function(variables, step)
    assert names == [] and second.summary == first.summary


def test_the_report_gets_curves_sizes_and_as_many_best_as_worst_images(fake):
    fake(50)
    evaluation = run_evaluation(tiny_config())
    assert evaluation.curves.keys() == BLIND | {'proposals', *ABLATIONS}
    assert evaluation.curves['proposals']['count'] == [1, 2, 3, 5, 10, 20, 30, 50]
    assert evaluation.sizes['objects'].shape == (evaluation.summary['objects'], 2)
    assert evaluation.sizes['proposals'].shape == (6 * 10, 2)
    groups = [row['group'] for row in evaluation.gallery]
    assert groups == ['best'] * (len(groups) // 2) + ['worst'] * (len(groups) // 2)
    names = [row['image_id'] for row in evaluation.gallery]
    assert len(set(names)) == len(names) >= 4
    quality = [row['recalled'] / row['objects'] for row in evaluation.gallery]
    assert quality[0] == max(quality) and quality[len(groups) // 2] == min(quality)
    for row in evaluation.gallery:
        assert row['image'].dtype == np.uint8 and len(row['proposals']) == len(row['scores']) == 10


def test_the_columns_of_the_table_stand_below_each_other(fake):
    fake(1000)
    summary = run_evaluation(tiny_config(proposals__post_nms=1000)).summary
    head, names, *rows, missed, by_anchors = evaluate.table(summary)
    bounds = summary['intervals']['proposals']['AR@10']
    assert rows.pop(1).split()[:2] == ['interval', f'±{(bounds[1] - bounds[0]) / 2:.3f}']
    assert re.fullmatch(r'found by anchors of \(pixels\): 16: \d+%, 32: \d+%', by_anchors)
    total = sum(summary['missed'].values())
    assert missed.startswith(f'missed at IoU 0.5 and 100 proposals: {total} (') and total > 0
    assert head == f'shapes/val, step 3: 6 images, {summary["objects"]} objects'
    assert {len(line) for line in rows} == {len(names)}
    ends = [match.end() for match in re.finditer(r'\S+', names)]
    assert len(ends) == 8
    for row in rows:
        assert [match.end() for match in re.finditer(r'\S+', row)][1:] == ends
    names = ['proposals', *ABLATIONS, *summary['baselines']]
    assert [row.split()[0] for row in rows] == names
    assert rows[0].split()[1] == f'{summary["proposals"]["AR@10"]:.3f}'


def test_misses_are_the_objects_that_are_not_recalled(fake):
    fake(100)
    summary = (evaluation := run_evaluation(tiny_config(proposals__post_nms=100))).summary
    found = round(summary['proposals']['recall@0.5/100'] * summary['objects'])
    assert sum(summary['missed'].values()) == summary['objects'] - found == len(evaluation.misses)
    for miss in evaluation.misses:
        assert miss['reason'] in REASONS and np.all(miss['size'] > 0)
    pictures = [m['picture'] for m in evaluation.misses if m['picture'] is not None]
    assert pictures and all(len(p['boxes']) in (1, 2) for p in pictures)
    assert sum(summary['removed_by'].values()) == summary['missed']['suppressed']


def test_recalled_objects_are_shared_out_among_anchor_types(fake):
    fake(100)
    summary = run_evaluation(tiny_config(proposals__post_nms=100)).summary
    found, anchors = summary['proposals']['recall@0.5/100'] * summary['objects'], summary['anchors']
    assert sum(anchors['recalled']) == round(found) > 0
    assert sum(anchors['recall_share']) == pytest.approx(1)
    assert (anchors['sizes'], anchors['aspect_ratios']) == ([16, 32], [0.5, 1, 2])
    assert anchors['iou_before'] == anchors['iou_after']  # the deltas of a Fake are zero


def test_what_is_stored_gives_the_same_figures(fake):
    fake(100)
    evaluation = run_evaluation(tiny_config(proposals__post_nms=100))
    found = {k: t.value for k, t in protocols.rpn_jax(evaluation.results).items()}
    own = evaluation.summary['proposals']
    shared = own.keys() & found.keys()
    assert {'AR@100', 'recall@0.5/10', 'AR@100/large'} <= shared
    for key in shared:
        assert found[key] == pytest.approx(own[key], abs=0.02)  # boxes are in other pixels


def test_a_brief_evaluation_leaves_out_what_takes_long(fake):
    fake(50)
    config = tiny_config()
    function = evaluate.make_evaluate(
        loop.build(config)[0], config, TRAINED_ON, devices=jax.devices(), print=[].append
    )
    brief, whole = function({}, 3, brief=True), function({}, 3)
    assert whole.summary.items() >= brief.summary.items()
    assert not {'missed', 'parts', 'anchors'} & brief.summary.keys() and brief.misses == []
    assert brief.curves.keys() == BLIND | {'proposals'}
