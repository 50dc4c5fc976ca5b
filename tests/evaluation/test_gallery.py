"""Pictures show the right boxes, in pixels of the original image."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import FakePredict, large_images, run_evaluation

from rpn_jax.data.records import Record, Source
from rpn_jax.evaluation import gallery
from rpn_jax.evaluation.misses import Lost, Miss, Remover
from rpn_jax.ops.proposals import Proposals

BOXES = np.float32([[10, 20, 50, 80], [100, 40, 180, 120], [0, 0, 30, 30], [60, 60, 90, 99]])


@pytest.fixture
def split():
    """Returns what a gallery knows of images of 200 x 100 pixels on canvases of 50 x 50."""
    records = [Record(str(i), (100, 200), BOXES[: i + 1], np.ones(i + 1, int)) for i in range(4)]
    source = Source('some', records, lambda i: np.full((100, 200, 3), i, np.uint8))
    objects = [record.boxes * np.float32([0.25, 0.5, 0.25, 0.5]) for record in records]
    return SimpleNamespace(source=source, sizes=[(50, 50)] * 4, gt_boxes=objects)


def miss(position, row, reason, remover=None):
    lost = Lost(np.float32([1, 2, 3, 4]), 0.55, 7, '64 px')
    return Miss(position, row, reason, 0.1, 0.6, lost, remover)


def test_a_large_picture_is_shrunk_and_names_its_size(split, monkeypatch):
    monkeypatch.setattr(gallery, 'PIXELS', 4)
    picture = gallery.missed_objects(split, [miss(3, 3, 'beyond_limit')])[0]['picture']
    assert picture['image'].size <= 12 and picture['size'] == split.source.records[3].size


def test_a_missed_object_is_shown_with_what_was_lost_and_what_removed_it(split):
    other = Remover(11, np.float32([5, 5, 10, 10]), 0)
    missed = [miss(2, 1, 'suppressed', other), miss(3, 3, 'beyond_limit')]
    first, second = gallery.missed_objects(split, missed)
    assert first['picture']['image'][0, 0, 0] == 2 and first['picture']['image_id'] == '2'
    assert first['picture']['boxes'].tolist() == BOXES[[1, 0]].tolist()
    assert first['picture']['lost'].tolist() == [4, 4, 12, 8]
    assert first['picture']['remover'].tolist() == [20, 10, 40, 20]
    assert (first['overlap'], first['rank'], first['remover']) == (0.55, 7, 11)
    assert first['anchor'] == '64 px'
    assert first['removed_by'] == 'another_object' and first['size'].tolist() == [80, 80]
    assert second['picture']['boxes'].tolist() == BOXES[[3]].tolist()
    assert second['picture']['remover'] is second['remover'] is second['removed_by'] is None
    for row, on in ((1, 'same_object'), (-1, 'background')):  # no other object to be shown
        remover = Remover(0, np.float32([5, 5, 10, 10]), row)
        (shown,) = gallery.missed_objects(split, [miss(2, 1, 'suppressed', remover)])
        assert shown['picture']['boxes'].tolist() == BOXES[[1]].tolist()
        assert shown['removed_by'] == on


def test_a_few_of_each_reason_are_pictures(split):
    missed = [miss(0, 0, reason) for reason in ('clipped', 'no_anchor') for _ in range(6)]
    shown = gallery.missed_objects(split, missed)
    pictures = [each['reason'] for each in shown if each['picture'] is not None]
    assert pictures == ['clipped'] * gallery.EXAMPLES + ['no_anchor'] * gallery.EXAMPLES
    assert len(shown) == 12


def test_the_best_and_the_worst_images_come_with_their_proposals(split):
    kept = []
    for i, boxes in enumerate(split.gt_boxes):
        places = np.zeros((12, 4), np.float32)
        places[: len(boxes)] = boxes - i * np.float32([1, 0, 1, 0])  # worse from image to image
        scores, valid = np.linspace(1, 0, 12), np.arange(12) < len(boxes)
        kept.append(Proposals(places, scores, valid, np.zeros(12, int)))
    found = gallery.extremes(split, kept)
    assert [(p['group'], p['image_id']) for p in found] == [
        *(('best', '0'), ('best', '1'), ('worst', '3'), ('worst', '2'))
    ]
    for i, picture in zip((0, 1, 3, 2), found, strict=True):
        moved = BOXES[: i + 1] - i * np.float32([4, 0, 4, 0])
        np.testing.assert_allclose(picture['proposals'], moved, atol=1e-4)
        assert picture['objects'] == len(picture['scores']) == i + 1
    assert found[0]['recalled'] == 1 and found[0]['covered'] == pytest.approx(1)
    covered = [picture['covered'] for picture in found]
    assert covered[0] > covered[1] > covered[3] > covered[2]  # as they are ranked


class First(FakePredict):
    """Proposes the first object of each image and nothing else."""

    def propose(self, position, boxes):
        valid = np.arange(self._post_nms) < 1
        rows = np.float32(boxes[:1] * valid[:, None])
        return Proposals(rows, valid.astype(np.float32), valid, np.zeros(len(valid), int))


def test_results_and_pictures_are_in_pixels_of_the_original_image():
    source = large_images()
    evaluation = run_evaluation(First(), source)
    assert evaluation.summary['proposals']['recall@0.5/10'] == pytest.approx(1 / 3)
    assert evaluation.results.post_nms == 1000
    for record, boxes in zip(source.records, evaluation.results.proposals, strict=True):
        np.testing.assert_allclose(boxes, record.boxes[:1], atol=1e-3)
    for picture in evaluation.gallery:
        record = source.records[int(picture['image_id'])]
        np.testing.assert_allclose(picture['proposals'], record.boxes[:1], atol=1e-3)
