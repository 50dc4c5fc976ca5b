"""Examples are the batches that the network gets: its pixels, its boxes, its sampled anchors."""

import re

import jax
import numpy as np
import pytest
from data_files import write_voc
from helpers import tiny_config

from rpn_jax import data
from rpn_jax.data.normalization import pixel_family
from rpn_jax.diagnosis import inspect
from rpn_jax.models import rpn
from rpn_jax.report import drawings, inputs_page
from rpn_jax.training.step import assign_images, step_key

pytestmark = pytest.mark.usefixtures('quick_compilation')
STEPS = range(3, 5)
SIDE, SAMPLES = 64, 8
MARGIN, CAPTION, COLUMNS = 10, 22, 4  # of a contact sheet; pixels around and below a picture


def examples(config, steps, **changes):
    """Returns the model, with changes, the batches of the steps, and the Examples of each."""
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, 'train', seed=config.seed)
    model = rpn.build(config.model, config.anchors).clone(**changes)
    keywords = {'targets': config.targets, 'seed': config.seed, 'pixels': pixel_family('caffe')}
    found = list(inspect.examples(model, source, options, steps=steps, **keywords))
    make = data.train_batch(source, options, seed=config.seed)
    return model, [make(step) for step in steps], found


@pytest.fixture(scope='module')
def drawn(quick_compilation):
    """Returns the config, the model, the batches and the Examples of two steps."""
    config = tiny_config(data__image_size=SIDE, data__batch_size=6, targets__samples=SAMPLES)
    return config, *examples(config, STEPS)


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


def test_a_sheet_shows_the_pixels_of_the_batch_under_outlined_objects(drawn):
    _, _, batches, found = drawn
    outlines = [np.uint8(drawings.COLOURS[name]) for name in ('object', 'difficult', 'border')]
    objects = 0
    for batch, made in zip(batches, found, strict=True):
        sheet, _ = inputs_page.sheet(made)
        for row, cell in enumerate(cells(sheet, 6)):
            changed = np.any(batch['image'][row] != cell, -1)
            assert not np.any(changed & ~is_drawn(cell))
            assert 0.01 < changed.mean() < 0.6
            for x0, y0, _, _ in batch['boxes'][row][batch['kind'][row] > 0].astype(int):
                assert any(np.array_equal(cell[y0, x0], colour) for colour in outlines)
                objects += 1
            if not batch['kind'][row].any():
                assert not np.any(np.all(cell == outlines[0], -1))
    assert objects > 10


def test_anchors_are_those_that_the_step_samples(drawn):
    config, model, batches, found = drawn
    anchors = rpn.anchors_of(model, (SIDE, SIDE))
    assign = jax.jit(lambda key, batch: assign_images(key, anchors, batch, config.targets))
    pattern = re.compile(r'shapes/train/(\d+): (\d+) objects, (\d+) positive, (\d+) background')
    for step, batch, made in zip(STEPS, batches, found, strict=True):
        index, labels, _ = map(np.asarray, assign(step_key(config.seed, step), batch))
        sheet, captions = inputs_page.sheet(made)
        counts = np.int64([pattern.fullmatch(caption).groups() for caption in captions])
        sampled = (labels == 1).sum(1), (labels == 0).sum(1)
        expected = [batch['index'], (batch['kind'] > 0).sum(1), *sampled]
        np.testing.assert_array_equal(counts.T, expected)
        assert np.all(counts[:, 2:].sum(1) <= SAMPLES) and counts[:, 3].min() > 0
        for row, (example, cell) in enumerate(zip(made, cells(sheet, 6), strict=True)):
            assert example.step == step and example.levels == 1 and not example.level.any()
            for label, boxes in ((1, example.positive), (0, example.background)):
                own = np.asarray(anchors.boxes)[index[row][labels[row] == label]]
                np.testing.assert_array_equal(boxes, own)
            x, y = ((own[:, :2] + own[:, 2:]) / 2).astype(int).T
            assert is_drawn(cell)[y, x].all()


def test_a_canvas_of_each_shape_has_its_own_anchors(tmp_path):
    settings = dict(data__source='voc', data__resize='short_side', data__image_size=48)
    settings |= dict(data__path=str(write_voc(tmp_path / 'VOC2007')), data__batch_size=1)
    config = tiny_config(**settings, data__canvases=2)
    shapes = set()
    for (example,) in examples(config, range(4))[2]:
        height, width = example.seen.shape[:2]
        shapes.add((height, width))
        centres = (example.background[:, :2] + example.background[:, 2:]) / 2
        assert np.all(centres >= 0) and np.all(centres < [width, height])
        assert len(example.background)
    assert len(shapes) > 1


def test_anchors_of_several_levels_know_their_level():
    config = tiny_config(data__image_size=SIDE)
    _, _, (batch,) = examples(config, range(1), strides=(8, 16), sizes=((16,), (32,)))
    assert {example.levels for example in batch} == {2}
    for example in batch:
        roots = np.sqrt(np.prod(example.positive[:, 2:] - example.positive[:, :2], 1))
        np.testing.assert_array_equal(example.level, roots > 24)
    assert len(np.concatenate([example.level for example in batch]))
