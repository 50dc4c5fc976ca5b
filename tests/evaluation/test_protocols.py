"""Protocols differ as their table shows, and are printed side by side."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from report_data import LIMITS, PEERS, as_results, assert_like, random_results, values_of

from rpn_jax.evaluation import metrics, protocols


def test_ours_is_summarise():
    some = random_results(0)
    objects = [o[k == 1] for o, k in zip(some.gt_boxes, some.gt_kinds, strict=True)]
    overlaps = metrics.measure(some.proposals, objects, [metrics.area(o) for o in objects])
    assert_like(values_of(protocols.rpn_jax(some)), metrics.summarise(overlaps, post_nms=1000))
    figures = values_of(protocols.rpn_jax(some, LIMITS))
    assert_like(figures, metrics.summarise(overlaps, LIMITS))
    assert {f'AR@{n}/{size}' for n in LIMITS for size in metrics.AREAS} < figures.keys()


def test_protocols_differ_as_their_table_shows():
    """One box over two equal objects, a difficult one, and an image without proposals."""
    a, b = (0, 0, 40, 40), (100, 100, 140, 140)
    images = [
        ([(a, 0.9), ((0, 0, 40, 36), 0.8), (b, 0.5)], [(a, 1, 900), (a, 1, 1600), (b, 2, 99)]),
        ([], [(a, 1, 1600)]),
    ]
    rules, some = protocols.PROTOCOLS.items(), as_results(images)
    found = {name: values_of(rule(some, LIMITS)) for name, rule in rules}
    assert found['rpn_jax']['AR@1'] == pytest.approx(2 / 3)
    assert [found[name]['AR@1'] for name in PEERS] == pytest.approx([1 / 3, 1 / 2, 1 / 3, 1 / 3])
    assert found['coco']['AR@3'] == pytest.approx((10 + 9) / 30)
    assert found['voc']['recall@0.5/3'] == pytest.approx(1 / 3)  # both boxes look at the first
    assert found['coco']['AR@1/small'] == 1 and found['rpn_jax']['AR@1/small'] is None
    assert found['detectron2']['AR@1/medium'] == 1 and found['detectron']['AR@1/medium'] == 0.5


def test_pixels_that_are_not_taken_off_make_boxes_larger():
    some = as_results([([((0, 0, 20, 40), 1.0)], [((0, 0, 41, 40), 1, 1)])])
    assert values_of(protocols.detectron(some))['AR@10'] == 0
    assert values_of(protocols.detectron(some, converted=False))['AR@10'] == pytest.approx(0.1)
    assert values_of(protocols.voc(some))['recall@0.5/10'] == 0
    assert values_of(protocols.voc(some, converted=False))['recall@0.5/10'] == 1
    narrow = as_results([([((0, 0, 1, 9), 1.0)], [((0, 0, 0.4, 9), 1, 1)])])  # of a pixel at least
    assert values_of(protocols.detectron(narrow))['AR@10'] == 1


def test_a_difficult_object_may_take_a_box_in_voc_alone():
    box = 0, 0, 20, 40
    some = as_results([([(box, 1.0)], [(box, 2, 1), ((0, 0, 20, 30), 1, 1)])])
    assert values_of(protocols.voc(some))['recall@0.5/10'] == 0
    assert values_of(protocols.coco(some))['recall@0.5/10'] == 1


def test_the_table_stands_in_columns():
    some = random_results(0)
    estimates = protocols.table(some, resamples=100)
    assert list(estimates) == [*protocols.PROTOCOLS, 'detectron2 unskipped']
    head, names, *rows, sizes, skipping = protocols.lines(some, estimates)
    objects = sum(int(np.sum(k == 1)) for k in some.gt_kinds)
    assert head == f'random, step 9: 8 images, {objects} objects'
    assert {len(row) for row in rows} == {len(names)} and len(names) < 140
    ends = [match.end() for match in re.finditer(r'\S+', names)]
    columns = [column for column in protocols.COLUMNS if column != 'AR@2000']
    assert names.split() == columns and len(columns) == len(protocols.COLUMNS) - 1
    for name, row in zip(estimates, rows, strict=True):
        assert row.startswith(name)
        for column, start, end in zip(columns, [20, *ends], ends, strict=False):
            value, low, high = estimates[name].get(column, (None, None, None))
            expected = '-' if value is None else f'{value:.3f} ±{(high - low) / 2:.3f}'
            assert row[start:end].strip() == expected
            assert value is None or low <= value <= high
    assert sizes.endswith('the area as annotated; in rpn_jax always of the box')
    lost = int(np.sum(some.gt_kinds[1] == 1))
    assert lost > 1
    assert skipping.startswith(f'detectron2 skips 1 images without proposals ({lost} objects): AR@')
    skipped, whole = (estimates[n]['AR@100'].value for n in ('detectron2', protocols.UNSKIPPED))
    change = skipped - whole
    assert f'AR@100 by {change:+.3f}' in skipping and (change > 0) == (lost > 0)


@pytest.mark.parametrize(
    ('post_nms', 'limits'),
    [(999, (10, 100, 300)), (1000, metrics.LIMITS[:4]), (2000, metrics.LIMITS)]
    + [(5, ()), (None, metrics.LIMITS[:4])],
)
def test_no_protocol_counts_more_proposals_than_there_can_be(post_nms, limits):
    some = random_results(1, most=6)._replace(post_nms=post_nms)
    assert protocols.limits_of(some) == limits
    for name, protocol in protocols.PROTOCOLS.items():
        expected = protocol(some, limits)
        assert list(protocol(some)) == list(expected), name
        numbers = {int(n) for figure in expected for n in re.findall(r'(?:AR@|\d/)(\d+)', figure)}
        assert numbers == set(limits), name
    columns = protocols.lines(some, protocols.table(some, resamples=10))[1].split()
    assert [c for c in columns if '/' not in c] == [f'AR@{n}' for n in limits]


def test_limits_of_results_without_post_nms_are_those_of_their_proposals():
    some = random_results(1)
    for count, limits in ((1001, (10, 100, 300, 1000)), (2000, metrics.LIMITS)):
        more = some._replace(proposals=[np.zeros((count, 4)), *some.proposals[1:]])
        assert protocols.limits_of(more) == limits


def test_a_table_of_some_protocols_and_of_nothing():
    some = random_results(1)
    assert list(protocols.table(some, ('voc',), (10, 2000), 10)['voc']) == [
        *('recall@0.5/10', 'recall@0.5/2000')
    ]
    with pytest.raises(ValueError, match='no protocols: pascal'):
        protocols.table(some, ('coco', 'pascal'))
    assert len(protocols.lines(some, protocols.table(some, ('coco',), resamples=10))) == 4
    nothing = as_results([])
    assert set(sum([line.split()[1:] for line in protocols.lines(nothing)[2:4]], [])) == {'-'}
    assert protocols.lines(nothing)[-1].endswith('nothing is left to count')
    assert protocols.lines(as_results([([], [])]))[0] == 'drawn, step 0: 1 images, 0 objects'


LARGEST = """
import resource, time
from report_data import random_results
from rpn_jax.evaluation import protocols

some = random_results(0, images=5000, most=2000, extent=600)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
found = protocols.table(some, ('rpn_jax', 'coco'))
seconds = time.process_time() - start
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert 0.1 < found['coco']['AR@1000'].low < found['rpn_jax']['AR@1000'].value
print(seconds, grown / 2**20)
"""


@pytest.mark.slow
def test_the_largest_split_takes_a_minute_and_two_gibibytes():
    """5,000 images x 1,000 proposals x 4 objects, two protocols with their intervals."""
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([*sys.path])}
    run = subprocess.run(
        [sys.executable, '-c', LARGEST], capture_output=True, text=True, check=True, env=environment
    )
    seconds, gibibytes = map(float, run.stdout.split())
    assert seconds <= 60 and gibibytes <= 2
