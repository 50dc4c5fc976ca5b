"""Drawn scenes are reproducible, their boxes exact, and objects vary and stand out."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from rpn_jax.data.records import Kind
from rpn_jax.data.sources.shapes import FORMS, HIDDEN, draw, layout, mask, shapes
from rpn_jax.errors import InputError

SIZE = 192
SCENES = 150
WINDOW = 0, 0, SIZE, SIZE


@pytest.fixture(scope='module')
def source():
    return shapes('train', count=SCENES, size=SIZE)


@pytest.fixture(scope='module')
def scenes():
    return [layout('train', index, size=SIZE) for index in range(SCENES)]


def test_a_scene_is_the_same_in_every_call_thread_and_process(source):
    again = shapes('train', count=6, size=SIZE)
    positions = list(range(6)) * 3
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(again.read, positions))
    for position, image in zip(positions, images, strict=True):
        np.testing.assert_array_equal(image, source.read(position))
        np.testing.assert_array_equal(again.records[position].boxes, source.records[position].boxes)
    assert source.records[2].image_id == 'shapes/train/000002'
    # As another process has drawn them, with another seed of Python's hashes.
    boxes = [[49, 31, 143, 109], [128, 58, 189, 125], [54, 44, 97, 67]]
    assert source.records[0].boxes.tolist() == boxes
    with pytest.raises(IndexError):
        source.read(SCENES)


def test_splits_and_seeds_share_no_scene(source):
    settings = ('train', 0), ('val', 0), ('train', 1)
    sources = [shapes(split, count=40, size=64, seed=seed) for split, seed in settings]
    boxes = [r.boxes.tobytes() for each in sources for r in each.records if len(r.boxes)]
    images = [each.read(position).tobytes() for each in sources for position in range(9)]
    assert len(set(boxes)) == len(boxes) > 100 and len(set(images)) == 27


@pytest.mark.parametrize('size', [32, 333])
def test_boxes_are_tight_and_inside(size):
    source = shapes('val', count=60, size=size)
    for index, record in enumerate(source.records):
        figures = layout('val', index, size=size)
        assert record.kind.tolist() == [figure.kind for figure in figures]
        for figure, box in zip(figures, record.boxes, strict=True):
            # The window is wider than the image: what would stick out of it would be seen.
            y, x = np.nonzero(mask(figure, (-9, -9, size + 9, size + 9)))
            drawn = x.min() - 9, y.min() - 9, x.max() - 8, y.max() - 8
            np.testing.assert_array_equal(box, drawn)
            assert min(drawn) >= 0 and max(drawn) <= size


def test_an_object_is_painted_on_its_mask_and_nowhere_else(scenes):
    for index, figures in enumerate(filter(None, scenes[:20])):
        last = figures[-1]._replace(kind=Kind.DIFFICULT)  # these cast no shadow
        random = [np.random.default_rng(index) for _ in range(2)]
        before = draw(figures[:-1], SIZE, random[0])
        after = draw([*figures[:-1], last], SIZE, random[1])
        changed = (before != after).any(axis=2)
        filled = mask(last, WINDOW) > 0
        assert not changed[~filled].any()
        assert changed[filled].mean() > 0.9


def test_later_objects_hide_at_most_half_of_a_box(scenes):
    hidden = []
    for figures in scenes:
        later = np.zeros((SIZE, SIZE), bool)
        for x0, y0, x1, y1 in (figure.box for figure in reversed(figures)):
            hidden.append(later[y0:y1, x0:x1].mean())
            later[y0:y1, x0:x1] = True
    assert max(hidden) <= HIDDEN
    assert np.mean(np.array(hidden) > 0.05) > 0.1  # there is occlusion to learn


def test_objects_vary(source, scenes):
    contours = [figure.contours for scene in scenes for figure in scene]
    assert {(len(each), len(each[0])) for each in contours} == {(len(f), len(f[0])) for f in FORMS}
    assert {0, 1, 8} <= {len(scene) for scene in scenes} <= set(range(9))
    boxes = np.concatenate([record.boxes for record in source.records])
    sides = boxes[:, 2:] - boxes[:, :2]
    scale = np.sqrt(sides.prod(axis=1)) / SIZE
    assert 0.1 < scale.min() < 0.15 and 0.4 < scale.max() < 0.55
    np.testing.assert_allclose(np.median(scale), np.sqrt(1 / 16), rtol=0.2)  # log-uniform
    aspect = sides[:, 1] / sides[:, 0]
    assert aspect.min() < 0.5 and aspect.max() > 2
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / SIZE
    assert centres.std(axis=0).min() > 0.2


def test_objects_stand_out_from_textured_surroundings(source, scenes):
    contrast, texture = {Kind.OBJECT: [], Kind.DIFFICULT: []}, []
    for index, figures in enumerate(scenes):
        pixels, later = source.read(index), np.zeros((SIZE, SIZE), np.uint8)
        for figure in reversed(figures):
            filled = mask(figure, WINDOW)
            around = cv2.dilate(filled, np.ones((7, 7), np.uint8)) & ~filled & ~later
            difference = np.subtract(cv2.mean(pixels, filled & ~later), cv2.mean(pixels, around))
            contrast[figure.kind].append(np.linalg.norm(difference))
            later |= filled
        texture.append(pixels[later == 0].std(axis=0).max())
    low, dim, clear = np.quantile(contrast[Kind.OBJECT], (0.05, 0.2, 0.8))
    assert 20 < low and dim < 60 < clear
    assert contrast[Kind.DIFFICULT] and np.median(contrast[Kind.DIFFICULT]) < 20
    assert min(texture) > 1


@pytest.mark.parametrize('changed', [{'count': 0}, {'size': 31}, {'seed': -1}], ids=str)
def test_a_number_too_small_is_refused_by_its_keyword(changed):
    with pytest.raises(InputError, match=f'^{next(iter(changed))} '):
        shapes('train', **{'count': 2, 'size': 64} | changed)
